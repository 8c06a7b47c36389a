"""What this host offers, what a configuration comes to on it, and what could be mended: for operators.

``host.py``, ``kernel.py`` and ``places.py`` look at the host and say what they found; ``candidates.py`` does what
:func:`memplat.open` would do with each backend, but for opening a memory; ``diagnosis.py`` puts it together. Nothing is
changed, and nothing is left behind.
"""

from __future__ import annotations

from memplat.doctor.candidates import Row, Survey, survey
from memplat.doctor.diagnosis import Diagnosis, diagnose
from memplat.doctor.findings import Finding, Mending, State

__all__ = ["Diagnosis", "Finding", "Mending", "Row", "State", "Survey", "diagnose", "survey"]
