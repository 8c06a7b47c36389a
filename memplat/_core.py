"""Which core is used: the compiled one where it was built, else the one in Python, which it was made after.

``MEMPLAT_CORE=python|native`` forces one of them.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Final

from memplat.errors import ConfigError

VARIABLE: Final = "MEMPLAT_CORE"
PYTHON: Final = "python"
NATIVE: Final = "native"


def _choose() -> tuple[str, ModuleType | None, ModuleType | None, ModuleType | None, str]:
    """The core's name, the modules of the compiled one (the engine's part, system calls in batches, and what a file
    holds), and why it is this one.

    :raises ConfigError: the environment asks for a core that is not there
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", PYTHON, NATIVE):
        raise ConfigError(f"{wanted!r} is no core; allowed are {PYTHON!r} and {NATIVE!r}", key=VARIABLE)
    if wanted == PYTHON:
        return PYTHON, None, None, None, f"{VARIABLE} asks for it"
    try:
        module = importlib.import_module("memplat._native.core")
        batching = importlib.import_module("memplat._native.batching")
        probing = importlib.import_module("memplat._native.probing")
    except ImportError as error:
        if wanted:
            raise ConfigError(
                f"the compiled core cannot be loaded ({error}): install memplat where there is a C compiler, or unset "
                f"{VARIABLE}",
                key=VARIABLE,
            ) from error
        return PYTHON, None, None, None, f"the compiled core is not there ({error})"
    return NATIVE, module, batching, probing, f"{VARIABLE} asks for it" if wanted else "it was built"


NAME, MODULE, BATCHING, PROBING, REASON = _choose()
