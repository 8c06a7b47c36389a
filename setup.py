"""The compiled core, which may be left out: an installation without a compiler works in pure Python."""

from setuptools import Extension, setup

_PARTS = ("accounts", "calls", "lock", "pages", "reclaim", "recycle", "views")
_ARGS = ["-O3", "-fno-strict-aliasing", "-Wall", "-Wextra"]

setup(
    ext_modules=[
        Extension(
            "memplat._native.core",
            sources=["memplat/_native/core.pyx", "memplat/_native/tree.c"],
            depends=[
                "memplat/_native/tree.h",
                "memplat/_native/present.h",
                *(f"memplat/_native/{part}.pxi" for part in _PARTS),
            ],
            extra_compile_args=_ARGS,
            optional=True,
        ),
        Extension(
            "memplat._native.batching",
            sources=["memplat/_native/batching.pyx"],
            depends=["memplat/_native/present.h"],
            extra_compile_args=_ARGS,
            optional=True,
        ),
    ]
)
