"""Traces for OpenTelemetry, where somebody asked for them; else `span` does nothing and costs nothing.

They are asked for by OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT)
or OTEL_TRACES_EXPORTER (``otlp`` or ``console``). It needs the extra: ``pip install streamkm[otel]``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import Any, Protocol, Self

from streamkm.redaction import redact, redact_all

log = logging.getLogger(__name__)

Value = str | bool | int | float | Sequence[str]
_ASKED = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")


class Span(Protocol):
    """A step that is being traced."""

    def set_attribute(self, key: str, value: Any) -> None:
        """Say something about it."""
        ...

    def update_name(self, name: str) -> None:
        """Call it something else."""
        ...


class _Nothing:
    """A span that nobody sees, and its context."""

    def set_attribute(self, key: str, value: Any) -> None:
        pass

    def update_name(self, name: str) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


_NOTHING = _Nothing()
_tracer: Any = None
_settled = False


def wanted(env: Mapping[str, str]) -> bool:
    """Whether an environment asks for traces."""
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true" or env.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(env.get(name) for name in _ASKED)


def enabled() -> bool:
    """Whether spans go anywhere; finds it out at the first call."""
    global _settled  # noqa: PLW0603  # one tracer a process, as OpenTelemetry itself has it
    if not _settled:
        _settled = True
        if wanted(os.environ):
            _start()
    return _tracer is not None


def _start() -> None:
    """Send spans to where the environment says."""
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
        log.warning("traces are asked for, and %s is not installed: pip install streamkm[otel]", error.name)
        return
    use(provider)


def _service_name(env: Mapping[str, str]) -> str:
    return env.get("OTEL_SERVICE_NAME") or "streamkm"


def use(provider: Any | None) -> None:
    """Send spans to a tracer provider of OpenTelemetry's SDK from now on; None: nowhere."""
    global _tracer, _settled  # noqa: PLW0603  # as above
    _settled = True
    _tracer = None if provider is None else provider.get_tracer("streamkm", version("streamkm"))


def span(name: str, **attributes: Value) -> AbstractContextManager[Span]:
    """Trace a step, within the one that is under way.

    An exception that leaves it marks the span as failed, and goes on.

    Parameters
    ----------
    name
        Of the step: few different ones.
    attributes
        What is known of it; underscores in their names become dots. Texts are redacted: they leave the machine.

    Examples
    --------
    >>> with span("commit", records=10) as s:
    ...     s.set_attribute("snapshot", 3)
    """
    if not enabled():
        return _NOTHING
    return _span(name, attributes, None, None)


def server_span(name: str, headers: Mapping[str, str], **attributes: Value) -> AbstractContextManager[Span]:
    """Trace the answer to a request, within the trace that its ``traceparent`` names.

    Parameters
    ----------
    name, attributes
        As for `span`.
    headers
        Of the request; names in lower case.
    """
    if not enabled():
        return _NOTHING
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
            yield _Redacted(found)
        except Exception as error:
            _failed(found, error)
            raise


def _failed(span: Any, error: Exception) -> None:
    """Mark a span as failed, as the SDK would by itself, without the secrets that an error may quote."""
    from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415  # an extra

    message, lines = redact(str(error)), redact("".join(traceback.format_exception(error)))
    span.record_exception(error, {"exception.message": message, "exception.stacktrace": lines})
    span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {message}"))


class _Redacted:
    """A span whose attributes are redacted."""

    def __init__(self, span: Any) -> None:
        self._span = span

    def set_attribute(self, key: str, value: Any) -> None:
        self._span.set_attribute(key, redact_all(value))

    def update_name(self, name: str) -> None:
        self._span.update_name(redact(name))
