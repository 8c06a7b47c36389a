"""``python -m benchmarks``: apart from the command, because processes that are spawned cannot import this module."""

import sys

from benchmarks.command import main

if __name__ == "__main__":
    sys.exit(main())
