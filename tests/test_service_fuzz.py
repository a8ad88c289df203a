"""What the description of the API allows, and what it does not, is asked: no answer may be one it does not tell of."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service_api import FIELDS, NOW, P0, Writer
from streamkm import OnlineKMeans
from streamkm.records import BadRecord, RawRecord
from streamkm.service import ServiceOptions, create_app
from streamkm.service.request_body import ARROW
from streamkm.state import ModelEvent, Recent
from streamkm.stores import MemoryStore
from test_service_reading import PROFILE, commit_with

TOKEN = "of a test"  # noqa: S105 - made up
EXAMPLES = 25
"""Requests of each kind to each operation."""
ENDLESS = r".*/stream$"
load_all_checks()


@schemathesis.serializer(ARROW)
def as_arrow(_, value):
    """Points as a stream, with what was made up behind it or instead of it."""
    made_up = value if isinstance(value, bytes) else repr(value).encode()
    columns = [pa.array([float(len(made_up))])] * 3
    batch = pa.RecordBatch.from_arrays(columns, names=list(FIELDS))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return made_up if len(made_up) % 3 == 1 else sink.getvalue().to_pybytes() + made_up


class Lasting(MemoryStore):
    """A store from which the model does not go away, so that what comes after a deletion is not 404 all the time."""

    def delete(self, name):
        self.model(name)


def application():
    store = Lasting()
    writer = Writer(store)
    learner = OnlineKMeans(n_clusters=2, seed=0)
    learner.learn_many(np.random.default_rng(0).normal(size=(500, 3)))
    writer.commit(detail={"k": PROFILE}, events=(ModelEvent("birth", (), (4,)),))
    bad = BadRecord(RawRecord(P0, 3, 5, b"\xff", b"{"), "not-json", "", "no JSON")
    commit_with(writer, state=learner.state(), recent=Recent(np.eye(3)), quarantine=(bad,))
    return create_app(store, token=TOKEN, options=ServiceOptions(rate_limit=0), clock=lambda: NOW)


class Lifeless:
    """The application without its beginning and end, which each call of the tool's client would bring."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        for what in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{what}.complete"})


schema = schemathesis.openapi.from_asgi(
    "/openapi.json", Lifeless(application()), headers={"Authorization": f"Bearer {TOKEN}"}
).exclude(path_regex=ENDLESS)


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_response_is_in_the_description(case):
    if "model" in case.path_parameters and hash_of(case) % 3:
        case.path_parameters["model"] = "orders"  # or nearly all that is asked is not there
    answer = case.call(headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code < 500 or answer.json()["code"] != "internal", answer.text
    assert answer.status_code not in {500, 502}, answer.text
    case.validate_response(
        answer, checks=[content_type_conformance, response_schema_conformance, status_code_conformance]
    )


def hash_of(case):
    """The same number for the same request in every process."""
    return sum(repr((case.path_parameters, case.query, case.body)).encode())


def test_all_but_the_endless_streams_are_asked():
    asked = {(o.ok().method, o.ok().path) for o in schema.get_all_operations()}
    described = {(m, p) for p, methods in application().openapi()["paths"].items() for m in methods}
    assert described - asked == {("get", p) for _, p in described if p.endswith("/stream")}
