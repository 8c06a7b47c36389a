"""hugetlb, with pages of 2 MiB."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from memplat.types import Capability
from tests.conformance.strictness import StrictConformance
from tests.hostparts import MIB


class TestHugetlb(StrictConformance):
    backend = "hugetlb"
    title = "hugetlb with pages of 2 MiB"
    undeclared = frozenset({Capability.FLUSH, Capability.SUB_PAGE_DECOMMIT})
    foreseen: ClassVar[Mapping[str, str]] = {"PROBE-09": "needs 2560 huge pages of 2 MiB"}

    @pytest.fixture
    def conformance_options(self, huge_page_pool: None) -> Mapping[str, Any]:
        return {"page_size": 2 * MIB}
