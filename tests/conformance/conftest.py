"""What the backends stand on: real file systems, huge pages, swap."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import hostparts
from tests.hostparts import MIB, btrfs_directory, ext4_directory, tmpfs_directory, xfs_directory

__all__ = ["btrfs_directory", "ext4_directory", "tmpfs_directory", "xfs_directory"]


@pytest.fixture(scope="package")
def little_swap() -> Iterator[None]:
    """64 MiB of swap, if the host has none and may have some; the checks say what they miss."""
    if os.geteuid() != 0 or len(Path("/proc/swaps").read_text().splitlines()) > 1:
        yield
        return
    with hostparts.swap_file(64 * MIB):
        yield


@pytest.fixture(scope="package")
def huge_page_pool() -> Iterator[None]:
    """40 huge pages of 2 MiB, all of them free."""
    with hostparts.hugetlb_pool(40):
        yield


@pytest.fixture(scope="package")
def advised_huge_pages() -> Iterator[None]:
    """Transparent huge pages for memfds that are advised to use them."""
    with hostparts.setting("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "advise"):
        yield
