"""What ext4 and xfs spend on the list of a file's extents: worked out from how many there are, never as a remainder.

Both keep the list as a tree with its root in the inode. While all entries fit there, it costs nothing. A tree whose
extents came in ascending order is full and has the size worked out here; where they came in another order its nodes
were split, and it is up to about twice as large. ext4 lets a tree shrink only where a node becomes empty: it may be as
large as it was when there were the most extents; and writing to a reserved extent makes three of one for a while.
"""

from __future__ import annotations

from typing import Final

import attrs

from memplat.linux import filesystems


@attrs.define
class ExtentTree:
    """The tree of one file."""

    block_size: int
    in_inode: int
    """Extents that fit into the inode."""
    per_leaf: int
    per_node: int
    """Children of an inner block."""
    under_root: int
    """Children of the root in the inode."""
    shrinks: bool
    """Whether nodes that are less than half full are joined, and extents that fit into the inode go back there."""
    _mapped: int = 0
    _delayed: int = 0
    _most: int = 0

    def seen(self, mapped: int, delayed: int) -> None:
        """Note how many extents there are, and how many more there will be when what is dirty reaches the disk."""
        self._mapped, self._delayed = mapped, delayed
        self._most = max(self._most, mapped + delayed)

    def overhead(self) -> int:
        """The bytes that the tree of as many extents takes if it is full. Dirty pages are in no tree yet."""
        return self.blocks(self._mapped) * self.block_size

    def slack(self) -> int:
        """The bytes that it may take beyond :meth:`overhead`."""
        most = self._mapped if self.shrinks else max(self._most, self.in_inode + 1)
        return (2 * self.blocks(most) - self.blocks(self._mapped)) * self.block_size

    def blocks(self, extents: int) -> int:
        """The blocks of a full tree of so many extents beyond the inode."""
        if extents <= self.in_inode:
            return 0
        level = -(-extents // self.per_leaf)
        total = level
        while level > self.under_root:
            level = -(-level // self.per_node)
            total += level
        return total


#: fs/ext4/ext4_extents.h: header and entries of 12 bytes, a checksum of 4 at the end of a block; 60 bytes in the inode.
_EXT4: Final = {"in_inode": 4, "per_leaf": 340, "per_node": 340, "under_root": 4}
#: fs/xfs/libxfs/xfs_format.h: a header of 72 bytes, records and key-pointer pairs of 16; 336 bytes in an inode of 512.
_XFS: Final = {"in_inode": 21, "per_leaf": 251, "per_node": 251, "under_root": 20}
_BLOCK_SIZE: Final = 4096


def tree_of(magic: int) -> ExtentTree | None:
    """The tree that the file system keeps for a new file; ``None`` where ``st_blocks`` has nothing but data."""
    numbers = {filesystems.EXT4_MAGIC: _EXT4, filesystems.XFS_MAGIC: _XFS}.get(magic)
    return None if numbers is None else ExtentTree(block_size=_BLOCK_SIZE, shrinks=numbers is _XFS, **numbers)
