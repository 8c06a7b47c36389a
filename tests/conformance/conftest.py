"""What the backends stand on: real file systems, huge pages, swap."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import hostparts
from tests.hostparts import MIB, btrfs_directory, ext4_directory, tmpfs_directory, xfs_directory

__all__ = ["btrfs_directory", "ext4_directory", "tmpfs_directory", "xfs_directory"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The checks of a backend run in one process: they share their smoke tier, and the file system that they fill."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.parent is not None:
            item.add_marker(pytest.mark.xdist_group(item.parent.name))


# For a single test, because meanwhile the tests of other processes have to wait for theirs.


@pytest.fixture
def little_swap() -> Iterator[None]:
    """64 MiB of swap. Our own, whatever the host has: another run's goes away at any moment."""
    if os.geteuid() != 0:
        yield  # the check says what it misses
        return
    with hostparts.swap_file(64 * MIB):
        yield


@pytest.fixture
def huge_page_pool() -> Iterator[None]:
    """40 huge pages of 2 MiB, all of them free."""
    with hostparts.hugetlb_pool(40):
        yield


@pytest.fixture
def advised_huge_pages() -> Iterator[None]:
    """Transparent huge pages for memfds that are advised to use them."""
    with hostparts.setting("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "advise"):
        yield
