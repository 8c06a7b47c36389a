"""What the kernel takes for the name of a memfd, and that the backends ask the same."""

from __future__ import annotations

import os

import pytest

from memplat.backends.hugetlb import HugetlbOptions
from memplat.backends.memfd import MemfdOptions
from memplat.linux.names import MAX_NAME_BYTES

both = pytest.mark.parametrize("options", [MemfdOptions, HugetlbOptions])


@both
@pytest.mark.parametrize("name", ["", "x" * MAX_NAME_BYTES, "é" * (MAX_NAME_BYTES // 2), "a/b"])
def test_names_that_the_kernel_takes_are_taken(options: type, name: str) -> None:
    assert options(name=name).name == name
    os.close(os.memfd_create(name))


@both
@pytest.mark.parametrize("name", ["x" * (MAX_NAME_BYTES + 1), "é" * (MAX_NAME_BYTES // 2 + 1)])
def test_a_name_that_is_too_long_for_the_kernel_is_refused(options: type, name: str) -> None:
    with pytest.raises(ValueError, match=r"^name is "):
        options(name=name)
    with pytest.raises(OSError, match="Invalid argument"):
        os.memfd_create(name)


@both
@pytest.mark.parametrize("name", ["a\0b", "\udc80", 7, None, b"bytes"])
def test_what_is_no_name_at_all_is_refused_by_its_option(options: type, name: object) -> None:
    with pytest.raises(ValueError, match=r"^name is .*: allowed are up to 249 bytes without NUL"):
        options(name=name)
