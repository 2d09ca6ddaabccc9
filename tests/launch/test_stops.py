"""Signals while there is no rank to end yet, and the pipe of a rank that is talked to."""

from __future__ import annotations

import os
import signal
import time

import pytest

from launch.stops import Conversation, ReceivedSignals
from tests.helpers.programs import run

INTERRUPTED = """
import os, signal
from launch.stops import exiting_on_interrupt
with exiting_on_interrupt():
    while True:
        os.kill(os.getpid(), signal.SIGINT)
"""
ENTERED_AND_LEFT = """
import signal
from launch.stops import exiting_on_interrupt
before = signal.getsignal(signal.SIGINT)
with exiting_on_interrupt():
    assert signal.getsignal(signal.SIGINT) is not before
print(signal.getsignal(signal.SIGINT) is before)
"""


def test_ctrl_c_before_the_start_is_one_line_however_often() -> None:
    done = run(["-c", INTERRUPTED])
    assert (done.returncode, done.stderr) == (130, "launch: stopped\n")


def test_the_programs_own_handler_comes_back() -> None:
    assert run(["-c", ENTERED_AND_LEFT]).stdout == "True\n"


def test_signals_are_noted_in_order_and_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ReceivedSignals() as signals:
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), signum)
            time.sleep(0)  # where Python calls the handler
        assert signals.take() == [signal.SIGTERM, signal.SIGHUP, signal.SIGTERM]
        assert signals.take() == []
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("said", "expected"), [(b"", False), (b"1", True), (b"1" + b"01" * 5000, True), (b"10", False)]
)
def test_the_last_word_of_a_conversation_counts(said: bytes, expected: bool) -> None:
    with Conversation() as conversation:
        os.write(conversation.writer, said)
        assert conversation.takes_interrupts() is expected
        assert conversation.takes_interrupts() is expected  # until another one
