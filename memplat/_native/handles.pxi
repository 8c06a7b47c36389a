# The peer's end of shares: memplat/sharing.py, memplat/windows.py and memplat/peers.py, compiled as far as the connection
# is there, the window shows the pages, and the share is offered. Otherwise nothing has changed, and Python does it.

from libc.string cimport memcmp, memcpy
from posix.unistd cimport close as _close_fd

cdef extern from "Python.h":
    bytes PyBytes_FromStringAndSize(const char*, Py_ssize_t)
    char* PyBytes_AS_STRING(object)
    Py_ssize_t PyBytes_GET_SIZE(object)

cdef extern from *:
    """
    /* An object of a class of Python's whose base is compiled. */
    static PyObject *memplat_new(PyObject *cls) {
        static PyObject *nothing;
        if (!nothing && !(nothing = PyTuple_New(0)))
            return NULL;
        return ((PyTypeObject *)cls)->tp_new((PyTypeObject *)cls, nothing, NULL);
    }
    """
    object memplat_new(object cls)

cdef enum:
    KEY = 16  # bytes of a memory's key
    TOKEN = 32  # with the slot and the number of the share
    FORM = 49  # with the range, and whether it is writable: what the pickled form begins with

cdef struct Token:
    char key[16]
    int64_t slot
    uint64_t number

cdef object _handle_class = None
cdef object _restored = None
cdef object _attach = None
cdef dict _peers = {}
cdef Lock _mutex = None
cdef HotConnection _last_peer = None  # mostly it is that one again; guarded by the mutex
cdef char _last_key[16]


def install_handles(handle_class, restored, attach):
    """Say what a handle is, by which name it comes out of a pickle, and who attaches what is out of the ordinary."""
    global _handle_class, _restored, _attach
    _handle_class = handle_class
    _restored = restored
    _attach = attach


def install_peers(dict connections not None, Lock mutex not None):
    """Say which connections there are, and what guards them."""
    global _peers, _mutex
    _peers = connections
    _mutex = mutex


cdef class HotHandle:
    """The fields of a handle; see :class:`memplat.sharing.HotHandle`."""

    cdef public object pages, writable, _address, _token, _shared
    cdef public int _fd
    cdef public bint _used

    def __cinit__(self):
        self._fd = -1

    def __init__(self, address, token, pages, writable, shared=None):
        self._address = address
        self._token = token
        self.pages = pages
        self.writable = writable
        self._shared = shared

    def __dealloc__(self):
        if self._fd >= 0:
            _close_fd(self._fd)

    def __bytes__(self):
        """As :meth:`memplat.sharing.Handle.__bytes__`."""
        cdef uint64_t start = 0, end = 0
        cdef object packed, address = self._address, token = self._token
        cdef Py_ssize_t more
        cdef char* at
        if (
            self._fd >= 0
            or type(token) is not bytes
            or PyBytes_GET_SIZE(token) != TOKEN
            or type(address) is not bytes
            or not _read_range(self.pages, _NEVER, 0, &start, &end)
        ):
            return self._pack()
        more = PyBytes_GET_SIZE(address)
        packed = PyBytes_FromStringAndSize(NULL, FORM + more)
        at = PyBytes_AS_STRING(packed)
        memcpy(at, PyBytes_AS_STRING(token), TOKEN)
        memcpy(at + TOKEN, &start, 8)
        memcpy(at + TOKEN + 8, &end, 8)
        at[FORM - 1] = 1 if self.writable else 0
        memcpy(at + FORM, PyBytes_AS_STRING(address), more)
        return packed

    def __reduce__(self):
        return _restored, (self.__bytes__(),)


def unpack(packed):
    """As :func:`memplat.sharing._unpack`; ``None`` for what is too short, or no bytes."""
    cdef HotHandle handle
    cdef uint64_t start, end
    cdef char* at
    if type(packed) is not bytes or PyBytes_GET_SIZE(packed) < FORM:
        return None
    handle = memplat_new(_handle_class)
    at = PyBytes_AS_STRING(packed)
    memcpy(&start, at + TOKEN, 8)
    memcpy(&end, at + TOKEN + 8, 8)
    handle._token = PyBytes_FromStringAndSize(at, TOKEN)
    handle._address = PyBytes_FromStringAndSize(at + FORM, PyBytes_GET_SIZE(packed) - FORM)
    handle.pages = make_range(start, end)
    handle.writable = at[FORM - 1] != 0
    return handle


def attach(handle):
    """See :func:`memplat.sharing.attach`."""
    view = _try_attach(handle)
    return _attach(handle) if view is None else view


cdef object _try_attach(handle):
    """The view for a handle or its bytes, if there is nothing out of the ordinary; else ``None``, and nothing has changed."""
    cdef HotHandle plain
    cdef Token token
    cdef uint64_t start = 0, end = 0
    cdef char* at
    if type(handle) is bytes:
        if PyBytes_GET_SIZE(handle) < FORM:
            return None
        at = PyBytes_AS_STRING(handle)
        memcpy(&token, at, TOKEN)
        memcpy(&start, at + TOKEN, 8)
        memcpy(&end, at + TOKEN + 8, 8)
        return _attach_token(&token, start, end)
    if type(handle) is not _handle_class:
        return None
    plain = handle
    if (
        plain._used
        or plain._fd >= 0
        or type(plain._token) is not bytes
        or PyBytes_GET_SIZE(plain._token) != TOKEN
        or type(plain._address) is not bytes
        or not _read_range(plain.pages, _NEVER, 0, &start, &end)
    ):
        return None
    memcpy(&token, PyBytes_AS_STRING(plain._token), TOKEN)
    view = _attach_token(&token, start, end)
    if view is not None:
        plain._used = True
    return view


cdef object _attach_token(const Token* token, uint64_t start, uint64_t end):
    cdef Lock mutex = _mutex
    cdef HotConnection connection
    cdef Attached view = None
    if not mutex._take(-1, False):
        return None
    try:
        connection = _find_peer(token.key)
        if connection is not None:
            view = connection._claim(token, start, end)
    finally:
        mutex._give()
    return None if view is None else PyMemoryView_FromObject(view)


cdef HotConnection _find_peer(const char* key):
    """The connection of that key, or ``None``. With the mutex held."""
    global _last_peer
    cdef PyObject* found
    if _last_peer is not None and not _last_peer.gone and not memcmp(_last_key, key, KEY):
        return _last_peer
    found = PyDict_GetItemWithError(_peers, PyBytes_FromStringAndSize(key, KEY))
    _last_peer = <HotConnection?><object>found if found != NULL else None
    memcpy(_last_key, key, KEY)
    return _last_peer


cdef class HotWindow:
    """The fields of a peer's mapping; see :class:`memplat.windows.HotWindow`."""

    cdef public uint64_t start, end
    cdef public object base
    cdef public set users


cdef class HotConnection:
    """The fields of a peer's connection; see :class:`memplat.peers.HotConnection`."""

    cdef public dict held
    cdef public HotWindow window
    cdef public bint gone, watched, writable
    cdef public HotClaims claims

    cdef Attached _claim(self, const Token* token, uint64_t start, uint64_t end):
        """With the mutex held."""
        cdef HotWindow window = self.window
        cdef HotClaims claims = self.claims
        cdef Attached view
        cdef long slot = token.slot
        if self.gone or not self.watched or window is None or not window.start <= start < end <= window.end:
            return None
        if claims._states == NULL or not 0 <= token.slot < claims._slots or not claims._is_offered(slot, token.number):
            return None
        number = token.number
        if number in self.held:
            return None
        view = Attached.__new__(Attached)
        view._address = <char*><uintptr_t>window.base + start - window.start
        view._length = end - start
        view._readonly = not self.writable
        view._slot = slot
        view._number = number
        view._window = window
        if not claims._try_lock(slot):
            return None
        if not claims._is_offered(slot, token.number):
            claims._unlock(slot)
            return None
        write_state(claims._states + slot, SLOT_ATTACHED)
        self.held[number] = slot
        window.users.add(number)
        view._connection = self  # from now on, its end lets go
        return view

    cdef int _let_go(self, long slot, object number, HotWindow window) except -1:
        """As :meth:`memplat.peers.Connection.let_go`."""
        cdef HotClaims claims = self.claims
        self.held[number] = ~slot
        window.users.discard(number)
        if window is not self.window and not window.users:
            window.close()
        if not self.gone and claims._states != NULL:
            write_state(claims._states + slot, SLOT_ENDED)
            if claims._unlock(slot) and read_word(claims._wanted):
                write_word(claims._wanted, 0)
                self.say_let_go()
        self.held.pop(number, None)
        if not self.held and (self.gone or not self.watched):
            self.hang_up()
        return 0


@cython.final
@cython.no_gc
@cython.freelist(16)
cdef class Attached:
    """What a view of attached pages is made of. Takes no part in garbage collection, as :class:`Exporter`."""

    cdef char* _address
    cdef Py_ssize_t _length
    cdef bint _readonly
    cdef long _slot
    cdef object _number
    cdef HotConnection _connection  # None: nothing is held
    cdef HotWindow _window

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self._address, self._length, self._readonly, flags)

    def __dealloc__(self):
        if self._connection is not None and not _is_finalizing():
            self._connection._let_go(self._slot, self._number, self._window)

    def __repr__(self):
        return f"<exporter of {self._length} bytes>"
