"""Buffers of raw memory that tell when their last user is gone.

A view of our memory is a memoryview, and whatever is derived from it (slices, casts, numpy arrays) keeps alive what the
memoryview was made of: the *exporter*. So the exporter has to know address, length and whether writing is allowed, and
to tell when it dies. No type of the standard library is all that (a class of Python code can export buffers from 3.12
on only), but PyType_FromSpecWithBases makes one: an ``int`` with a ``bf_getbuffer``.
(https://docs.python.org/3/c-api/typeobj.html#buffer-object-structures)

Exporters take no part in garbage collection. The collector would finalize one that is only referred to by a cycle
before another object of that cycle has had its last look at the memory.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Callable
from typing import Any, Final, NoReturn

_PY_BF_GETBUFFER: Final = 1  # <typeslots.h>
_TPFLAGS_BASETYPE: Final = 1 << 10  # <object.h>


class _Slot(ctypes.Structure):
    _fields_ = [("slot", ctypes.c_int), ("pfunc", ctypes.c_void_p)]


class _Spec(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("basicsize", ctypes.c_int),
        ("itemsize", ctypes.c_int),
        ("flags", ctypes.c_uint),
        ("slots", ctypes.POINTER(_Slot)),
    ]


_fill_info = ctypes.PYFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.py_object,
    ctypes.c_void_p,
    ctypes.c_ssize_t,
    ctypes.c_int,
    ctypes.c_int,
)(("PyBuffer_FillInfo", ctypes.pythonapi))

#: What each living exporter exports, by its id: address, length, read-only, whom to tell. Not by its number, which
#: everybody can give to an exporter of his own.
_living: dict[int, tuple[int, int, bool, Callable[[], None] | None]] = {}
_numbers = itertools.count(1)


def _get_buffer(exporter: Any, view: int, flags: int) -> int:
    """bf_getbuffer. -1 for a refusal, without an exception: a callback cannot leave one behind."""
    try:
        address, length, readonly, _ = _living[id(exporter)]
        return int(_fill_info(view, exporter, address, length, readonly, flags))
    except (BufferError, KeyError):
        ctypes.c_void_p.from_address(view + ctypes.sizeof(ctypes.c_void_p)).value = None  # view->obj, as documented
        return -1


def _make_base() -> type:
    callback = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p, ctypes.c_int)(_get_buffer)
    slots = (_Slot * 2)(_Slot(_PY_BF_GETBUFFER, ctypes.cast(callback, ctypes.c_void_p).value), _Slot(0, None))
    spec = _Spec(b"memplat.linux.exporter.ExporterBase", 0, 0, _TPFLAGS_BASETYPE, slots)
    make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.POINTER(_Spec), ctypes.py_object)(
        ("PyType_FromSpecWithBases", ctypes.pythonapi)
    )
    made = make(ctypes.byref(spec), (int,))
    assert isinstance(made, type)
    _keep.append((callback, slots, spec))
    return made


_untrack = ctypes.PYFUNCTYPE(None, ctypes.py_object)(("PyObject_GC_UnTrack", ctypes.pythonapi))
_keep: list[Any] = []  # what the interpreter may go on pointing to
_Base: Any = _make_base()


class Exporter(_Base):  # type: ignore[misc]  # made at run time
    """What a memoryview is made of; a number of no meaning."""

    __slots__ = ()

    # An interpreter that ends may have emptied the modules already, this one too, and needs to hear nothing any more.
    def __del__(self, living: Any = _living, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        mine = living.pop(id(self), None)  # None: made by somebody else, and exports nothing
        if mine is not None and mine[3] is not None and not is_finalizing():
            mine[3]()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("what a view is made of cannot be copied or pickled: copy the bytes of the view")

    def __repr__(self) -> str:
        return f"<exporter of {_living.get(id(self), (0, 0))[1]} bytes>"


def export(address: int, length: int, *, writable: bool, release: Callable[[], None] | None = None) -> memoryview:
    """A view of *length* bytes at *address*. *release* is called when the last view derived from it has died: in any
    thread, at any moment. The memory has to be there until then.

    ``view.obj`` is the exporter, which gives access to the same bytes and no more, and writes only if *writable*.
    """
    exporter = Exporter(next(_numbers))
    _living[id(exporter)] = address, length, not writable, release
    _untrack(exporter)
    return memoryview(exporter)
