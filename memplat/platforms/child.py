"""The child of a :class:`~memplat.platforms.process.ProcessSpace`: does what it is told, to its own address space."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from multiprocessing import connection as connections
from multiprocessing import reduction
from typing import Any

from memplat.errors import AddressSpaceError, HostError, NotMappedError
from memplat.linux import exporter
from memplat.linux import memory as host
from memplat.platforms.host import reserve_region
from memplat.ranges import Address


class Window:
    """The region of the child, for functions that run there."""

    def __init__(self, first: Address, length: int) -> None:
        self.first = first
        self.length = length

    def view(self, addr: Address, length: int, *, writable: bool = False) -> memoryview:
        """A view of ``[addr, addr + length)``. Touching what is not mapped, or not mapped so, kills the process; do not
        keep it for longer than the call.

        :raises NotMappedError: if it is outside of the region
        """
        if not self.first <= addr <= addr + length <= self.first + self.length:
            raise NotMappedError(f"[{addr:#x}, {addr + length:#x}) is outside of the region")
        return exporter.export(addr, length, writable=writable)


class _Server:
    def __init__(self, connection: connections.Connection[Any, Any], window: Window) -> None:
        self.connection = connection
        self.window = window

    def map_over(self, start: int, length: int, offset: int, protection: int) -> None:
        fd = reduction.recv_handle(self.connection)
        try:
            host.map_over(start, length, fd, offset, protection)
        finally:
            os.close(fd)

    def unmap(self, start: int, length: int) -> None:
        host.reserve_over(start, length)

    def protect(self, start: int, length: int, protection: int) -> None:
        host.protect(start, length, protection)

    def load(self, start: int, length: int) -> bytes:
        return host.copy_from(start, length)

    def store(self, start: int, data: bytes) -> None:
        host.copy_to(start, data)

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return function(self.window, *args, **kwargs)

    def run(self, request: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
        try:
            return True, getattr(self, request)(*arguments)
        except OSError as error:
            if request == "call":
                return False, error
            return False, AddressSpaceError(f"{request} in the child failed: {error}")
        except Exception as error:  # noqa: BLE001 -- told to the parent, which raises it
            return False, error


def serve(connection: connections.Connection[Any, Any], length: int) -> None:
    """Answer requests until the parent hangs up or dies."""
    try:
        server = _Server(connection, Window(reserve_region(length), length))
    except HostError as error:
        connection.send((False, error))
        return
    connection.send((True, server.window.first))
    while True:
        try:
            request, arguments = connection.recv()
        except (EOFError, ConnectionError):
            return
        except Exception as error:  # noqa: BLE001 -- a function that cannot be unpickled here
            connection.send((False, AddressSpaceError(f"the request cannot be read in the child: {error}")))
            continue
        good, value = server.run(request, arguments)
        try:
            packet = pickle.dumps((good, value))
        except Exception as error:  # noqa: BLE001 -- whatever pickling that value may raise
            packet = pickle.dumps((False, AddressSpaceError(f"the result {value!r} cannot be sent back: {error}")))
        connection.send_bytes(packet)


__all__ = ["Window", "serve"]
