"""All workload groups by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from benchmarks import (
    c_calibrators,
    w1_churn,
    w2_touch,
    w3_search,
    w4_scan,
    w5_reclaim,
    w6_view,
    w7_references,
    w8_polling,
)
from benchmarks.harness import Group

GROUPS: Final[Mapping[str, Group]] = {
    "C": c_calibrators,
    "W1": w1_churn,
    "W2": w2_touch,
    "W3": w3_search,
    "W4": w4_scan,
    "W5": w5_reclaim,
    "W6": w6_view,
    "W7": w7_references,
    "W8": w8_polling,
}
