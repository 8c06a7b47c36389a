"""Figures of the Go allocators, measured elsewhere on the same kind of machine (2 shared cores, Linux 6.18): gVisor's
today (``pkg/sentry/pgalloc``, Go 1.23, default options) and that of 2018 (``filemem``); and the calibrators measured
with them. Medians of 5 to 7 processes, in seconds.

Absolute figures drift with the machine; the quotient of a figure and its calibrator does less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

_US: Final = 1e-6
_MS: Final = 1e-3


@attrs.frozen
class Published:
    """What is known of one case; ``None``: not measured, or cannot be done."""

    today: float | None = None
    filemem: float | None = None
    host: float | None = None
    """The least that the host itself takes for it."""


CALIBRATORS: Final[Mapping[str, float]] = {
    "getppid": 0.170 * _US,
    "fstat": 0.407 * _US,
    "punch": 3.0 * _US,
    "punch, random": 3.5 * _US,
    "first-touch fault": 2.6 * _US,
    "memset 64 KiB": 0.57 * _US,
    "SEEK_DATA walk": 48 * _MS,
    "mmap + close": 10 * _US,
    "memfd + mmap + close": 14 * _US,
    "memoryview slice": 0.105 * _US,
    "SharedMemory": 71.5 * _US,
}

CASES: Final[Mapping[tuple[str, str], Published]] = {
    ("W1", "1,000 live"): Published(1.15 * _US, 0.54 * _US, 0.065 * _US),
    ("W1", "100,000 live"): Published(3.0 * _US, 62 * _US),
    ("W1", "1,000,000 live"): Published(5.2 * _US, 456 * _US),
    ("W2", "64 KiB uncommitted"): Published(67 * _US, 71 * _US, 47 * _US),
    ("W2", "64 KiB recycled"): Published(4.8 * _US, None, 0.9 * _US),
    ("W2", "2 MiB uncommitted"): Published(1.68 * _MS, 1.71 * _MS, 1.42 * _MS),
    ("W2", "2 MiB recycled"): Published(116 * _US, None, 75 * _US),
    ("W3", "2 pages among 1,000 holes"): Published(0.23 * _US, 2.8 * _US),
    ("W3", "2 pages among 1,000,000 holes"): Published(0.30 * _US, 9.5 * _MS),
    ("W4", "first scan, 65,536 one-page extents in 4,096 MiB"): Published(78 * _MS, 72 * _MS, 3.6 * _MS),
    ("W4", "one more page, 65,536 one-page extents in 4,096 MiB"): Published(146 * _MS, 135 * _MS, 3.6 * _MS),
    ("W4", "first scan, 1,024 MiB contiguous"): Published(0.87 * _MS, 0.86 * _MS, 0.0005 * _MS),
    ("W4", "one page in 16,384 MiB"): Published(150 * _MS, 160 * _MS, 0.005 * _MS),
    ("W4", "nothing new"): Published(0.50 * _US, 0.47 * _US, 0.41 * _US),
    ("W5", "every other page of 1,562 MiB, ascending"): Published(5.8 * _US, 4.9 * _US, 3.0 * _US),
    ("W5", "every other page of 1,562 MiB, random"): Published(7.4 * _US, 5.7 * _US, 3.5 * _US),
    ("W5", "all pages of 1,562 MiB, random"): Published(None, None, 0.75 * _US),
    ("W6", "unpinned"): Published(0.010 * _US, 0.010 * _US, 0.1 * _US),
    ("W7", "one of 1,000 segments"): Published(0.16 * _US, 0.17 * _US, 0.065 * _US),
    ("W7", "one of 100,000 segments"): Published(0.46 * _US, 0.65 * _US, 0.065 * _US),
    ("W7", "middle of one of 1,000 segments"): Published(0.31 * _US, 0.27 * _US, 0.065 * _US),
    ("W7", "middle of one of 100,000 segments"): Published(0.61 * _US, 0.78 * _US, 0.065 * _US),
}
