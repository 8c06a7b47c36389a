"""The compiled core, which may be left out: an installation without a compiler works in pure Python."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "memplat._native.core",
            sources=["memplat/_native/core.pyx", "memplat/_native/tree.c"],
            depends=[
                "memplat/_native/tree.h",
                *(f"memplat/_native/{part}.pxi" for part in ("accounts", "calls", "lock", "pages", "reclaim", "views")),
            ],
            extra_compile_args=["-O3", "-fno-strict-aliasing", "-Wall", "-Wextra"],
            optional=True,
        )
    ]
)
