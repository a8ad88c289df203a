"""``streamkm live``, killed at a given place or with a jumping clock: run as ``python killed_live.py live MODEL ...``.

The fault comes from the environment:

FAULT_DIE
    ``STEP:CALL:WHEN``: SIGKILL at this call of a step of the commit protocol (see ``LeaseSession``), ``before`` or
    ``after`` it. Steps: poll, decode, commit (learning lies between decode and commit), tell.
FAULT_STATEMENT
    ``COMMIT:NUMBER``: SIGKILL before that statement of that commit's transaction; the number behind the last statement
    is the transaction's own commit.
FAULT_CLOCK
    ``SECONDS:AFTER``: the wall clock jumps by so much when the process is so many seconds old.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

import consumers.live
from consumers.cli import main
from streamkm.engine import Engine
from streamkm.testing import JumpingClock, KillAtCall

METHODS = {"poll": "poll", "decode": "decode", "commit": "commit", "tell": "commit"}


def _die_at_step(engine: Engine, step: str, call: int, *, after: bool) -> None:
    context = engine.context
    if step in ("poll", "tell"):
        # One count over all sources that are opened.
        proxy = KillAtCall(None, METHODS[step], call, after=after)
        opener = context.open_source
        engine.context = replace(context, open_source=lambda: proxy.wrap(opener()))
    elif step == "decode":
        engine.context = replace(context, codec=KillAtCall(context.codec, "decode", call, after=after))
    else:
        engine.context = replace(context, store=KillAtCall(context.store, "commit", call, after=after))


def _die_at_statement(store: Any, commit: int, number: int) -> None:
    real, commits, left = store.commit, 0, -1

    def count(*_: object) -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def counted(*arguments: Any) -> Any:
        nonlocal commits, left
        commits += 1
        if commits == commit:
            left = number
        return real(*arguments)

    store.commit = counted
    sa.event.listen(store.engines.writer, "before_cursor_execute", count)
    sa.event.listen(store.engines.writer, "commit", count)


def _make(*arguments: Any) -> Engine:
    engine: Engine = MAKE(*arguments)
    if die := os.environ.get("FAULT_DIE"):
        step, call, when = die.split(":")
        _die_at_step(engine, step, int(call), after=when == "after")
    if at := os.environ.get("FAULT_STATEMENT"):
        _die_at_statement(engine.context.store, *map(int, at.split(":")))
    if jump := os.environ.get("FAULT_CLOCK"):
        engine.context = replace(engine.context, clock=JumpingClock(*map(float, jump.split(":"))))
    return engine


if __name__ == "__main__":
    MAKE = consumers.live.make_engine
    consumers.live.make_engine = _make
    sys.argv[0] = "streamkm"
    main()
