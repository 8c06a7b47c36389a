"""Every system call that memplat makes beyond the standard library, each naming its man page. The only ctypes.

The functions here know nothing of memplat's states: they take descriptors, addresses and offsets in bytes, and raise
:class:`OSError` with the host's ``errno``. Policy is the caller's.
"""
