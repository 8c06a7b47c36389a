"""Which position is the lowest, or the highest, that has at least a wanted weight.

Knows nothing of memory: positions and weights are non-negative integers, weight 0 means "not there". A radix tree of
lists of :data:`FAN` weights; each inner slot holds the maximum of the node below it. Every operation costs
O(log(greatest position)), whatever the number of positions. Empty nodes are dropped, so that memory follows the number
of positions, not their greatest value.
"""

from __future__ import annotations

from collections.abc import Iterator

_BITS = 4
FAN = 1 << _BITS
_MASK = FAN - 1
_EMPTY = [0] * FAN


class FitTree:
    """A sparse array of weights that can be searched by least weight from either end."""

    __slots__ = ("_capacity", "_leaves", "_upper")

    def __init__(self) -> None:
        # The leaves hold the weights; in every level, node n covers the positions whose upper digits are n.
        self._leaves: dict[int, list[int]] = {}
        self._upper: list[dict[int, list[int]]] = []
        self._capacity = FAN

    def set(self, position: int, weight: int) -> None:
        """Give *position* the weight; 0 takes it out."""
        if position >= self._capacity:
            self._deepen(position)
        index = position >> _BITS
        node = self._leaves.get(index)
        if node is None:
            if not weight:
                return
            node = self._leaves[index] = _EMPTY.copy()
        slot = position & _MASK
        old = node[slot]
        node[slot] = weight
        if weight > old:
            self._rise(index, weight)
        elif weight < old:
            self._fall(node, index, old)

    def move(self, old: int, new: int, weight: int) -> None:
        """As ``set(old, 0)`` and ``set(new, weight)``, for ``old < new``; cheaper where the two are neighbours."""
        index = old >> _BITS
        if new >> _BITS != index:
            self.set(old, 0)
            self.set(new, weight)
            return
        node = self._leaves[index]
        before = node[old & _MASK]
        node[old & _MASK] = 0
        node[new & _MASK] = weight
        if weight > before:
            self._rise(index, weight)
        elif weight < before:
            self._fall(node, index, before)

    def _rise(self, index: int, weight: int) -> None:
        """A slot of leaf *index* became heavier: so may the slots above it."""
        for level in self._upper:
            slot = index & _MASK
            index >>= _BITS
            node = level.get(index)
            if node is None:
                node = level[index] = _EMPTY.copy()
            if node[slot] >= weight:
                return
            node[slot] = weight

    def _fall(self, node: list[int], index: int, old: int) -> None:
        """A slot of *node*, which is leaf *index*, had the weight *old* and became lighter."""
        level = self._leaves
        for upper in self._upper:
            above = upper[index >> _BITS]
            slot = index & _MASK
            before = above[slot]
            if before > old:
                return  # the node's maximum is another slot
            now = max(node)
            if now == before:
                return
            above[slot] = now
            if not now:
                del level[index]
            node, index, old, level = above, index >> _BITS, before, upper
        if not any(node):
            del level[index]

    def get(self, position: int) -> int:
        """The weight of *position*, 0 if it is not there."""
        node = self._leaves.get(position >> _BITS)
        return node[position & _MASK] if node is not None else 0

    def maximum(self) -> int:
        """The greatest weight, 0 if there is none."""
        root = (self._upper[-1] if self._upper else self._leaves).get(0)
        return max(root) if root is not None else 0

    def first(self, weight: int) -> int:
        """The lowest position of at least *weight* (> 0), or -1."""
        index = 0
        for level in (*reversed(self._upper), self._leaves):
            node = level.get(index)
            if node is None:
                return -1
            for slot, here in enumerate(node):  # noqa: B007 -- the loop variable is the result
                if here >= weight:
                    break
            else:
                return -1
            index = index << _BITS | slot
        return index

    def last(self, weight: int) -> int:
        """The highest position of at least *weight* (> 0), or -1."""
        index = 0
        for level in (*reversed(self._upper), self._leaves):
            node = level.get(index)
            if node is None:
                return -1
            slot = _MASK
            while node[slot] < weight:
                if not slot:
                    return -1
                slot -= 1
            index = index << _BITS | slot
        return index

    def next(self, position: int, weight: int) -> int:
        """The lowest position of at least *weight* that is not below *position*, or -1."""
        for depth, level in enumerate((self._leaves, *self._upper)):
            node = level.get(position >> _BITS)
            if node is not None:
                for slot in range(position & _MASK, FAN):
                    if node[slot] >= weight:
                        return self._descend(depth, position & ~_MASK | slot, weight)
            position = (position >> _BITS) + 1
        return -1

    def positions(self, weight: int) -> Iterator[int]:
        """All positions of at least *weight*, upwards. Changes behind the last yielded position are seen."""
        position = self.next(0, weight)
        while position >= 0:
            yield position
            position = self.next(position + 1, weight)

    def _descend(self, depth: int, index: int, weight: int) -> int:
        for level in reversed((self._leaves, *self._upper)[:depth]):
            node = level[index]
            for slot, here in enumerate(node):  # noqa: B007 -- the loop variable is the result
                if here >= weight:
                    break
            index = index << _BITS | slot
        return index

    def _deepen(self, position: int) -> None:
        while position >= self._capacity:
            greatest = self.maximum()
            root = {0: [greatest] + [0] * _MASK} if greatest else {}
            self._upper.append(root)
            self._capacity <<= _BITS

    def _check(self) -> None:
        """Assert that every inner slot is the maximum of the node below it, and that no node is empty. O(n)."""
        levels = (self._leaves, *self._upper)
        for below, level in zip(levels, self._upper, strict=False):
            slots = {(n << _BITS | i): w for n, node in level.items() for i, w in enumerate(node) if w}
            assert slots == {n: max(node) for n, node in below.items()}, "an inner slot is not the maximum below it"
        assert all(max(node) > 0 for level in levels for node in level.values()), "an empty node was kept"
        assert set(levels[-1]) <= {0}, "the root level has more than one node"
