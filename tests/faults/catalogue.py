"""The faults: functions of a working world, which return after the fault."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable

import kafka
import sqlalchemy as sa

from faults.world import ENDS, LEASE, MODEL, NO_STORE, World
from streamkm.errors import StoreUnavailableError
from streamkm.stores import open_store

STEPS = ("poll", "decode", "commit", "tell")
Fault = Callable[[World], None]


def _standby(world: World) -> None:
    """Start a standby."""
    standby = world.start()
    world.until(lambda: "standing by" in standby.output(), "nobody stands by")


def _successor(world: World, begun: float) -> None:
    """Wait until a process commits again, and record the duration."""
    world.progress(1)
    world.takeovers.append(time.monotonic() - begun)


def owner_killed(world: World) -> None:
    """SIGKILL at any time, with a standby."""
    _standby(world)
    world.owner().kill()
    _successor(world, time.monotonic())


def _mortal(world: World, **fault: str) -> None:
    """Replace all processes by one that will be killed, and wait for that."""
    for program in world.alive():
        program.leave()
    dying = world.start(**fault)
    world.until(lambda: dying.popen.poll() is not None, f"it did not die ({fault})")
    assert dying.popen.returncode == -signal.SIGKILL
    begun = time.monotonic()
    world.start()
    world.start()
    _successor(world, begun)


def killed_at_a_step(world: World) -> None:
    """SIGKILL before or after a step of the commit protocol."""
    step, when = world.rng.choice(STEPS), world.rng.choice(["before", "after"])
    _mortal(world, FAULT_DIE=f"{step}:{world.rng.randrange(2, 12)}:{when}")


def killed_in_a_commit(world: World) -> None:
    """SIGKILL before a statement of a commit's transaction, or before its end."""
    # The first commits after a start always have records, which arrived in between.
    _mortal(world, FAULT_STATEMENT=f"{world.rng.randrange(1, 6)}:{world.rng.randrange(7)}")


def owner_leaves(world: World) -> None:
    """SIGTERM: the standby takes over at once."""
    _standby(world)
    owner = world.owner()
    begun = time.monotonic()
    assert owner.leave() == 0, owner.output()
    _successor(world, begun)


def owner_sleeps(world: World) -> None:
    """SIGSTOP for longer than the lease: another owner has taken over when it resumes."""
    _standby(world)
    sleeper = world.owner()
    sleeper.signal(signal.SIGSTOP)
    begun = time.monotonic()
    with contextlib.suppress(StoreUnavailableError), contextlib.closing(open_store(world.url)) as store:
        asleep = store.model(MODEL).lease
    _successor(world, begun)
    time.sleep(world.rng.uniform(0, LEASE))
    sleeper.signal(signal.SIGCONT)
    world.progress()
    with contextlib.closing(open_store(world.url)) as store:
        lease = store.model(MODEL).lease
    assert lease is not None
    assert asleep is not None
    assert lease.epoch > asleep.epoch


def clock_jumps(world: World) -> None:
    """An owner whose wall clock jumps forward or back by hours, beside others."""
    for program in world.alive():
        program.leave()
    jumper = world.start(FAULT_CLOCK=f"{world.rng.choice([-86400, -3600, 3600, 86400])}:{world.rng.uniform(2, 4):.1f}")
    world.start()
    world.progress()
    time.sleep(3.0)
    world.progress()
    # If killed later, it would leave a lease that is valid for as long as its clock is ahead.
    assert jumper.leave() in ENDS, jumper.output()[-3000:]


def two_owners(world: World) -> None:
    """The lease is taken from a working owner repeatedly; it must not write with the old epoch."""
    world.start()
    for _ in range(world.rng.randrange(2, 5)):
        with contextlib.suppress(StoreUnavailableError), contextlib.closing(open_store(world.url)) as store:
            taken = store.acquire(MODEL, "somebody:0:else", 0.0, 1e12)  # by a clock at which every lease has expired
            assert taken is not None
            store.release(taken)  # for the next that acquires it
        world.progress(50)


def broker_killed(world: World) -> None:
    """SIGKILL of Kafka, and a restart after a while."""
    world.broker.kill()
    time.sleep(world.rng.uniform(0, 2 * LEASE))
    world.broker.start()


def broker_paused(world: World) -> None:
    """SIGSTOP of Kafka: no responses, and open connections."""
    os.kill(world.broker.pid, signal.SIGSTOP)
    time.sleep(world.rng.uniform(1, 3 * LEASE))
    os.kill(world.broker.pid, signal.SIGCONT)


def partitions_added(world: World) -> None:
    """A new partition, written to at once."""
    with contextlib.closing(kafka.KafkaAdminClient(bootstrap_servers=world.broker.bootstrap)) as admin:
        world.partitions += 1
        admin.create_partitions({world.topic: world.partitions})
    new = kafka.TopicPartition(world.topic, world.partitions - 1)
    world.until(lambda: world.tally.at.get(new, 0) > 0, "nobody writes to the new partition")


def retention(world: World) -> None:
    """The broker deletes the records that every consumer has read."""
    progress = world.look()
    assert progress is not None
    ends = {}
    for tp, at in progress.position.items():
        p = kafka.TopicPartition(tp.topic, tp.partition)
        world.until(lambda p=p, at=at: world.tally.at.get(p, 0) >= at, "the tally is behind")
        ends[p] = at
    with contextlib.closing(kafka.KafkaAdminClient(bootstrap_servers=world.broker.bootstrap)) as admin:
        admin.delete_records(ends)
    world.trimmed = True


def store_locked(world: World) -> None:
    """Another program holds the store's lock for longer than the busy timeout."""
    world.ends.add(NO_STORE)
    with contextlib.closing(open_store(world.url, busy_timeout=30.0)) as store, store.engines.writer.begin() as tx:  # type: ignore[attr-defined]
        tx.execute(sa.text("UPDATE streamkm_leases SET epoch = epoch"))
        time.sleep(world.rng.uniform(1, 3 * LEASE))


def server_killed(world: World) -> None:
    """SIGKILL of the database server, perhaps during a commit."""
    world.server.kill()
    time.sleep(world.rng.uniform(0, LEASE))
    world.server.start()


def server_restarted(world: World) -> None:
    """A restart of the database server, as during an upgrade."""
    world.server.restart()


EVERYWHERE: tuple[Fault, ...] = (
    owner_killed, killed_at_a_step, killed_in_a_commit, owner_leaves, owner_sleeps, clock_jumps, two_owners,
    broker_killed, broker_paused, partitions_added, retention, store_locked,
)  # fmt: skip
OF_A_SERVER: tuple[Fault, ...] = (server_killed, server_restarted)


def schedule(rng: random.Random, *, server: bool) -> list[Fault]:
    """One to three faults of a round."""
    return rng.sample([*EVERYWHERE, *(OF_A_SERVER if server else ())], rng.randrange(1, 4))
