"""The work of other processes on a store in tests, run by a `processes.Worker`."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import sqlalchemy as sa

from store_checks import SPEC, commit_of
from streamkm.errors import LeaseLostError, StoreUnavailableError
from streamkm.state import Checkpoint
from streamkm.stores import Lease, Store, open_store


def _seq(checkpoint: Checkpoint | None) -> int:
    return 0 if checkpoint is None else checkpoint.progress.commit_seq


def _owned(store: Store, owner: str) -> Lease:
    store.create(SPEC, 1.0)
    lease = store.acquire("m", owner, ttl=1e9, now=time.time())
    if lease is None:
        raise SystemExit(f"{owner} found the lease taken")
    return lease


def write(_: Connection, store: Store, size: int, last: int = 1_000_000_000) -> None:
    """Commit as fast as possible, every second commit with a snapshot, every third with a bad record."""
    lease = _owned(store, "writer")
    for seq in range(_seq(store.load_checkpoint("m")) + 1, last + 1):
        store.commit(lease, commit_of(seq, snapshot=seq % 2 == 0, bad=seq % 3 == 0, size=size))


def die(tests: Connection, url: str, points: int) -> None:
    """Be killed by SIGKILL in a complete commit, once before each of its statements.

    The statements of the transaction count from 0; the number after the last is COMMIT, and the one after that is
    behind COMMIT. Each death is a forked process, of which the status is told; before the next one waits for a word.
    """
    for point in range(points):
        if os.fork() == 0:
            _die_at(url, point)
        _, status = os.wait()
        tests.send(os.waitstatus_to_exitcode(status))
        tests.recv()


def _die_at(url: str, point: int) -> None:
    store = open_store(url)
    lease = _owned(store, "killed")
    seq = _seq(store.load_checkpoint("m")) + 1
    engine: Any = store.engines.writer  # type: ignore[attr-defined]
    left = point

    def count(*_: object) -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    sa.event.listen(engine, "before_cursor_execute", count)
    sa.event.listen(engine, "commit", count)
    store.commit(lease, commit_of(seq, snapshot=True, bad=True))
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(tests: Connection, store: Store, where: str, thrown_out_after: str = "") -> None:
    """Commit twice, and stop by SIGSTOP between that and the third commit, or inside the third; tell how that ended.

    As the engine does, it makes a commit again for which the store was not available. With a time PostgreSQL ends the
    connection when the third commit has stood still for so long; not the others, which a busy machine may hold up.
    """
    lease = _owned(store, "sleeper")
    for seq in (1, 2):
        store.commit(lease, commit_of(seq))

    def stop(*connection: Any) -> None:
        if thrown_out_after:
            statement = f"SET LOCAL idle_in_transaction_session_timeout = '{thrown_out_after}'"
            connection[0].exec_driver_sql(statement)
        os.kill(os.getpid(), signal.SIGSTOP)

    if where == "inside":
        engine: Any = store.engines.writer  # type: ignore[attr-defined]
        sa.event.listen(engine, "commit", stop)
    else:
        stop()
    how = ""
    while how in ("", "unavailable"):
        try:
            store.commit(lease, commit_of(3))
            how = "committed"
        except StoreUnavailableError:
            how = "unavailable"
        except LeaseLostError:
            how = "lost"
        tests.send(how)


def fight(tests: Connection, store: Store, owner: str, total: int) -> None:
    """Take the lease again and again and commit while it lasts, until the model has this number of commits."""
    won = lost = 0
    while True:
        lease = store.acquire(
            "m", owner, ttl=0.0, now=time.time()
        )  # expires at once: the other process may always acquire it
        seq = _seq(store.load_checkpoint("m"))
        if seq >= total:
            break
        try:
            while lease is not None and seq < total:
                seq += 1
                store.commit(lease, commit_of(seq, snapshot=True))
                won += 1
        except LeaseLostError:
            lost += 1
    tests.send((won, lost))


def first_open(_: Connection, store: Store) -> None:
    """Open the store and create a model."""
    store.create(SPEC, 1.0)


def work(tests: Connection, task: str, url: str, *arguments: Any) -> None:
    """Do one of these tasks on a store."""
    if task == "die":
        die(tests, url, *arguments)
        return
    tasks: dict[str, Callable[..., None]] = {"write": write, "fight": fight, "sleep": sleep, "first_open": first_open}
    with contextlib.closing(open_store(url)) as opened:
        tasks[task](tests, opened, *arguments)
