"""How a test says that the host lacks something: a skip with a prefix that ``tools/check_skips.py`` understands."""

from __future__ import annotations

import os
from typing import Final, NoReturn

import pytest

#: What a test may miss, each with the probe of the same name in ``tools/check_skips.py``.
FEATURES: Final = frozenset(
    {
        "btrfs",
        "busybox",
        "cachestat",
        "cgroup",
        "compiler",
        "ext4",
        "hugetlb",
        "kvm",
        "libc_static",
        "loop",
        "numa",
        "numpy",
        "pagemap_scan",
        "pyarrow",
        "root",
        "swap",
        "thp",
        "tmpfs",
        "torch",
        "unicorn",
        "userfaultfd",
        "xfs",
    }
)


def needs(feature: str, reason: str) -> NoReturn:
    """Skip the running test, because the host lacks *feature*. A skip over something that the host has fails CI.

    :raises ValueError: for a feature that ``tools/check_skips.py`` would not check
    """
    if feature not in FEATURES:
        raise ValueError(f"unknown feature {feature!r}; allowed are {', '.join(sorted(FEATURES))}")
    pytest.skip(f"needs {feature}: {reason}")


def need_root(what: str) -> None:
    """Skip the running test unless it runs as root, which it needs for *what*."""
    if os.geteuid() != 0:
        needs("root", what)
