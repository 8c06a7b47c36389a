"""memfd, also with transparent huge pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from memplat.types import Capability
from tests.conformance.strictness import StrictConformance

#: All of the host's memory would have to be used up.
UNBOUNDED = {f"EXH-0{number}": "neither a file system nor a pool bounds the file" for number in range(2, 6)}


class TestMemfd(StrictConformance):
    backend = "memfd"
    undeclared = frozenset({Capability.FLUSH, Capability.HUGE_PAGES})
    foreseen = UNBOUNDED


class TestMemfdCollapsing(StrictConformance):
    backend = "memfd"
    title = "memfd with huge pages (collapse)"
    options: ClassVar[Mapping[str, Any]] = {"huge": "collapse"}
    undeclared = frozenset({Capability.FLUSH, Capability.HUGE_PAGES})
    foreseen = UNBOUNDED


class TestMemfdAdvising(StrictConformance):
    backend = "memfd"
    title = "memfd with huge pages (advise)"
    undeclared = frozenset({Capability.FLUSH, Capability.HUGE_PAGES})
    foreseen = UNBOUNDED

    @pytest.fixture
    def conformance_options(self, advised_huge_pages: None) -> Mapping[str, Any]:
        return {"huge": "advise"}


class TestMemfdUnsealed(StrictConformance):
    backend = "memfd"
    title = "memfd without seals"
    options: ClassVar[Mapping[str, Any]] = {"seal": False}
    without = (Capability.SEAL,)
    undeclared = frozenset({Capability.FLUSH, Capability.HUGE_PAGES})
    foreseen = UNBOUNDED
