"""What the tests of shares look at."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import memplat
from memplat.memory import Memory

ROOT: Final = Path(memplat.__file__).parents[1]
#: What the memory was used for before; see conftest.py.
FIRST, AGAIN = "first", "again"


def refs(memory: Memory, pages: memplat.FileRange) -> int:
    """The references of the first page."""
    return memory.inspect(pages.start).refs
