"""Jobs: a child process, its state in the store, and every way it can end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service_api import NOW, TOKEN, Api, Writer
from streamkm.errors import SettingsError, StoreUnavailableError
from streamkm.service import job_runner as module
from streamkm.service.job_command import child_environment, replay_command
from streamkm.service.job_runner import LOST, MAX_QUEUED, JobRunner, job_json, with_lost_state
from streamkm.service.problems import Problem
from streamkm.settings import ServeSettings, load
from streamkm.stores import Job, MemoryStore, open_store
from streamkm.values import Size
from waiting import PATIENCE, eventually

ASKED = {"from": "2h", "to": "now", "k": 3, "init": "random", "n_init": 2, "max_iter": 7}
SAYS = """import json, os, signal, sys, time
def say(**x): print(json.dumps(x), file=sys.stderr, flush=True)
def wait_for(path):
    while not os.path.exists(path): time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Notes are made often, so that no test has to wait for one."""
    assert module.HEARTBEAT_SECONDS <= 2.0 < module.QUEUED_HEARTBEAT_SECONDS < module.LOST_AFTER_SECONDS, (
        "it is seen to live"
    )
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(module, "QUEUED_HEARTBEAT_SECONDS", 0.02)


@pytest.fixture(params=["memory", "sqlite"])
def store(request):
    opened = open_store("memory://" if request.param == "memory" else request.getfixturevalue("sqlite_url"))
    Writer(opened).commit()
    yield opened
    opened.close()


def script(body):
    return lambda model, asked: [sys.executable, "-c", SAYS + body, model, json.dumps(asked)]


async def until(store, job, condition):
    await eventually(lambda: condition(store.job(job.model, job.id)))
    return store.job(job.model, job.id)


def ended(job):
    return job.state not in {"queued", "running"}


@contextlib.asynccontextmanager
async def running(store, body, **kwargs):
    made = JobRunner(
        store, script(body) if isinstance(body, str) else body, kwargs.pop("environment", os.environ), **kwargs
    )
    try:
        yield made
    finally:
        await made.close()


def test_a_job_reports_progress_and_ends_with_its_snapshot(store, tmp_path):
    async def go():
        seen_it = tmp_path / "seen"
        body = (
            f'say(stage="starting")\nsay(stage="reading", done=10, total=100)\nwait_for({str(seen_it)!r})\n'
            'say(stage="fitting", run=0, iteration=3, inertia=1.5, moved=9, done=100, total=100)\n'
            'say(level="info", message="a line of the log")\nsay(snapshot=7)'
        )
        async with running(store, body) as jobs:
            job = await jobs.submit("orders", ASKED)
            assert (job.state, job.options) == ("queued", ASKED)
            found = await until(store, job, lambda j: j.progress.get("stage") == "reading")
            assert (found.state, found.progress) == ("running", {"stage": "reading", "done": 10, "total": 100})
            seen_it.touch()
            return await until(store, job, ended)

    job = asyncio.run(go())
    assert (job.state, job.snapshot, job.error) == ("done", 7, "")
    assert job.progress["iteration"] == 3
    shown = job_json(job)
    assert (shown["snapshot"], shown["progress"]["inertia"]) == (7, 1.5)


def test_the_child_gets_what_is_asked_and_the_environment_and_nothing_to_read(store):
    async def go():
        body = (
            "given = json.loads(sys.argv[2])\n"
            'assert given["from"] == "2h" and sys.argv[1] == "orders"\n'
            'assert os.environ["STREAMKM_STORE"] == "postgresql://u:s3cret@h/d" and "HOME_" not in os.environ\n'
            "assert sys.stdin.read() == ''\n"
            "assert os.getpriority(os.PRIO_PROCESS, 0) >= 10\n"
            "say(snapshot=1)"
        )
        environment = {**os.environ, "STREAMKM_STORE": "postgresql://u:s3cret@h/d"}
        async with running(store, body, environment=environment) as jobs:
            return await until(store, await jobs.submit("orders", ASKED), ended)

    job = asyncio.run(go())
    assert (job.state, job.error) == ("done", "")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (
            "print('error: t: the topic is gone\\n  what to do: look', file=sys.stderr)\nsys.exit(3)",
            "t: the topic is gone what to do: look",
        ),
        ("sys.exit(3)", "it exited with status 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "it was ended by signal 9"),
        ("raise ValueError('no')", "it exited with status 1: ValueError: no"),
        ("sys.exit(0)", "it exited with status 0"),  # without a snapshot nothing came of it
        ("print('x' * 5_000_000, file=sys.stderr)\nsys.exit(4)", "it exited with status 4"),
        (
            "print('[' * 1000, file=sys.stderr)\nprint('{\"stage\": \"nonsense\"}', file=sys.stderr)\nsys.exit(5)",
            "it exited with status 5",
        ),
    ],
)
def test_a_job_that_fails_says_why(body, error):
    store = MemoryStore()
    Writer(store).commit()

    async def go():
        async with running(store, body) as jobs:
            return await until(store, await jobs.submit("orders", ASKED), ended)

    job = asyncio.run(go())
    assert job.state == "failed"
    assert job.error.startswith(error)
    assert len(job.error) <= module.MAX_ERROR_CHARS


def test_what_cannot_be_started_fails():
    store = MemoryStore()
    Writer(store).commit()

    def refuse(model, asked):
        raise SettingsError("no broker", where="--bootstrap")

    async def go(command):
        async with running(store, command) as jobs:
            return await until(store, await jobs.submit("orders", ASKED), ended)

    job = asyncio.run(go(refuse))
    assert (job.state, job.error) == ("failed", "--bootstrap: no broker")
    job = asyncio.run(go(lambda *_: ["/nothing/here"]))
    assert (job.state, job.error) == ("failed", "the program could not be started (No such file or directory)")


def test_one_runs_at_a_time_and_the_others_wait_in_order(store, tmp_path):
    async def go():
        body = (
            f"f = open({str(tmp_path / 'order')!r}, 'a')\n"
            "f.write('<' + json.loads(sys.argv[2])['n']); f.flush(); time.sleep(0.3); f.write('>'); f.close()\n"
            "say(snapshot=1)"
        )
        async with running(store, body) as jobs:
            made = [await jobs.submit("orders", {"n": n}) for n in "abc"]
            for job in made:
                await until(store, job, ended)

    asyncio.run(go())
    assert (tmp_path / "order").read_text() == "<a><b><c>"


def test_too_many_are_refused():
    store = MemoryStore()
    Writer(store).commit()

    async def go():
        async with running(store, "time.sleep(60)") as jobs:
            for _ in range(21):  # one runs
                await jobs.submit("orders", {})
            with pytest.raises(Problem) as e:
                await jobs.submit("orders", {})
            assert (e.value.status, e.value.code) == (429, "too-many")
        assert {j.state for j in store.jobs("orders")} == {"cancelled"}

    asyncio.run(go())


def test_a_running_job_is_cancelled_by_sigterm_and_a_stubborn_one_by_sigkill(store, monkeypatch, tmp_path):
    async def go(body, patience):
        monkeypatch.setattr(module, "KILL_AFTER_SECONDS", patience)
        async with running(store, body + '\nsay(stage="reading", done=1, total=2)\ntime.sleep(1e6)') as jobs:
            job = await jobs.submit("orders", ASKED)
            found = await until(store, job, lambda j: j.progress.get("done") == 1)
            await jobs.cancel(found)
            return await until(store, job, ended)

    job = asyncio.run(go("", 1e6))  # it goes by itself: nobody would kill it
    assert (job.state, job.error) == ("cancelled", "cancelled on request")
    asked = tmp_path / "asked"
    stubborn = f"signal.signal(signal.SIGTERM, lambda *_: open({str(asked)!r}, 'w').close())\n"
    stubborn += "time.sleep = lambda _, sleep=time.sleep: [sleep(1) for _ in range(10**6)]"
    job = asyncio.run(go(stubborn, 0.5))
    assert job.state == "cancelled"
    assert asked.exists(), "it was asked before"


def test_a_waiting_job_is_cancelled_without_ever_running(store, tmp_path):
    async def go():
        body = f"open({str(tmp_path / 'ran')!r}, 'a').write(sys.argv[2])\ntime.sleep(60)"
        async with running(store, body) as jobs:
            await jobs.submit("orders", {"n": "first"})
            waiting = await jobs.submit("orders", {"n": "second"})
            ended_ = await jobs.cancel(waiting)
            assert ended_.state == store.job("orders", waiting.id).state == "cancelled"
            await eventually((tmp_path / "ran").exists)

    asyncio.run(go())
    assert "second" not in (tmp_path / "ran").read_text()


def test_another_service_can_cancel_a_job(store):
    async def go():
        async with running(store, "time.sleep(60)") as one, running(store, "") as other:
            job = await one.submit("orders", ASKED)
            found = await until(store, job, lambda j: j.state == "running")
            await other.cancel(found)
            await eventually(lambda: not one._jobs)
            return store.job("orders", job.id)

    assert asyncio.run(asyncio.wait_for(go(), PATIENCE)).state == "cancelled"


def test_jobs_are_updated_and_lost_ones_have_failed(store):
    async def go():
        async with running(store, "time.sleep(60)") as jobs:
            job = await jobs.submit("orders", ASKED)
            found = await until(store, job, lambda j: j.state == "running")
            for _ in range(2):
                before = found.updated_at
                found = await until(store, job, lambda j, b=before: j.updated_at > b)

    asyncio.run(go())
    lost = Job("a", "orders", {}, "running", {}, 0, "", NOW, NOW)
    assert with_lost_state(lost, NOW + 30) is lost
    assert (with_lost_state(lost, NOW + 31).state, with_lost_state(lost, NOW + 31).error) == ("failed", LOST)
    finished = dataclasses.replace(lost, state="done")
    assert with_lost_state(finished, NOW + 1e9) is finished


def test_a_stopping_service_cancels_its_jobs_with_a_reason(store):
    async def go():
        async with running(store, 'say(stage="reading", done=os.getpid())\ntime.sleep(60)') as jobs:
            first = await jobs.submit("orders", ASKED)
            second = await jobs.submit("orders", ASKED)
            found = await until(store, first, lambda j: j.progress.get("done"))
        return found.progress["done"], store.job("orders", first.id), store.job("orders", second.id)

    child, *both = asyncio.run(go())
    assert [(j.state, j.error) for j in both] == [("cancelled", "the service stopped")] * 2
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_store_that_is_away_ends_no_job(tmp_path):
    class Shaky(MemoryStore):
        away, refused = False, 0

        def put_job(self, job):
            if self.away:
                self.refused += 1
                raise StoreUnavailableError("away")
            super().put_job(job)

    store = Shaky()
    Writer(store).commit()

    async def go():
        back = tmp_path / "back"
        async with running(store, f"wait_for({str(back)!r})\nsay(snapshot=4)") as jobs:
            job = await jobs.submit("orders", ASKED)
            await until(store, job, lambda j: j.state == "running")
            store.away = True
            await eventually(lambda: store.refused > 3)
            store.away = False
            back.touch()
            return await until(store, job, ended)

    assert asyncio.run(go()).snapshot == 4


def test_a_service_that_stops_while_the_store_is_away_does_not_wait_for_each_job():
    class Away(MemoryStore):
        away, refused = False, 0

        def put_job(self, job):
            if self.away:
                self.refused += 1
                raise StoreUnavailableError("away")
            super().put_job(job)

    store = Away()
    Writer(store).commit()

    async def go():
        jobs = JobRunner(store, script("time.sleep(60)"), os.environ)
        for _ in range(MAX_QUEUED):
            await jobs.submit("orders", {})
        store.away = True
        await jobs.close()

    asyncio.run(go())
    assert store.refused <= 5 < MAX_QUEUED, "each of which may take as long as a busy store is waited for"


def test_a_replay_writes_at_most_two_lines_per_second(capsys, monkeypatch):
    from consumers import replay

    now = [100.0]
    monkeypatch.setattr(replay.time, "monotonic", lambda: now[0])
    lines = replay.JsonProgress()
    for i in range(100):
        lines.read(i, 100)
        now[0] += 0.01
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [t["stage"] for t in told] == ["starting", "reading", "reading"]
    assert told[-1] == {
        "stage": "reading", "done": 50, "total": 100, "run": None, "iteration": None, "inertia": None, "moved": None,
    }  # fmt: skip


def test_a_replay_ends_when_its_progress_is_not_read(tmp_path):
    body = "from consumers.replay import JsonProgress\nimport time\nlines = JsonProgress()\n"
    body += "for i in range(100):\n lines.read(i, 100)\n time.sleep(0.1)\n"
    child = subprocess.Popen([sys.executable, "-c", body], stderr=subprocess.PIPE)
    assert child.stderr is not None
    assert child.stderr.readline()
    child.stderr.close()  # as when the service is killed
    assert child.wait(PATIENCE) != 0


# What serve gives the child


ROOT = Path(__file__).resolve().parents[1]


def settings(**given):
    return load(ServeSettings, given, env={})


def test_secrets_reach_the_child_by_its_environment_and_no_others_do():
    s = settings(
        store="postgresql://u:hunter2@h/d", kafka_property="sasl.password=hunter3,a=b", token=TOKEN, memory="1GB"
    )
    command = replay_command(s)("orders", ASKED)
    assert command[1:] == [
        "-P", "-m", "consumers", "replay", "--progress-json", "--from=2h", "--to=now", "--k=3", "--init=random",
        "--n-init=2", "--max-iter=7", "--", "orders",
    ]  # fmt: skip
    around = {
        "PATH": "/bin", "LC_ALL": "C", "PGPASSWORD": "p", "PGPASSFILE": "pass", "STREAMKM_TOKEN": TOKEN,
        "STREAMKM_TOKEN_FILE": "/t", "STREAMKM_STORE_FILE": "/x", "STREAMKM_K": "9", "STREAMKM_CONFIG": "c.toml",
        "STREAMKM_CACHE": "/c", "STREAMKM_WEBHOOK_SECRET": "w", "AWS_SECRET_ACCESS_KEY": "a", "GITHUB_TOKEN": "g",
        "PYTHONPATH": os.pathsep.join(("", "lib", "/lib")), "PYTHONSTARTUP": "x.py", "LD_PRELOAD": "x.so",
    }  # fmt: skip
    environment = child_environment(s, around)
    assert environment == {
        "PATH": "/bin",
        "LC_ALL": "C",
        "PGPASSWORD": "p",
        "PGPASSFILE": str(Path.cwd() / "pass"),
        "STREAMKM_CACHE": "/c",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(Path.cwd() / "lib"), "/lib")),
        "PYTHONSAFEPATH": "1",
        "STREAMKM_STORE": "postgresql://u:hunter2@h/d",
        "STREAMKM_BOOTSTRAP": "localhost:9092",
        "STREAMKM_KAFKA_PROPERTY": "sasl.password=hunter3,a=b",
        "STREAMKM_MEMORY": "1000000000",
        "STREAMKM_THREADS": "0",
    }
    from streamkm.settings import ReplaySettings

    taken = load(ReplaySettings, {}, env=environment)
    assert (taken.store, taken.kafka_property, taken.memory, taken.k) == (s.store, s.kafka_property, Size("1GB"), None)


@pytest.mark.parametrize(
    ("given", "name", "kept"),
    [
        ({}, "PGPASSWORD", False),
        ({"store": "postgresql://h/d"}, "PGPASSWORD", True),
        ({}, "AWS_SECRET_ACCESS_KEY", False),
        ({"kafka_property": "sasl_mechanism=AWS_MSK_IAM"}, "AWS_SECRET_ACCESS_KEY", True),
    ],
)
def test_a_job_gets_the_credentials_of_the_store_and_broker_that_it_uses(given, name, kept):
    assert (name in child_environment(settings(**given), {name: "x"})) is kept


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("store", "sqlite:///a.db", "sqlite:///{here}/a.db"),
        ("store", "sqlite:////var/a.db", "sqlite:////var/a.db"),
        ("store", "postgresql://u:a%40b@h/d?sslmode=require", "postgresql://u:a%40b@h/d?sslmode=require"),
        ("store", "postgresql://u:p%2Fw@h/d?sslrootcert=ca.pem", "postgresql://u:p%2Fw@h/d?sslrootcert={ca}"),
        ("kafka_property", "ssl.ca.location=ca.pem,a=b", "ssl.ca.location={here}/ca.pem,a=b"),
        ("kafka_property", "ssl_keyfile=/k.pem", "ssl_keyfile=/k.pem"),
    ],
)
def test_a_path_that_is_relative_to_the_folder_of_the_service_holds_in_that_of_a_job(name, given, expected):
    from urllib.parse import quote

    environment = child_environment(settings(**{name: given}), {})
    ca = quote(str(Path.cwd() / "ca.pem"), safe="")
    assert environment[f"STREAMKM_{name.upper()}"] == expected.format(here=Path.cwd(), ca=ca)


def test_a_job_runs_no_code_that_lies_in_the_folder_of_the_service(store, tmp_path, monkeypatch):
    """Packages of our names there, and of one that we import, say so if they are run."""
    loud = "import sys\nprint('RUN FROM HERE', file=sys.stderr)\nraise SystemExit(9)\n"
    for name in ("consumers", "streamkm", "numba", "sitecustomize"):
        (tmp_path / name).mkdir()
        for file in ("__init__.py", "__main__.py"):
            (tmp_path / name / file).write_text(loud)
    monkeypatch.chdir(tmp_path)
    s = settings(store=f"sqlite:///{tmp_path / 'empty.db'}")
    open_store(s.store).close()

    async def go():
        environment = child_environment(s, dict(os.environ))
        async with running(store, replay_command(s), environment=environment) as jobs:
            return await until(store, await jobs.submit("orders", ASKED), ended)

    job = asyncio.run(go())
    assert job.state == "failed"
    assert "no model is named" in job.error  # said by our own code, about the empty store


def test_without_a_broker_a_job_names_what_is_missing():
    with pytest.raises(SettingsError, match="has no broker"):
        replay_command(settings(bootstrap=" "))("orders", ASKED)
    with pytest.raises(SettingsError, match="has a comma"):
        replay_command(dataclasses.replace(settings(), kafka_property=("a=b,c",)))("orders", ASKED)


def test_a_model_that_looks_like_an_option_is_none():
    command = replay_command(settings())("--help", {"from": "now", "k": None})
    assert command[-3:] == ["--from=now", "--", "--help"]


def test_a_job_over_http_is_taken_shown_and_cancelled(store):
    async def go():
        import httpx

        jobs = JobRunner(
            store, script('say(stage="reading", done=1, total=2)\ntime.sleep(60)'), os.environ, clock=lambda: NOW
        )
        app = Api(store, token=TOKEN, jobs=jobs).app
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", trust_env=False, headers=headers
        ) as client:
            taken = await client.post("/v1/models/orders/jobs", json={"from": "2h", "k": 3})
            assert taken.status_code == 202
            url = taken.headers["Location"]
            assert url == f"/v1/models/orders/jobs/{taken.json()['id']}"
            assert taken.json()["options"] == {
                "from": "2h", "to": "now", "k": 3, "init": "k-means++", "n_init": 1, "max_iter": 300,
            }  # fmt: skip
            job = Job(taken.json()["id"], "orders", {}, "queued", {}, 0, "", NOW, NOW)
            await until(store, job, lambda j: j.progress.get("done") == 1)
            assert (await client.get(url)).json()["state"] == "running"
            assert (await client.delete(url)).status_code == 202
            await until(store, job, ended)
            assert (await client.get(url)).json()["state"] == "cancelled"
            assert (await client.delete(url)).json()["code"] == "ended"
            assert (await client.post("/v1/models/nothing/jobs", json={})).status_code == 404
            listed = (await client.get("/v1/models/orders/jobs")).json()["jobs"]
            assert [j["id"] for j in listed] == [taken.json()["id"]]
        await jobs.close()

    asyncio.run(asyncio.wait_for(go(), PATIENCE))
