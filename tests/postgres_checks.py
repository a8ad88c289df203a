"""Helpers for tests of stores on PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from postgres_server import ENCODED, PASSWORD
from streamkm.errors import StoreUnavailableError
from streamkm.stores import SqlStore, open_store

Opener = Callable[..., SqlStore]


@contextmanager
def opener(url: str) -> Iterator[Opener]:
    """Opens stores on a given or another database, and closes them at the end."""
    with ExitStack() as stack:

        def open_(where: str = url, **options: float) -> SqlStore:
            store = stack.enter_context(closing(open_store(where, **options)))
            assert isinstance(store, SqlStore)
            return store

        yield open_


def refused_with(url: str, match: str) -> StoreUnavailableError:
    """The error of a store that cannot be opened: with a hint, and without the password of the tests' server."""
    with pytest.raises(StoreUnavailableError, match=match) as refused:
        open_store(url, busy_timeout=0.05)
    assert refused.value.hint
    assert refused.value.where.startswith("postgresql://")
    told = all_told(refused.value)
    assert PASSWORD not in told
    assert ENCODED not in told
    return refused.value


def all_told(error: BaseException | None) -> str:
    """The messages of an error and of its causes."""
    return "" if error is None else f"{error!r} {error}\n{all_told(error.__context__)}"


def elsewhere(url: str, **parts: str) -> str:
    """A URL with another login (user and password), port or database."""
    found = re.fullmatch(r"postgresql://(?P<login>.*)@(?P<host>.*):(?P<port>.*)/(?P<database>.*)", url)
    assert found is not None
    return "postgresql://{login}@{host}:{port}/{database}".format(**{**found.groupdict(), **parts})
