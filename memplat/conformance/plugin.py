"""The pytest plugin, entry point ``pytest11``: ``--memplat-backend`` and a line of summary for each backend.

Every run of pytest imports it wherever memplat is installed, so it imports nothing before it is needed.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

#: What ``--memplat-backend`` and ``--memplat-option`` said; read by ``test_backend.py`` when it is collected.
selected: list[str] = []
options: dict[str, Any] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("memplat", "conformance of memplat backends")
    group.addoption(
        "--memplat-backend",
        action="append",
        default=[],
        metavar="NAME",
        help="run the conformance suite on this backend (with --pyargs memplat.conformance); may be repeated",
    )
    group.addoption(
        "--memplat-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the backend, as in memplat.toml: directory=/mnt, huge=advise, seal=false",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Take the options over."""
    selected[:] = config.getoption("--memplat-backend")
    if given := config.getoption("--memplat-option"):
        from memplat.conformance.values import parse_options

        options.clear()
        options.update(parse_options(given))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each backend that was tested."""
    sessions = sys.modules.get("memplat.conformance.sessions")
    reports = sessions.reports() if sessions is not None else []
    if reports:
        terminalreporter.section("memplat conformance")
        for report in reports:
            terminalreporter.write_line(report.statement())
