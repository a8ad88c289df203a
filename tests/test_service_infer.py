"""``/v2``: the open inference protocol."""

from __future__ import annotations

import json

import numpy as np
import pytest

from service_api import FIELDS, TOKEN, Api, Writer
from streamkm.stores import MemoryStore

ROWS = [[1.0, 0.0, 0.0], [9.0, 9.0, 9.0]]


@pytest.fixture(scope="module")
def api():
    store = MemoryStore()
    writer = Writer(store)
    writer.commit()
    writer.commit(centroids=((0.0, 0.0, 0.0), (20.0, 20.0, 20.0)))
    return Api(store)


def infer(api, data=ROWS, shape=(2, 3), datatype="FP64", version="", model="orders", **more):
    tensor = {"name": "points", "shape": list(shape), "datatype": datatype, "data": data}
    return api.request("POST", f"/v2/models/{model}{version}/infer", json={"inputs": [tensor], **more})


def test_the_server_and_a_model_describe_themselves(api):
    assert api.get("/v2").json()["name"] == "streamkm"
    assert api.get("/v2/health/live").json() == {"live": True}
    assert api.get("/v2/health/ready").json() == {"ready": True}
    told = api.get("/v2/models/orders").json()
    assert (told["name"], told["versions"]) == ("orders", ["2"])
    assert told["inputs"] == [{"name": "points", "datatype": "FP64", "shape": [-1, len(FIELDS)]}]
    assert [o["name"] for o in told["outputs"]] == ["ids", "distances", "scores"]
    assert api.get("/v2/models/orders/versions/1").json()["versions"] == ["1"]
    assert api.get("/v2/models/orders/ready").json() == {"name": "orders", "ready": True}
    assert api.get("/v2/models/orders/versions/1/ready").status_code == 200
    assert api.get("/v2/models/orders/versions/9/ready").status_code == 404


@pytest.mark.parametrize("data", [ROWS, [x for row in ROWS for x in row]], ids=["nested", "flat"])
def test_it_predicts_what_v1_predicts(api, data):
    told = infer(api, data, id="a7").json()
    plain = api.predict(ROWS).json()
    assert (told["model_name"], told["model_version"], told["id"]) == ("orders", "2", "a7")
    for tensor in told["outputs"]:
        assert tensor["shape"] == [2]
        assert tensor["data"] == plain[tensor["name"]]
    assert [t["datatype"] for t in told["outputs"]] == ["INT64", "FP64", "FP64"]


def test_a_version_is_a_snapshot_and_outputs_can_be_chosen(api):
    told = infer(api, version="/versions/1", outputs=[{"name": "distances"}, {"name": "ids"}]).json()
    assert told["model_version"] == "1"
    assert [t["name"] for t in told["outputs"]] == ["distances", "ids"]
    assert told["outputs"][1]["data"] == api.predict(ROWS, snapshot=1).json()["ids"]
    assert "id" not in told
    assert infer(api, [], (0, 3)).json()["outputs"][0]["data"] == []


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"data": [1.0] * 5}, "inputs[0].data"),
        ({"data": ROWS, "shape": (3, 3)}, "inputs[0].data"),
        ({"data": "x"}, "inputs[0].data"),
        ({"shape": (6,)}, "inputs[0].shape"),
        ({"shape": (-2, 3)}, "inputs[0].shape"),
        ({"datatype": "BYTES"}, "inputs[0].datatype"),
        ({"data": [[1, 2], [3, 4]], "shape": (2, 2)}, "points[0]"),
        ({"data": [[1, 2, "3"], [3, 4, 5]]}, "points[0][2]"),
        ({"data": [[1, 2, 3], 4]}, "points[1]"),
        ({"data": [], "shape": (0, 0), "outputs": [{"name": "labels"}]}, "outputs[0]"),
        ({"outputs": "ids"}, "outputs"),
        ({"id": 7}, "id"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [1, 2]}, "inputs"),
    ],
)
def test_what_is_wrong_is_named_in_the_way_of_the_protocol_too(api, change, where):
    answer = infer(api, **change)
    assert answer.status_code == 422, answer.text
    assert answer.json()["where"] == where
    assert answer.json()["error"] == answer.json()["detail"]


def test_errors_of_other_kinds(api):
    assert infer(api, model="none").json()["error"] == "no model is named 'none'"
    assert infer(api, version="/versions/9").status_code == 404
    assert infer(api, version="/versions/x").status_code == 422
    assert api.request("POST", "/v2/models/orders/infer", content=b"{").status_code == 400
    assert "error" not in api.get("/v1/models/none").json()
    store = MemoryStore()
    Writer(store).commit(centroids=None, warmup=(3, 80))
    assert infer(Api(store)).status_code == 409
    assert infer(Api(store, token=TOKEN)).json()["error"] == "this service needs a token"


# Binary tensors


def binary(api, rows, datatype="FP32", head=None, size=None, shape=None, outputs=None, **headers):
    """A request as the client of Triton makes it; gives the answer, and its tensors."""
    array = np.array(rows, KINDS[datatype])
    tensor = {"name": "points", "shape": list(shape or array.shape), "datatype": datatype}
    tensor["parameters"] = {"binary_data_size": array.nbytes if size is None else size}
    asked = {"inputs": [tensor]} | ({"parameters": {"binary_data_output": True}} if outputs is None else outputs)
    text = json.dumps(asked).encode()
    headers = {"Inference-Header-Content-Length": str(len(text) if head is None else head), **headers}
    answer = api.request("POST", "/v2/models/orders/infer", content=text + array.tobytes(), headers=headers)
    if answer.status_code != 200:
        return answer, {}
    at = int(answer.headers.get("inference-header-content-length", len(answer.content)))
    told, behind = json.loads(answer.content[:at]), answer.content[at:]
    tensors = {}
    for tensor in told["outputs"]:
        if "data" in tensor:
            tensors[tensor["name"]] = tensor["data"]
            continue
        size = tensor["parameters"]["binary_data_size"]
        tensors[tensor["name"]] = np.frombuffer(behind[:size], KINDS[tensor["datatype"]]).tolist()
        behind = behind[size:]
    assert behind == b""
    return answer, tensors


KINDS = {"FP64": "<f8", "FP32": "<f4", "FP16": "<f2", "INT64": "<i8", "INT32": "<i4", "UINT8": "<u1"}


@pytest.mark.parametrize("datatype", KINDS)
@pytest.mark.parametrize("kind", [{}, {"Content-Type": "application/octet-stream"}], ids=["no type", "octets"])
def test_tensors_may_be_bytes_both_ways(api, datatype, kind):
    answer, tensors = binary(api, ROWS, datatype, **kind)
    assert answer.headers["content-type"] == "application/octet-stream"
    plain = api.predict(ROWS).json()
    assert tensors == {name: plain[name] for name in ("ids", "distances", "scores")}


def test_outputs_may_be_bytes_or_json_one_by_one(api):
    outputs = [{"name": "ids", "parameters": {"binary_data": True}}, {"name": "scores"}]
    answer, tensors = binary(api, ROWS, outputs={"outputs": outputs})
    plain = api.predict(ROWS).json()
    assert tensors == {"ids": plain["ids"], "scores": plain["scores"]}
    answer, tensors = binary(api, ROWS, outputs={})
    assert answer.headers["content-type"] == "application/json"
    assert tensors["ids"] == plain["ids"]
    assert binary(api, np.empty((0, 3)))[1] == {"ids": [], "distances": [], "scores": []}
    assert "binary_tensor_data" in api.get("/v2").json()["extensions"]


@pytest.mark.parametrize(
    ("asked", "status", "code", "where"),
    [
        ({"rows": ROWS, "size": 23}, 422, "wrong-dimension", "inputs[0]"),
        ({"rows": ROWS, "shape": (2, 4)}, 422, "wrong-dimension", "inputs[0]"),
        ({"rows": ROWS, "shape": (2**62, 4)}, 422, "wrong-dimension", "inputs[0]"),
        ({"rows": [[1.0, 2.0]]}, 422, "wrong-dimension", "points[0]"),
        ({"rows": [[1.0, 2.0, 3.0], [1.0, np.nan, 2.0]]}, 422, "not-finite", "points[1][1]"),
        ({"rows": ROWS, "size": {}}, 422, "wrong-dimension", "inputs[0]"),
        ({"rows": ROWS, "head": 10**9}, 400, "invalid", "Inference-Header-Content-Length"),
        ({"rows": ROWS, "head": "-1"}, 400, "invalid", "Inference-Header-Content-Length"),
        ({"rows": ROWS, "head": 3}, 400, "not-json", "body"),
    ],
)
def test_bytes_that_are_no_tensor_are_refused(api, asked, status, code, where):
    answer, _ = binary(api, **asked)
    told = answer.json()
    assert (answer.status_code, told["code"], told["where"]) == (status, code, where)
    assert told["error"]


def test_what_is_shared_or_classified_is_refused(api):
    answer, _ = binary(api, ROWS, outputs={"outputs": [{"name": "ids", "parameters": {"classification": 2}}]})
    assert (answer.status_code, answer.json()["where"]) == (422, "outputs[0].parameters")
    tensor = {"name": "points", "shape": [1, 3], "datatype": "FP32", "parameters": {"shared_memory_region": "a"}}
    answer = api.request("POST", "/v2/models/orders/infer", json={"inputs": [tensor]})
    assert (answer.status_code, answer.json()["where"]) == (422, "inputs[0].parameters")
