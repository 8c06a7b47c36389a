"""tmpfile, on each file system that it is exact on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from memplat.types import Capability
from tests.conformance.strictness import StrictConformance


class TmpfileConformance(StrictConformance):
    file_system: ClassVar[str]
    undeclared = frozenset({Capability.SEAL, Capability.HUGE_PAGES, Capability.EXECUTE, Capability.SUB_PAGE_DECOMMIT})

    @pytest.fixture
    def conformance_options(self, request: pytest.FixtureRequest) -> Mapping[str, Any]:
        directory: Path = request.getfixturevalue(f"{self.file_system}_directory")
        return {"directory": str(directory)}


class TestTmpfileOnExt4(TmpfileConformance):
    backend = "tmpfile"
    title = "tmpfile on ext4"
    file_system = "ext4"


class TestTmpfileOnXfs(TmpfileConformance):
    backend = "tmpfile"
    title = "tmpfile on xfs"
    file_system = "xfs"


class TestTmpfileOnBtrfs(TmpfileConformance):
    backend = "tmpfile"
    title = "tmpfile on btrfs"
    file_system = "btrfs"


class TestTmpfileOnTmpfs(TmpfileConformance):
    backend = "tmpfile"
    title = "tmpfile on tmpfs"
    file_system = "tmpfs"
    foreseen: ClassVar[Mapping[str, str]] = {"LIFE-11": "there is no disk below"}
