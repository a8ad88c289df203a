"""Rounds of faults: ``make faults SEED=1 ROUNDS=25``; three of each store in ``make test``."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.catalogue import schedule
from faults.world import World
from kafka_fixtures import local_broker
from postgres_server import Databases, PostgresServer
from streamkm.broker import LocalBroker

pytestmark = pytest.mark.kafka

SEED = int(os.environ.get("STREAMKM_FAULTS_SEED", "1"))
ROUNDS = int(os.environ.get("STREAMKM_FAULTS_ROUNDS", "3"))


@pytest.fixture(scope="module")
def broker() -> Iterator[LocalBroker]:
    """A Kafka to be killed."""
    with local_broker(quiet=True) as own:
        yield own


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL to be killed."""
    with PostgresServer() as own:
        yield own


@pytest.mark.parametrize("number", range(ROUNDS))
def test_sqlite(number: int, broker: LocalBroker, tmp_path: Path, record_property: Callable[[str, Any], None]) -> None:
    play(number, broker, f"sqlite:///{tmp_path}/s.db", tmp_path, record_property)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_postgres(
    number: int,
    broker: LocalBroker,
    server: PostgresServer,
    tmp_path: Path,
    record_property: Callable[[str, Any], None],
) -> None:
    with Databases(server.url).fresh() as url:
        play(number, broker, url, tmp_path, record_property, server)


def play(
    number: int,
    broker: LocalBroker,
    url: str,
    folder: Path,
    tell: Callable[[str, Any], None],
    server: PostgresServer | None = None,
) -> None:
    """One round: faults while records come, then nothing lost, nothing twice, and all of it proved again."""
    rng = random.Random(f"{SEED}:{number}:{server is not None}")
    faults = schedule(rng, server=server is not None)
    names = ", ".join(fault.__name__ for fault in faults)
    logging.getLogger(__name__).warning("round %d: %s", number, names)  # shown when it fails
    with World(broker, url, folder, rng, server) as world:
        world.start()
        world.progress()
        for fault in faults:
            fault(world)
            world.progress()
        world.settle()
        world.close()
        counts = world.check()
        world.verify()
    tell("faults", names)
    tell("counts", counts)
    tell("takeovers", [round(s, 2) for s in world.takeovers])
