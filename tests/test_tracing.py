"""Traces: off by default; otherwise a span per request and commit, in the caller's trace."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service_api import Api, Writer
from streamkm import tracing
from streamkm.stores import open_store
from test_engine import N, World, eager, record
from waiting import PATIENCE

__all__ = ["eager"]  # a fixture


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    yield exporter
    tracing.use(None)
    provider.shutdown()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Tracing as at the start of a process without the variables."""
    for name in tracing._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tracing, "_configured", False)
    monkeypatch.setattr(tracing, "_tracer", None)
    yield monkeypatch
    tracing.use(None)


def test_nobody_asked_and_nothing_is_imported_or_kept(fresh):
    with tracing.span("commit", records=1) as span:
        span.set_attribute("snapshot", 1)
    assert not tracing.enabled()
    assert tracing.span("a") is tracing.span("b")
    code = "import sys, streamkm.tracing as t; t.span('x'); print([m for m in sys.modules if 'opentelemetry' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("env", "answer"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
    ],
)
def test_the_environment_asks_by_the_names_of_opentelemetry(env, answer):
    assert tracing.is_requested(env) is answer


def test_asked_for_without_the_extra_it_says_how_to_get_it(fresh, caplog):
    fresh.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    fresh.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with caplog.at_level(logging.WARNING), tracing.span("commit"):
        pass
    with tracing.span("commit"):
        pass
    (said,) = (r.getMessage() for r in caplog.records)
    assert "pip install streamkm[otel]" in said


def test_no_secret_leaves_the_machine_in_a_span(spans):
    url = "postgresql://me:hunter2@host/points"
    with contextlib.suppress(ValueError), tracing.span(f"ask {url}", where=url) as span:
        span.set_attribute("tried", [url])
        span.update_name(f"asked {url}")
        raise ValueError(f"no answer of {url}")
    (seen,) = spans.get_finished_spans()
    assert "no answer of postgresql://me:" in seen.status.description
    assert "Traceback" in seen.events[0].attributes["exception.stacktrace"]
    assert "hunter2" not in seen.to_json()


def test_a_span_has_attributes_and_fails_with_its_step(spans):
    with tracing.span("commit", records=3) as span:
        span.set_attribute("snapshot", 7)
    with pytest.raises(ValueError, match="broken"), tracing.span("commit"):
        raise ValueError("broken")
    good, bad = spans.get_finished_spans()
    assert (good.name, dict(good.attributes)) == ("commit", {"records": 3, "snapshot": 7})
    assert good.status.is_unset
    assert not bad.status.is_ok
    assert bad.events[0].name == "exception"


def test_requests_are_spans_by_route_in_the_trace_of_who_asks(spans):
    store = open_store("memory://")
    Writer(store).commit()
    api = Api(store)
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    api.get("/v1/models/orders", headers={"traceparent": f"00-{trace}-{parent}-01"})
    api.get("/v1/models/nobody/clusters?at=5")
    api.request("BREW", "/made/up")
    one, two, three = spans.get_finished_spans()
    assert one.name == "GET /v1/models/{model}"
    assert f"{one.context.trace_id:032x}" == trace
    assert one.parent is not None
    assert f"{one.parent.span_id:016x}" == parent
    attributes: dict[str, Any] = dict(one.attributes)
    assert attributes["http.response.status_code"] == 200
    assert attributes["http.route"] == "/v1/models/{model}"
    assert two.parent is None
    assert two.attributes["http.response.status_code"] == 404
    assert "nobody" not in f"{two.name}{dict(two.attributes)}"
    assert three.name == "_OTHER"
    assert "made" not in str(dict(three.attributes))


def test_a_traceparent_that_is_none_does_no_harm(spans):
    store = open_store("memory://")
    Writer(store).commit()
    for header in ("", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "\xff" * 9):
        assert Api(store).get("/v1/models/orders", headers=[(b"traceparent", header.encode("latin-1"))]).is_success
    assert [s.parent for s in spans.get_finished_spans()] == [None] * 4


def test_each_commit_is_a_span(spans, eager):
    w = World([record(i) for i in range(N)])
    w.engine().run(w.until_all_read())
    commits = [s for s in spans.get_finished_spans() if s.name == "commit"]
    assert len(commits) == w.store.load_checkpoint("m").progress.commit_seq
    last: dict[str, Any] = dict(commits[-1].attributes)
    assert (last["model"], last["records"], last["points"]) == ("m", N, N)
    assert any(s.attributes["snapshot"] for s in commits)


SENDER = "from streamkm.tracing import span\nwith span('commit', lag=3): pass"


def test_spans_reach_a_collector_of_opentelemetry():
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    env = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SERVICE_NAME": "mine", "NO_PROXY": "*"}
    try:
        subprocess.run([sys.executable, "-c", SENDER], env=env, check=True, timeout=PATIENCE)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    ((path, body),) = got
    assert path == "/v1/traces"
    assert b"commit" in body
    assert b"mine" in body
