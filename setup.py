"""The compiled core, which may be left out: an installation without a compiler works in pure Python."""

from pathlib import Path

from setuptools import Extension, setup

_HERE = Path("memplat/_native")
_ARGS = ["-O3", "-fno-strict-aliasing", "-fvisibility=hidden", "-Wall", "-Wextra"]

setup(
    ext_modules=[
        Extension(
            "memplat._native.core",
            sources=["memplat/_native/core.pyx"],
            # core.pyx includes all of them: the tree is C, but compiled together with what calls it.
            depends=[
                str(path) for path in sorted(_HERE.iterdir()) if path.suffix in (".pxi", ".h") or path.name == "tree.c"
            ],
            extra_compile_args=_ARGS,
            optional=True,
        ),
        Extension(
            "memplat._native.batching",
            sources=["memplat/_native/batching.pyx"],
            depends=[f"memplat/_native/{name}.h" for name in ("present", "together", "probe")],
            extra_compile_args=_ARGS,
            optional=True,
        ),
        Extension(
            "memplat._native.probing",
            sources=["memplat/_native/probing.pyx"],
            depends=["memplat/_native/probe.h"],
            extra_compile_args=_ARGS,
            optional=True,
        ),
    ]
)
