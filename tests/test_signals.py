"""Signals as a wish to leave: at once where nothing is under way."""

import os
import signal

import pytest

from consumers.signals import stop_on_signals


@pytest.fixture
def stop():
    return stop_on_signals()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_event_and_ends_nothing(stop, number):
    os.kill(os.getpid(), number)
    assert stop.is_set()


def test_where_nothing_is_under_way_a_signal_ends_the_program_with_status_0(stop):
    with pytest.raises(SystemExit) as end, stop.at_once():
        os.kill(os.getpid(), signal.SIGTERM)
    assert end.value.code == 0
    assert stop.is_set()


def test_a_signal_that_came_before_is_not_forgotten(stop):
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit), stop.at_once():
        pytest.fail("nothing may begin")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_test_before_has_left_its_handler(number):
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)
