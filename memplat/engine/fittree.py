"""Which position is the lowest, or the highest, that has at least a wanted weight.

Knows nothing of memory: positions and weights are non-negative integers, weight 0 means "not there". A radix tree of
lists of :data:`FAN` weights; each inner slot holds the maximum of the node below it. Every operation costs
O(log(greatest position)), whatever the number of positions. Empty nodes are dropped, so that memory follows the number
of positions, not their greatest value.
"""

from __future__ import annotations

from collections.abc import Iterator

_BITS = 5
FAN = 1 << _BITS
_MASK = FAN - 1
_EMPTY = [0] * FAN


class FitTree:
    """A sparse array of weights that can be searched by least weight from either end."""

    __slots__ = ("_capacity", "_levels")

    def __init__(self) -> None:
        # Level 0 holds the weights; in level k, node n covers the positions whose upper digits are n.
        self._levels: list[dict[int, list[int]]] = [{}]
        self._capacity = FAN

    def set(self, position: int, weight: int) -> None:
        """Give *position* the weight; 0 takes it out."""
        if position >= self._capacity:
            self._deepen(position)
        for level in self._levels:
            index = position >> _BITS
            node = level.get(index)
            if node is None:
                if not weight:
                    return
                node = level[index] = _EMPTY.copy()
                node[position & _MASK] = weight
            else:
                slot = position & _MASK
                old = node[slot]
                if weight == old:
                    return
                node[slot] = weight
                if weight < old:
                    weight = max(node)
                    if weight >= old:
                        return  # another slot was as heavy: the node's maximum stands
                    if not weight:
                        del level[index]
                # A greater weight goes up as it is; the parent's slot decides whether it matters there.
                elif max(node) > weight:
                    return
            position = index

    def get(self, position: int) -> int:
        """The weight of *position*, 0 if it is not there."""
        node = self._levels[0].get(position >> _BITS)
        return node[position & _MASK] if node is not None else 0

    def maximum(self) -> int:
        """The greatest weight, 0 if there is none."""
        root = self._levels[-1].get(0)
        return max(root) if root is not None else 0

    def first(self, weight: int) -> int:
        """The lowest position of at least *weight* (> 0), or -1."""
        index = 0
        for level in reversed(self._levels):
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
        for level in reversed(self._levels):
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
        for depth, level in enumerate(self._levels):
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
        for level in reversed(self._levels[:depth]):
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
            self._levels.append(root)
            self._capacity <<= _BITS

    def _check(self) -> None:
        """Assert that every inner slot is the maximum of the node below it, and that no node is empty. O(n)."""
        for below, level in zip(self._levels, self._levels[1:], strict=False):
            slots = {(n << _BITS | i): w for n, node in level.items() for i, w in enumerate(node) if w}
            assert slots == {n: max(node) for n, node in below.items()}, "an inner slot is not the maximum below it"
        assert all(max(node) > 0 for level in self._levels for node in level.values()), "an empty node was kept"
        assert set(self._levels[-1]) <= {0}, "the root level has more than one node"
