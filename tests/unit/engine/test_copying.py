"""Memories and blocks are not copied, nor pickled: each is responsible for something that there is only once."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from memplat.memory import Memory
from tests.oracle import PAGE

WAYS: list[Callable[[Any], object]] = [copy.copy, copy.deepcopy, pickle.dumps]


@pytest.mark.parametrize("way", WAYS)
def test_a_block_is_not_copied_and_stays_as_it_was(memory: Memory, way: Callable[[Any], object]) -> None:
    block = memory.block(PAGE)
    with pytest.raises(TypeError, match=r"a block .* cannot be copied or pickled.*incref"):
        way(block)
    gc.collect()
    assert memory.inspect(block.pages.start).refs == 1
    block.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_memory_is_not_copied_and_goes_on(memory: Memory, way: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match=r"a memory cannot be copied or pickled.*share"):
        way(memory)
    gc.collect()
    memory.decref(memory.allocate(PAGE))
