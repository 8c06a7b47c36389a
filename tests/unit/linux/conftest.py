"""File systems that are mounted once for all tests here; and both implementations of probing."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest

from memplat import _core
from tests.hostparts import any_disk_directory, btrfs_directory, ext4_directory, tmpfs_directory, xfs_directory
from tests.needs import needs

__all__ = ["any_disk_directory", "btrfs_directory", "ext4_directory", "tmpfs_directory", "xfs_directory"]


@pytest.fixture
def choose_probing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Have probing done in Python or compiled, whichever core is chosen, from now on; what is compiled, or ``None``."""

    def choose(core: str) -> Any:
        chosen = _compiled() if core == "native" else None
        monkeypatch.setattr(_core, "PROBING", chosen)
        return chosen

    return choose


def _compiled() -> Any:
    try:
        return importlib.import_module("memplat._native.probing")
    except ImportError as error:
        needs("compiler", str(error))


@pytest.fixture(params=["python", "native"])
def probing(request: pytest.FixtureRequest, choose_probing: Callable[[str], Any]) -> str:
    """Each test with both."""
    choose_probing(request.param)
    return str(request.param)
