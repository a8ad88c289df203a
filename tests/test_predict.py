"""Standard input and output of ``streamkm predict``, where lines come one by one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import uvicorn

from service_api import Writer
from streamkm.delivery.predictions import BATCH_SIZE, MAX_DELAY, Batches, lines
from streamkm.errors import DataError
from streamkm.http.listening import listen, url_of
from streamkm.service import create_app
from streamkm.stores import MemoryStore
from streamkm.testing import ManualClock

ROOT = Path(__file__).parents[1]
POINT = '{"amount": 1, "lat": 0, "lon": 0}\n'


@pytest.fixture(scope="module")
def service():
    """URL of a service with one model."""
    store = MemoryStore()
    Writer(store).commit()
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(store), log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield url_of(listener)
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def predict(url, *arguments):
    """The command with pipes at both ends."""
    with subprocess.Popen(
        [sys.executable, "-m", "consumers", "predict", "orders", *arguments],
        cwd=ROOT,
        env=os.environ | {"STREAMKM_URL": url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def say(process, text):
    process.stdin.write(text)
    process.stdin.flush()


def test_a_line_in_an_open_pipe_is_answered(service):
    with predict(service) as process:
        for _ in range(2):
            say(process, POINT)
            assert json.loads(process.stdout.readline())["cluster"] == 4
        say(process, POINT + "{\n")
        assert json.loads(process.stdout.readline())["cluster"] == 4  # what stands before a bad line
        assert process.wait() == 6
        assert "line 4: not JSON" in process.stderr.read()


def test_a_row_in_an_open_pipe_is_answered(service):
    with predict(service, "--csv") as process:
        say(process, "lon,amount,lat\n")
        assert process.stdout.readline() == "lon,amount,lat,cluster,distance,score\n"
        say(process, "0,1,0\n")
        assert process.stdout.readline().startswith("0,1,0,4,")
        process.stdin.close()
        assert process.wait() == 0


def test_rows_are_asked_for_when_they_are_many_or_have_waited():
    clock, predicted = ManualClock(), []
    batches = Batches(predicted.append, clock.monotonic)
    for number in range(BATCH_SIZE + 1):
        batches.add(number)
    assert [len(rows) for rows in predicted] == [BATCH_SIZE]
    clock.advance(0.9 * MAX_DELAY)
    batches.add(-1)
    assert len(predicted) == 1
    assert batches.remaining() == pytest.approx(0.1 * MAX_DELAY)
    clock.advance(0.2 * MAX_DELAY)
    batches.add(-2)
    assert predicted[1:] == [[BATCH_SIZE, -1, -2]]
    assert batches.remaining() == float("inf")
    batches.flush()
    assert len(predicted) == 2


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", []),
        (b"\xef\xbb\xbfa\nb\r\n\nc", ["a\n", "b\r\n", "\n", "c"]),
        ("ä€\n".encode(), ["ä€\n"]),
    ],
)
def test_lines_are_those_of_the_bytes(data, told):
    assert list(lines(io.BytesIO(data), Batches(lambda _: None))) == told


@pytest.mark.parametrize(
    ("data", "says"), [(b"a\n\xff\n", "line 2: not UTF-8"), (b"a" * (2**24 + 2**16), "line 1: it is")]
)
def test_a_line_that_is_no_text_is_named(data, says):
    with pytest.raises(DataError, match=says):
        list(lines(io.BytesIO(data), Batches(lambda _: None)))
