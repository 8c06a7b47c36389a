"""Threads in the background."""

from __future__ import annotations

import sys
import threading

import pytest

from memplat import daemons


def test_a_daemon_begins_with_its_arguments() -> None:
    done = threading.Event()
    thread = daemons.start(done.wait, "one of ours", 20.0)
    assert thread.daemon
    assert thread.name == "one of ours"
    done.set()
    thread.join(20)
    assert not thread.is_alive()


def test_an_interpreter_that_ends_starts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    with pytest.raises(RuntimeError, match="the interpreter ends"):
        daemons.start(print, "never")
