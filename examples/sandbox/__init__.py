"""A user-space kernel: runs static x86-64 Linux programs on memory from memplat. ``python -m examples.sandbox``."""
