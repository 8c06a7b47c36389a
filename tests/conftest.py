"""What all tests share."""

from __future__ import annotations

from tests.needs import need_root, needs

__all__ = ["need_root", "needs"]
