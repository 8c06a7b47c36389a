"""What all tests share."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from tests.hostparts import quiet
from tests.needs import need_root, needs

__all__ = ["need_root", "needs"]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """In a process of pytest-xdist, stop the coverage that pytest-cov has begun there as if it were the first process:
    it would go on below the real one, also for tests that are marked ``no_cover``.
    """
    plugin = session.config.pluginmanager.getplugin("_cov")
    if hasattr(session.config, "workerinput") and getattr(plugin, "cov_controller", None) is not None:
        plugin.cov_controller.cov.stop()


def pytest_configure(config: pytest.Config) -> None:
    """Let SIGTERM (of ``timeout``, of CI) end the run as an interrupt does: mounts and swap are put back. The processes
    of pytest-xdist get it too, because they would be killed soon after this one has ended.
    """
    runner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != runner:
            os._exit(128 + number)  # a forked child has nothing to put back
        if getattr(config.option, "numprocesses", None):
            for child in Path(f"/proc/self/task/{runner}/children").read_text(encoding="ascii").split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGTERM, end)


@pytest.fixture(autouse=True)
def _beside_others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests run in several processes; one that changes what the others stand on waits until it has the host alone."""
    several = "PYTEST_XDIST_WORKER" in os.environ
    quiet.open(tmp_path_factory.getbasetemp().parent if several else None)
    with quiet.shared():
        yield
