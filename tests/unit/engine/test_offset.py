"""Scans leave the offset of the backing file where it is; one that others may share they do not even borrow."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from memplat.engine import commit
from memplat.memory import Memory
from tests.oracle import PAGE

Opener = Callable[..., Memory]


def descriptor(memory: Memory) -> int:
    """The backing file's, without asking for it: that would make a peer of whoever asks."""
    found: int = memory._state.file.fd  # type: ignore[attr-defined]
    return found


def scan_of_something_new(memory: Memory) -> None:
    pages = memory.allocate(PAGE, fill=b"x")
    assert memory.update_usage().total == memory.total_usage()
    memory.decommit(pages)
    assert memory.update_usage().total == memory.total_usage()


def test_a_scan_puts_the_offset_back(memory: Memory) -> None:
    os.lseek(descriptor(memory), 77, os.SEEK_SET)
    for _ in range(3):
        scan_of_something_new(memory)
    assert os.lseek(descriptor(memory), 0, os.SEEK_CUR) == 77


def test_an_offset_that_others_may_share_is_not_even_borrowed(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("the offset was borrowed")

    fd = memory.fileno()
    monkeypatch.setattr(commit, "seek_in_place", refuse)
    scan_of_something_new(memory)
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0
