"""Real bytes, mutated, for decoders; each campaign in a process that may die, hang or run out of memory.

A test starts a process that imports the campaigns once, and then forks a child for each one that it is asked for. So a
child costs little, whatever kills it is seen by its parent, and the input that did it lies in a file.
"""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import gc
import importlib
import io
import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import crc32c
import numpy as np
import polars as pl
import safetensors.numpy
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from kafka.record.legacy_records import LegacyRecordBatchBuilder
from numpy.typing import NDArray

import store_checks as facts
from streamkm import OnlineKMeans
from streamkm.errors import StreamkmError
from streamkm.models.exact.lloyd import Iteration, LloydResult
from streamkm.models.exact.runs import FitCheckpoint
from streamkm.recompute import checkpoint
from streamkm.recompute.pointfile import PointFile
from streamkm.records import BatchRange, TopicPartition
from streamkm.state import EventTimeLimit, JournalEntry
from streamkm.stores import journal
from test_sources_batches import batch_of

SECONDS = 120
"""For one input; a healthy one takes milliseconds, on a busy machine too."""
GROWN_BYTES = 256 << 20
"""Of memory that a child may really take beyond what it took for all real inputs."""
LONGEST = 1 << 16
"""Bytes of a mutated input, about."""

NUMBERS = [
    n.to_bytes(size, order, signed=True)
    for size in (2, 4, 8)
    for order in ("little", "big")
    for n in (-(1 << 8 * size - 1), (1 << 8 * size - 1) - 1, 1 << 8 * size - 3, -1, -12, 0, 1)
]
TOKENS = [
    b"", b"-", b"1e999", b"-1", b"NaN", b"Infinity", b"null", b"true", b"9" * 20, b"9" * 400, b"9" * 5000, b"0.1", b'"',
    b"{}", b"[]", b"[", b"}", b",", b":", b"\n", b"\r", b"\\", b"\\ud800", b"\\u0000", b"\xff", b"\xed\xa0\x80", b"\0",
    b"\xef\xbb\xbf", b" ", b"'", b"2023-11-14T22:13:20Z", b"\xff" * 9 + b"\1", b"\xfe\xff\xff\xff\x0f", b"x", b".",
]  # fmt: skip
ODD = [None, True, -1, 0, 1, 2.5, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, math.nan, math.inf, "", "x", "\ud800",
       [], {}, [[]]]  # fmt: skip


class Family(NamedTuple):
    """Real inputs that are mutated alike, and what is done to one afterwards so that it gets past checksums.

    Those that are JSON are changed as such too: a value or a name for another, not only a byte.
    """

    seeds: Sequence[bytes]
    dress: Callable[[bytes], bytes] = bytes
    json: bool = False

    def inputs(self) -> st.SearchStrategy[bytes]:
        """Mutated and dressed."""
        changed = mutated(self.seeds) | reshaped(self.seeds) if self.json else mutated(self.seeds)
        return changed.map(self.dress)


@dataclass(frozen=True)
class Campaign:
    """A decoder under fire.

    Attributes
    ----------
    families
        Where its inputs come from.
    decode
        Decodes, checks what came of it, and says whether that was the input or a refusal.
    refusals
        Errors that are a refusal too; any other one is a fault.
    known
        Inputs that were faults once.
    examples
        How many inputs are tried when nobody asks for more.
    spare
        Bytes of address space that a child may ask for beyond what it has once all real inputs were decoded.
    """

    families: Sequence[Family]
    decode: Callable[[bytes], bool]
    refusals: tuple[type[StreamkmError], ...] = ()
    known: Sequence[bytes] = ()
    examples: int = 250
    spare: int = 1 << 30


# Mutations


def _place(draw: st.DrawFn, n: int) -> int:
    """A place in `n` bytes: headers and trailers as often as all the rest."""
    return draw(st.integers(0, min(n, 64)) | st.integers(max(0, n - 64), n) | st.integers(0, n))


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """A real input, changed in one to three places."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        at = _place(draw, len(data))
        head, tail = data[:at], data[at:]
        match draw(st.sampled_from(("flip", "set", "cut", "delete", "repeat", "splice", "number", "token", "nest"))):
            case "flip" if tail:
                data = head + bytes([tail[0] ^ 1 << draw(st.integers(0, 7))]) + tail[1:]
            case "set":
                data = head + draw(st.sampled_from((b"\0", b"\x7f", b"\x80", b"\xff"))) + tail[1:]
            case "cut":
                data = head
            case "delete":
                data = head + tail[draw(st.integers(1, 40)) :]
            case "repeat" if tail:
                part = tail[: draw(st.integers(1, 40))]
                times = draw(st.sampled_from((1, 2, 3, 1000)))
                data = head + part * min(times, LONGEST // len(part)) + tail
            case "splice":
                other = draw(st.sampled_from(seeds))
                data = head + other[_place(draw, len(other)) :]
            case "number":
                number = draw(st.sampled_from(NUMBERS))
                data = head + number + tail[len(number) :]
            case "token":
                data = head + draw(st.sampled_from(TOKENS)) + tail[draw(st.sampled_from((0, 1, 2, 5))) :]
            case "nest":
                inner, depth = draw(st.integers(0, 20)), draw(st.sampled_from((1, 31, 33, 500, 1000, 3000)))
                data = head + b"[" * depth + tail[:inner] + b"]" * depth + tail[inner:]
        data = data[: 2 * LONGEST]
    return data


@st.composite
def reshaped(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """A JSON value of which one to three parts are replaced, removed or put elsewhere."""
    root = [json.loads(draw(st.sampled_from(seeds)))]
    for _ in range(draw(st.integers(1, 3))):
        slots = list(_slots(root))
        (holder, key), (other, at) = (slots[draw(st.integers(0, len(slots) - 1))] for _ in range(2))
        match draw(st.sampled_from(("odd", "move", "remove"))):
            case "odd":
                holder[key] = copy.copy(ODD[draw(st.integers(0, len(ODD) - 1))])
            case "move":
                holder[key] = copy.deepcopy(other[at])
            case "remove" if holder is not root:
                del holder[key]
    return json.dumps(root[0]).encode()


def _slots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where the parts of a JSON value are."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _slots(value[key])


# Real bytes


CODECS: dict[int, Callable[[bytes], bytes]] = {1: gzip_encode, 2: snappy_encode, 3: lz4_encode, 4: zstd_encode}


def checked(log: bytes) -> bytes:
    """Kafka's batches with their checksums made right."""
    out, at = bytearray(log), 0
    while at + 17 < len(log):
        end = at + 12 + int.from_bytes(out[at + 8 : at + 12], "big", signed=True)
        if not at + 17 < end <= len(log):
            break
        if out[at + 16] >= 2:
            out[at + 17 : at + 21] = crc32c.crc32c(bytes(out[at + 21 : end])).to_bytes(4, "big")
        else:
            out[at + 12 : at + 16] = zlib.crc32(out[at + 16 : end]).to_bytes(4, "big")
        at = end
    return bytes(out)


def fitted(batch: bytes) -> bytes:
    """One batch with the length that it has, and a right checksum."""
    return checked(batch[:8] + max(0, len(batch) - 12).to_bytes(4, "big") + batch[12:])


def packed(batch: bytes, codec: int) -> bytes:
    """One batch of which the records are compressed after they were changed."""
    head = batch[:22] + bytes([batch[22] & ~7 | codec]) + batch[23:61] if len(batch) > 61 else batch
    return fitted(head + CODECS[codec](batch[61:]))


def wrapped(messages: bytes, magic: int, codec: int) -> bytes:
    """A message of an old format around messages that were changed."""
    value = CODECS[codec](checked(messages))
    head = struct.pack(">bb", magic, codec) + (b"" if magic == 0 else bytes(8))
    body = bytes(4) + head + b"\xff" * 4 + len(value).to_bytes(4, "big") + value
    return checked((12).to_bytes(8, "big") + len(body).to_bytes(4, "big") + body)


def messages(magic: int, codec: int = 0) -> bytes:
    """Three records from offset 10 in an old format."""
    builder = LegacyRecordBatchBuilder(magic, codec, 1 << 20)
    for i in range(3):
        builder.append(10 + i, 1_700_000_000_000 + i, b"key", None if i == 1 else b"[1,2]", [])
    return bytes(builder.build())


def json_families() -> list[Family]:
    """Objects and arrays, with and without escapes, with what the fields x, a.b and é want and the time t."""
    good = {"x": 1.25, "a": {"b": -2e5, "c": [1, {"x": None}]}, "é": 12345678901234567890, "t": "2023-11-14T22:13:20Z"}
    flat = {"a.b": 0.1, "é": 3, "x": 17976931348623157e120, "t": 1700000000123, "s": 'say "hi"\n\U0001f600', "n": None}
    seeds = [json.dumps(r, ensure_ascii=a).encode() for r in (good, flat, [1, -2.5, 3e-9]) for a in (True, False)]
    return [Family(seeds, json=True)]


def kafka_families() -> list[Family]:
    """Record batches from offset 10, of all formats and codecs, and some in a row."""
    values = [b'{"x":1,"y":2}', None, b"[3,4]", b"", b"[5," + b" " * 70 + b"6]"]
    records = [(1000 + i, b"k" if i else None, v, [("h", b"v"), ("n", None)]) for i, v in enumerate(values)]
    plain = [batch_of(10, records)[0], batch_of(10, records, offsets=[0, 2, 3, 9, 200], tail=3, append_time=True)[0]]
    batches = [*plain, *(batch_of(10, records, codec=codec)[0] for codec in CODECS)]
    marker = (0, bytes(4), bytes(6), [])
    transaction = batch_of(10, records, producer=1)[0] + batch_of(15, [marker], producer=1, control=True)[0]
    old = [messages(0), messages(1)]
    return [
        Family(batches, fitted),
        Family([transaction, plain[0] + batches[2], plain[1] + transaction], checked),
        *(Family(plain, partial(packed, codec=codec)) for codec in CODECS),
        Family([*old, *(messages(1, codec) for codec in (1, 2, 3))], checked),
        *(Family([old[m]], partial(wrapped, magic=m, codec=codec)) for m, codec in ((0, 1), (1, 1), (1, 2))),
    ]


def saved(save: Callable[..., object], *arguments: Any, **named: Any) -> bytes:
    """What a function writes into a file."""
    out = io.BytesIO()
    save(out, *arguments, **named)
    return out.getvalue()


def zip_families(archives: Sequence[bytes]) -> list[Family]:
    """Archives, and each member of them changed inside one that is sound."""

    def put(content: bytes, members: dict[str, bytes], name: str) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as file:
            for member, kept in (members | {name: content}).items():
                file.writestr(member, kept)
        return out.getvalue()

    families = [Family(archives)]
    for archive in archives:
        with zipfile.ZipFile(io.BytesIO(archive)) as file:
            members = {name: file.read(name) for name in file.namelist()}
        families += [Family([content], partial(put, members=members, name=name)) for name, content in members.items()]
    return families


def centroid_families() -> list[Family]:
    """Files with centroids of the fields a and b."""
    npz = saved(np.savez, centroids=np.arange(6.0).reshape(3, 2), fields=np.array(["a", "b"]), sizes=np.arange(3))
    texts = [b'{"fields": ["a", "b"], "centroids": [[1, 2], [3, 4.5]]}', b"[[1, 2], [3, 4]]"]
    texts += [b'{"clusters": [{"id": 0, "centroid": [1, 2]}, {"id": 1, "centroid": [3, 4]}]}']
    return [Family(texts, json=True), *zip_families([npz])]


def table_families(kind: str) -> list[Family]:
    """Tables as files of a kind."""
    table, texts = np.asfortranarray(np.arange(6.0).reshape(3, 2)), np.array(["x", "ü", "z"])
    if kind == "csv":
        seeds = ["a,b\n1,2\n3,4.5\n,x\n", 'é;"b c"\r\n1;"2\n3"\r\n"4";5', "\ufeffa\tb\n1\t2\n\n3\t4\n\n"]
        return [Family([seed.encode() for seed in seeds])]
    if kind == "npy":
        named = np.array([(1, 2.5, "t"), (3, 4.5, "ü")], dtype=[("a", "i4"), ("b", "f8"), ("c", "U2")])
        return [Family([saved(np.save, array) for array in (table, np.float32([1, 2]), named)])]
    if kind == "npz":
        return zip_families([saved(s, table, w=np.arange(3), v=texts) for s in (np.savez, np.savez_compressed)])
    columns = {"i": [1, None, 3, 4], "f": [0.5, 1.5, None, 2.5], "s": ["1", "x", None, "long text " * 3]}
    moments, decimals = pl.col("i").cast(pl.Datetime("ms")), pl.col("f").cast(pl.Decimal(10, 2))
    frame = pl.DataFrame(columns).with_columns(t=moments, d=decimals)
    save, third = (frame.write_parquet, "snappy") if kind == "parquet" else (frame.write_ipc, "lz4")
    return [Family([saved(save, compression=name) for name in ("uncompressed", "zstd", third)])]


def broken_arrow() -> list[bytes]:
    """Arrow files of which a text lies outside of its buffer, and of which a buffer is as large as no memory."""
    plain, packed, _ = table_families("arrow")[0].seeds
    text, at = b"\x1e\0\0\0long\0\0\0\0", packed.index(b"\x28\xb5\x2f\xfd")  # what a frame of zstd begins with
    outside = plain.replace(text + bytes(4), text + b"\0\0\0\x40")
    return [outside, packed[: at - 8] + bytes(7) + b"\x40" + packed[at:]]


def journal_families() -> list[Family]:
    """Journal entries with columns of all widths, and with ranges that were lost."""
    a, b, c = TopicPartition("orders", 0), TopicPartition("orders", 1), TopicPartition("ü/é", 2**31 - 1)
    spread = ((BatchRange(a, 0, 5), BatchRange(b, 7, 300)), (), (BatchRange(a, 5, 5), BatchRange(c, 2**62, 2**62 + 9)))
    lost = JournalEntry(spread, -1, 0, (BatchRange(b, 300, 310),))
    limited = JournalEntry(spread, 2, 7, limit=EventTimeLimit(3600.0, 1.7e9), arithmetic=2)
    blobs = [journal.encode(entry) for entry in (facts.journal_entry_of(3), JournalEntry(()), limited, lost)]
    return [Family(blobs), Family([zlib.decompress(blob) for blob in blobs], zlib.compress)]


def state_families(rows: NDArray[np.float64]) -> list[Family]:
    """States of a model: new, warming up, learning, published; also their headers, parameters and arrays alone."""
    model, blobs = OnlineKMeans(2, warmup=24, coreset_size=32, half_life=100), []
    for publish in (False, False, False, True):
        blobs.append(model.state().to_bytes())
        model.learn_many(rows)
        if publish:
            model.publish()
    blobs.append(model.state().to_bytes())

    def headed(text: bytes, blob: bytes) -> bytes:
        return safetensors.numpy.save(safetensors.numpy.load(blob) | {"__state__": np.frombuffer(text, np.uint8)})

    def with_params(text: bytes, blob: bytes, header: Mapping[str, str]) -> bytes:
        return headed(json.dumps({**header, "params": text.decode("utf-8", "replace")}).encode(), blob)

    families = [Family(blobs)]
    for blob in blobs:
        text = safetensors.numpy.load(blob)["__state__"].tobytes()
        header, begin = json.loads(text), 8 + int.from_bytes(blob[:8], "little")
        families.append(Family([text], partial(headed, blob=blob), json=True))
        families.append(Family([header["params"].encode()], partial(with_params, blob=blob, header=header), json=True))
        families.append(Family([blob[begin:]], blob[:begin].__add__))
    return families


def mark_families(path: Path, identity: str) -> list[Family]:
    """Checkpoints of a fit, in its first run and in a later one."""
    rng, marks = np.random.RandomState(0), []
    step = Iteration(rng.normal(size=(2, 3)), np.array([4, 5]), 1.5, 2)
    best = LloydResult(step.centroids, np.array([4, 5]), np.array([1.0, 2.0]), 3.0, 7, "converged", (step,))
    for kept, trace in ((None, ()), (best, (step, step))):
        checkpoint.save(path, identity, FitCheckpoint(1, 3, rng.normal(size=(2, 3)), 5, kept, trace, rng.get_state()))
        marks.append(path.read_bytes())
    return zip_families(marks)


def point_families(path: Path) -> list[Family]:
    """Files of points, and their headers by themselves."""
    seeds = []
    for weights in (None, [0.5, 1, 2]):
        with PointFile.create(path, ["a", "b"]) as file:
            file.append(np.arange(6.0).reshape(3, 2), weights)
            file.finish()
        seeds.append(path.read_bytes())

    def padded(text: bytes) -> bytes:
        head = b"skmpts1\n" + len(text).to_bytes(8, "little") + text
        return head.ljust(4096, b"\0") + seeds[0][4096:]

    return [Family(seeds), Family([seeds[0][16:].partition(b"}")[0] + b"}"], padded, json=True)]


# Processes


@dataclass
class Watch:
    """Decodes one input at a time under an alarm, writes each down first, and counts."""

    campaign: Campaign
    last: int
    most: float = math.inf
    limit: int = resource.RLIM_INFINITY
    counts: Counter[str] = field(default_factory=Counter)

    def feed(self, data: bytes) -> None:
        """Decode an input. What is no refusal is raised with the input in its notes."""
        os.pwrite(self.last, data, 0)
        os.ftruncate(self.last, len(data))
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            self.counts["accepted" if self._decoded(data) else "refused"] += 1
            assert _peak() < self.most, f"it took more than {GROWN_BYTES >> 20} MiB"
        except BaseException as error:
            error.add_note(f"the input: {data.hex()}")
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _decoded(self, data: bytes) -> bool:
        resource.setrlimit(resource.RLIMIT_AS, (self.limit, resource.RLIM_INFINITY))
        try:
            return self.campaign.decode(data)
        except self.campaign.refusals:
            return False
        finally:  # the alarm still runs: Python 3.11 goes round for ever where it has no memory for an exception
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def begin(self) -> None:
        """Decode what is real: it warms everything up, and has to be accepted. From then on memory is limited."""
        for family in self.campaign.families:
            for seed in family.seeds:
                self.feed(family.dress(seed))
                assert not self.counts["refused"], f"a real input was refused: {seed!r}"
        self.counts.clear()
        self.most = _peak() + GROWN_BYTES
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        self.limit = pages * resource.getpagesize() + self.campaign.spare


def _peak() -> int:
    """The most memory that this process has taken so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _attack(make: Callable[[Path], Campaign], factor: float, last: int) -> Counter[str]:
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(make(Path(folder)), last)
        watch.begin()
        for data in watch.campaign.known:
            watch.feed(data)

        @settings(
            max_examples=max(1, round(watch.campaign.examples * factor)),
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],  # to make a fault smaller takes minutes
            suppress_health_check=list(HealthCheck),
        )
        @given(st.one_of([family.inputs() for family in watch.campaign.families]))
        def run(data: bytes) -> None:
            watch.feed(data)

        run()
        return watch.counts


def _child(make: Callable[[Path], Campaign], factor: float, log: Path) -> None:
    """Never returns."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    # A handler of Python's own would wait for the end of what hangs.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.enable()
    faulthandler.register(signal.SIGALRM, chain=True)
    warnings.simplefilter("error", RuntimeWarning)  # of numpy, about numbers; as pytest does
    status = 1
    try:
        last = os.open(log.with_suffix(".input"), os.O_WRONLY | os.O_CREAT, 0o600)
        counts = _attack(make, factor, last)
        log.with_suffix(".counts").write_text(json.dumps(counts))
        status = 0
    except BaseException:  # noqa: BLE001  # the parent tells of it
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def serve(module: str) -> None:
    """Fork a child for each line of standard input: a campaign, a factor of its examples, and a path for its log.

    Parameters
    ----------
    module
        Where its ``CAMPAIGNS`` are.
    """
    campaigns: Mapping[str, Callable[[Path], Campaign]] = importlib.import_module(module).CAMPAIGNS
    gc.collect()
    gc.freeze()  # the children do not collect the shared objects
    for line in sys.stdin:
        name, factor, log = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(campaigns[name], factor, Path(log))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)  # noqa: T201  # the answer


@dataclass
class Range:
    """Where campaigns are run."""

    process: subprocess.Popen[str]

    def run(self, name: str, factor: float, log: Path) -> dict[str, int]:
        """Run a campaign to its end; gives its counts.

        Raises
        ------
        AssertionError
            It found a fault, or died: of what, and the input.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([name, factor, str(log)]), file=self.process.stdin, flush=True)
        status = int(self.process.stdout.readline())
        if status == 0:
            return {"accepted": 0, "refused": 0, **json.loads(log.with_suffix(".counts").read_text())}
        how = "a fault was found" if status > 0 else f"it died of {signal.Signals(-status).name}"
        if status == -signal.SIGALRM:
            how = f"an input took more than {SECONDS} s"
        last = log.with_suffix(".input")
        data = last.read_bytes() if last.exists() else b""
        told = log.read_text(errors="replace") if log.exists() else ""
        raise AssertionError(f"{how}; the last input was {data[:4096].hex()} ({len(data)} bytes)\n{told[-6000:]}")


@contextlib.contextmanager
def firing_range(module: str) -> Iterator[Range]:
    """Start the process that the campaigns of a module are forked from."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with subprocess.Popen(
        [sys.executable, "-c", f"import fuzzing; fuzzing.serve({module!r})"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    ) as process:
        yield Range(process)
        assert process.stdin is not None
        process.stdin.close()
