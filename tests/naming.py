"""Names of parametrised tests: the same in every process, as pytest-xdist needs them, and so without addresses."""

from __future__ import annotations

import re


def shown(value: object) -> str:
    """The value as ``repr`` shows it, in 40 characters and without the address of an object."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))[:40]
