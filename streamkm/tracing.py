"""OpenTelemetry traces; off, and without cost, unless the environment turns them on.

They are turned on by OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or
OTEL_TRACES_EXPORTER (``otlp`` or ``console``). They require the extra: ``pip install streamkm[otel]``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import Any

from streamkm.redaction import redact, redact_all

log = logging.getLogger(__name__)

Value = str | bool | int | float | Sequence[str]
_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")


class Span:
    """An operation that is being traced, with redacted attributes; it does nothing without a span of OpenTelemetry."""

    def __init__(self, traced: Any = None) -> None:
        self._traced = traced

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute."""
        if self._traced is not None:
            self._traced.set_attribute(key, redact_all(value))

    def update_name(self, name: str) -> None:
        """Rename the span."""
        if self._traced is not None:
            self._traced.update_name(redact(name))


_NOT_TRACED = contextlib.nullcontext(Span())
_tracer: Any = None
_configured = False


def is_requested(env: Mapping[str, str]) -> bool:
    """Whether the environment turns traces on."""
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true" or env.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(env.get(name) for name in _VARIABLES)


def enabled() -> bool:
    """Whether spans are recorded; reads the environment at the first call."""
    global _configured  # noqa: PLW0603  # one tracer per process, as in OpenTelemetry
    if not _configured:
        _configured = True
        if is_requested(os.environ):
            _start()
    return _tracer is not None


def _start() -> None:
    """Start the exporter that the environment selects."""
    try:
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415  # an extra
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter  # noqa: PLC0415

        provider = TracerProvider(resource=Resource.create({"service.name": _service_name(os.environ)}))
        if os.environ.get("OTEL_TRACES_EXPORTER") == "console":
            provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ImportError as error:
        log.warning("traces are turned on, but %s is not installed: pip install streamkm[otel]", error.name)
        return
    use(provider)


def _service_name(env: Mapping[str, str]) -> str:
    return env.get("OTEL_SERVICE_NAME") or "streamkm"


def use(provider: Any | None) -> None:
    """Send spans to a tracer provider of OpenTelemetry's SDK; None turns traces off."""
    global _tracer, _configured  # noqa: PLW0603  # as above
    _configured = True
    _tracer = None if provider is None else provider.get_tracer("streamkm", version("streamkm"))


def span(name: str, **attributes: Value) -> AbstractContextManager[Span]:
    """Trace an operation, as a child of the current span.

    An exception marks the span as failed, and propagates.

    Parameters
    ----------
    name
        Name of the operation, from a small set.
    attributes
        Underscores in their names become dots. Texts are redacted, because they leave the machine.

    Examples
    --------
    >>> with span("commit", records=10) as s:
    ...     s.set_attribute("snapshot", 3)
    """
    if not enabled():
        return _NOT_TRACED
    return _span(name, attributes, None, None)


def server_span(name: str, headers: Mapping[str, str], **attributes: Value) -> AbstractContextManager[Span]:
    """Trace the handling of a request, in the trace of its ``traceparent`` header.

    Parameters
    ----------
    name, attributes
        As for `span`.
    headers
        Of the request, with names in lower case.
    """
    if not enabled():
        return _NOT_TRACED
    from opentelemetry.trace import SpanKind  # noqa: PLC0415  # an extra
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    return _span(name, attributes, TraceContextTextMapPropagator().extract(headers), SpanKind.SERVER)


@contextlib.contextmanager
def _span(name: str, attributes: Mapping[str, Value], context: Any, kind: Any) -> Iterator[Span]:
    given = {key.replace("_", "."): redact_all(value) for key, value in attributes.items()}
    more = {} if kind is None else {"kind": kind}
    with _tracer.start_as_current_span(
        redact(name), context=context, attributes=given, record_exception=False, set_status_on_exception=False, **more
    ) as found:
        try:
            yield Span(found)
        except Exception as error:
            _failed(found, error)
            raise


def _failed(span: Any, error: Exception) -> None:
    """Mark a span as failed, as the SDK does, without secrets that the error may contain."""
    from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415  # an extra

    message, lines = redact(str(error)), redact("".join(traceback.format_exception(error)))
    span.record_exception(error, {"exception.message": message, "exception.stacktrace": lines})
    span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {message}"))
