"""``python -m memplat``: the command line."""

from __future__ import annotations

from memplat.cli import main

if __name__ == "__main__":
    main()
