"""As :class:`~memplat.engine.fittree.FitTree`, for many positions of small weight: a byte each.

A byte tells weights below :data:`_LONG` exactly, and that a weight is not below it; those are kept in a tree of the
other kind, too, which is brought up to date when it is searched. A node is a ``bytearray`` of :data:`FAN` slots, whose
first slot of at least some weight two calls of C code find: there is no loop in Python, and no object to fetch for each
slot from wherever it is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from memplat.engine.fittree import FitTree

_BITS: Final = 6
FAN: Final = 1 << _BITS
_MASK: Final = FAN - 1
#: The byte of a weight that no byte can tell.
_LONG: Final = 255
#: For each weight, what makes 1 of the bytes of at least that weight, and 0 of the others.
_ENOUGH: Final = tuple(bytes(weight) + b"\1" * (256 - weight) for weight in range(256))
_ZERO: Final = b"\0"


class ByteTree:
    """A sparse array of weights that can be searched by least weight from either end."""

    __slots__ = ("_capacity", "_down", "_leaves", "_long", "_pending", "_upper")

    def __init__(self) -> None:
        # The leaves hold the bytes; in every level, node n covers the positions whose upper digits are n.
        self._leaves: dict[int, bytearray] = {}
        self._upper: list[dict[int, bytearray]] = []
        self._down: tuple[dict[int, bytearray], ...] = (self._leaves,)  # all levels, from the root
        self._long = FitTree()
        self._pending: dict[int, int] = {}  # what is still to be set there; much of it cancels out
        self._capacity = FAN

    def set(self, position: int, weight: int) -> None:
        """Give *position* the weight; 0 takes it out."""
        byte = weight if weight < _LONG else _LONG  # noqa: FURB136 -- calling min takes longer than all the rest
        index = position >> _BITS
        node = self._leaves.get(index)
        if node is None:
            if not byte:
                return
            if position >= self._capacity:
                self._deepen(position)
            node = self._leaves[index] = bytearray(FAN)
        slot = position & _MASK
        old = node[slot]
        node[slot] = byte
        if byte > old:
            self._rise(index, byte)
        elif byte < old and old not in node:
            self._fall(node, index, old)
        if byte == _LONG:
            self._pending[position] = weight
        elif old == _LONG:
            self._drop_long(position)

    def move(self, old: int, new: int, weight: int) -> None:
        """As ``set(old, 0)`` and ``set(new, weight)``, for ``old < new``; cheaper where the two are neighbours."""
        index = old >> _BITS
        if new >> _BITS != index:
            self.set(old, 0)
            self.set(new, weight)
            return
        byte = weight if weight < _LONG else _LONG  # noqa: FURB136 -- calling min takes longer than all the rest
        node = self._leaves[index]
        before = node[old & _MASK]
        node[old & _MASK] = 0
        node[new & _MASK] = byte
        if byte > before:
            self._rise(index, byte)
        elif byte < before and before not in node:
            self._fall(node, index, before)
        if before == _LONG:
            self._drop_long(old)
        if byte == _LONG:
            self._pending[new] = weight

    def _drop_long(self, position: int) -> None:
        if self._long.get(position):
            self._pending[position] = 0
        else:
            del self._pending[position]

    def _long_ones(self) -> FitTree:
        """The tree of what no byte can tell, up to date. A change, although its callers only look."""
        for position, weight in self._pending.items():
            self._long.set(position, weight)
        self._pending.clear()
        return self._long

    def _rise(self, index: int, byte: int) -> None:
        """A slot of leaf *index* became heavier: so may the slots above it."""
        for level in self._upper:
            slot = index & _MASK
            index >>= _BITS
            node = level.get(index)
            if node is None:
                node = level[index] = bytearray(FAN)
            if node[slot] >= byte:
                return
            node[slot] = byte

    def _fall(self, node: bytearray, index: int, old: int) -> None:
        """In *node*, which is leaf *index*, no slot has the weight *old* any more."""
        level = self._leaves
        for upper in self._upper:
            above = upper[index >> _BITS]
            slot = index & _MASK
            if above[slot] > old:
                return  # another slot is the node's maximum
            rest = node.translate(None, _ZERO)
            if rest:
                above[slot] = max(rest)
            else:
                above[slot] = 0
                del level[index]
            if old in above:
                return
            node, index, level = above, index >> _BITS, upper
        if not node.translate(None, _ZERO):
            del level[index]

    def get(self, position: int) -> int:
        """The weight of *position*, 0 if it is not there."""
        node = self._leaves.get(position >> _BITS)
        byte = node[position & _MASK] if node is not None else 0
        return byte if byte < _LONG else self._pending.get(position) or self._long.get(position)

    def maximum(self) -> int:
        """The greatest weight, 0 if there is none."""
        root = self._down[0].get(0)
        if root is None:
            return 0
        return self._long_ones().maximum() if _LONG in root else max(root.translate(None, _ZERO))

    def first(self, weight: int) -> int:
        """The lowest position of at least *weight* (> 0), or -1."""
        if weight > _LONG:
            return self._long_ones().first(weight)
        enough = _ENOUGH[weight]
        index = 0
        for level in self._down:
            node = level.get(index)
            if node is None:
                return -1
            slot = node.translate(enough).find(1)
            if slot < 0:
                return -1
            index = index << _BITS | slot
        return index

    def last(self, weight: int) -> int:
        """The highest position of at least *weight* (> 0), or -1."""
        if weight > _LONG:
            return self._long_ones().last(weight)
        enough = _ENOUGH[weight]
        index = 0
        for level in self._down:
            node = level.get(index)
            if node is None:
                return -1
            slot = node.translate(enough).rfind(1)
            if slot < 0:
                return -1
            index = index << _BITS | slot
        return index

    def next(self, position: int, weight: int) -> int:
        """The lowest position of at least *weight* that is not below *position*, or -1."""
        if weight > _LONG:
            return self._long_ones().next(position, weight)
        enough = _ENOUGH[weight]
        for depth, level in enumerate((self._leaves, *self._upper)):
            node = level.get(position >> _BITS)
            if node is not None:
                slot = node.translate(enough).find(1, position & _MASK)
                if slot >= 0:
                    index = position & ~_MASK | slot
                    for below in self._down[len(self._down) - depth :]:
                        index = index << _BITS | below[index].translate(enough).find(1)
                    return index
            position = (position >> _BITS) + 1
        return -1

    def positions(self, weight: int) -> Iterator[int]:
        """All positions of at least *weight*, upwards. Changes behind the last yielded position are seen."""
        position = self.next(0, weight)
        while position >= 0:
            yield position
            position = self.next(position + 1, weight)

    def _deepen(self, position: int) -> None:
        while position >= self._capacity:
            root = self._down[0].get(0)
            self._upper.append({0: bytearray([max(root)]).ljust(FAN, _ZERO)} if root is not None else {})
            self._down = (self._upper[-1], *self._down)
            self._capacity <<= _BITS

    def _check(self) -> None:
        """Assert that every inner slot is the maximum of the node below it, and that no node is empty. O(n)."""
        levels = (self._leaves, *self._upper)
        assert self._down == levels[::-1], "the levels are not those from the root"
        for below, level in zip(levels, self._upper, strict=False):
            slots = {(n << _BITS | i): w for n, node in level.items() for i, w in enumerate(node) if w}
            assert slots == {n: max(node) for n, node in below.items()}, "an inner slot is not the maximum below it"
        assert all(max(node) > 0 for level in levels for node in level.values()), "an empty node was kept"
        assert set(levels[-1]) <= {0}, "the root level has more than one node"
        self._long_ones()._check()
        long = [n << _BITS | i for n, node in self._leaves.items() for i, w in enumerate(node) if w == _LONG]
        assert sorted(long) == list(self._long.positions(1)), "the long ones are not those of the other tree"
        assert all(weight >= _LONG for weight in map(self._long.get, long)), "a short one is among the long ones"
