"""The description of the API: complete, with examples that hold."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import pytest
from fastapi import FastAPI

from service_api import TOKEN, Api, Writer
from streamkm.http.responses import MEDIA_TYPE
from streamkm.service import create_app
from streamkm.service.problems import Code
from streamkm.service.schemas import control, live
from streamkm.service.schemas import models as schemas
from streamkm.stores import MemoryStore

JSON = "application/json"
ACTING = {
    ("get", "/v1/me"),
    ("post", "/v1/models/{model}/promote"),
    ("post", "/v1/models/{model}/pause"),
    ("post", "/v1/models/{model}/resume"),
    ("delete", "/v1/models/{model}"),
    ("post", "/v1/models/{model}/jobs"),
    ("get", "/v1/models/{model}/jobs"),
    ("get", "/v1/models/{model}/jobs/{job_id}"),
    ("delete", "/v1/models/{model}/jobs/{job_id}"),
}
"""Their answers are held against the description in test_service_control.py."""
STREAMS = {("get", f"/v1/models/{{model}}/{rest}") for rest in ("stream", "events/stream")}
"""They have no end; test_service_stream.py listens to them."""
DIFF = ("get", "/v1/models/{model}/diff")
"""It wants a model that has learned, as test_service_reading.py has one."""
ROUTES = {
    *ACTING,
    *STREAMS,
    DIFF,
    *(("get", f"/v1/models/{{model}}/{rest}") for rest in ("history", "lineage", "k", "sample", "quarantine")),
    ("get", "/v1/models"),
    ("get", "/v1/models/{model}"),
    ("get", "/v1/models/{model}/centroids"),
    ("get", "/v1/models/{model}/events"),
    ("get", "/v1/models/{model}/snapshots"),
    ("get", "/v1/models/{model}/snapshots/{snapshot_id}"),
    ("post", "/v1/models/{model}/predict"),
    ("get", "/livez"),
    ("get", "/readyz"),
    ("get", "/metrics"),
    ("get", "/v2"),
    ("get", "/v2/health/live"),
    ("get", "/v2/health/ready"),
    *(
        ("get", f"/v2/models/{{model}}{rest}")
        for rest in ("", "/ready", "/versions/{version}", "/versions/{version}/ready")
    ),
    *(("post", f"/v2/models/{{model}}{rest}/infer") for rest in ("", "/versions/{version}")),
}


@pytest.fixture(scope="module")
def description():
    return Api(MemoryStore()).get("/openapi.json").json()


def operations(description):
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def resolved(description, schema):
    """The schema with the components it refers to beside it."""
    return {**schema, "components": description["components"]}


def examples(description, content):
    """Examples of a media type, or of the schema that it refers to."""
    if "example" in content:
        return [content["example"]]
    if "examples" in content:
        return [e["value"] for e in content["examples"].values()]
    schema = content["schema"]
    if "$ref" in schema:
        schema = description["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    return schema.get("examples", [])


def test_every_route_is_described(description):
    assert {(method, path) for method, path, _ in operations(description)} == ROUTES


def test_every_route_has_a_summary_an_example_and_documented_errors(description):
    for method, path, operation in operations(description):
        assert operation["summary"], path
        assert operation["description"], path
        (success,) = (r for s, r in operation["responses"].items() if s.startswith("2"))
        for content in success.get("content", {}).values():
            if content["schema"].get("format") == "binary":
                continue  # which no JSON can show
            assert examples(description, content), (method, path)
        errors = {s: r for s, r in operation["responses"].items() if int(s) >= 400}
        assert errors, (method, path)
        for response in errors.values():
            assert set(response["content"]) == {MEDIA_TYPE}


def test_every_example_is_what_its_schema_says(description):
    for _, _, operation in operations(description):
        answers = [r.get("content", {}) for r in operation["responses"].values()]
        bodies = [operation["requestBody"]["content"]] if "requestBody" in operation else []
        for contents in answers + bodies:
            for content in contents.values():
                for example in examples(description, content):
                    jsonschema.validate(example, resolved(description, content["schema"]))
    for schema in description["components"]["schemas"].values():
        for example in schema.get("examples", []):
            jsonschema.validate(example, resolved(description, schema))


def test_every_parameter_says_what_it_is(description):
    for _, path, operation in operations(description):
        for parameter in operation.get("parameters", []):
            assert parameter.get("description"), (path, parameter["name"])


def test_every_answer_is_what_its_schema_says(description):
    store = MemoryStore()
    writer = Writer(store)
    writer.commit(bad=1)
    writer.commit()
    api = Api(store)
    for method, path, operation in operations(description):
        if (method, path) in ACTING | STREAMS | {DIFF}:
            continue
        url = path.format(model="orders", snapshot_id=1, version=1)
        bodies = [None] if method == "get" else examples(description, operation["requestBody"]["content"][JSON])
        answer = api.request(method.upper(), url, json=bodies[0])
        assert answer.status_code == 200, url
        kinds = operation["responses"]["200"]["content"]
        kind = answer.headers["Content-Type"].partition(";")[0]
        value = answer.json() if kind == JSON else answer.text
        jsonschema.validate(value, resolved(description, kinds[kind]["schema"]))


def test_first_requests_that_come_together_generate_the_description_once(description, monkeypatch):
    generate, generating, second = FastAPI.openapi, [], threading.Event()

    def generate_slowly(app):
        generating.append(app)
        if len(generating) > 1:
            second.set()
        second.wait(0.2)  # what a second thread needs to get here, unless it is kept out
        return generate(app)

    monkeypatch.setattr(FastAPI, "openapi", generate_slowly)
    app = create_app(MemoryStore())
    with ThreadPoolExecutor(3) as pool:
        described = [f.result() for f in [pool.submit(app.openapi) for _ in range(3)]]
    assert len(generating) == 1
    assert described == [description] * 3


def test_errors_have_the_described_shape(description):
    schema = resolved(description, {"$ref": "#/components/schemas/Problem"})
    api = Api(MemoryStore())
    for url in ("/nothing", "/v1/models/x", "/v1/models?x=1", "/v2/models/x"):
        jsonschema.validate(api.get(url).json(), schema)
    assert set(schema["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]) == set(Code.__args__)


def test_a_service_with_a_token_says_that_it_needs_one(description):
    assert "security" not in description
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with_token = Api(MemoryStore(), token=TOKEN).get("/openapi.json", headers=headers).json()
    assert with_token["security"] == [{"token": []}]
    for path in ("/livez", "/readyz"):
        assert with_token["paths"][path]["get"]["security"] == []


def test_no_page_loads_anything_from_elsewhere(description):
    # What /docs loads is in test_page; the framework's own pages, which load from elsewhere, are not there.
    assert Api(MemoryStore()).get("/redoc").status_code == 404
    assert not any(scheme in json.dumps(description) for scheme in ("http:", "https:"))


@pytest.mark.parametrize("module", [schemas, control, live])
def test_examples_of_the_answers_are_answers(module):
    for cls in vars(module).values():
        if isinstance(cls, type) and issubclass(cls, schemas.BaseModel) and cls is not schemas.BaseModel:
            for example in (cls.model_config.get("json_schema_extra") or {}).get("examples", []):
                cls.model_validate(example)
