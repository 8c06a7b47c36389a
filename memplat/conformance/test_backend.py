"""What ``pytest --pyargs memplat.conformance --memplat-backend NAME`` collects: a class of tests for each name."""

from __future__ import annotations

import pytest

from memplat.conformance import plugin
from memplat.conformance.pytest_class import BackendConformance

if not plugin.selected:
    raise pytest.UsageError("name the backend to be tested: pytest --pyargs memplat.conformance --memplat-backend NAME")

for _name in plugin.selected:
    _class = f"Test_{_name}".replace("-", "_")
    globals()[_class] = type(
        _class, (BackendConformance,), {"backend": _name, "options": dict(plugin.options), "__module__": __name__}
    )
