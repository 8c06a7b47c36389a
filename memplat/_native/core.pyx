# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True, binding=False, embedsignature=True, nonecheck=False, auto_pickle=False
# cython: embedsignature.format=clinic
"""The compiled core: the same as memplat/engine/pages.py and its neighbours in Python, which are the specification.

One module, because the parts call each other in nanoseconds; each part has a file of its own.
"""

include "lock.pxi"
include "accounts.pxi"
include "pages.pxi"
include "batches.pxi"
include "reclaim.pxi"
include "runs.pxi"
include "views.pxi"
include "sparse.pxi"
include "recycle.pxi"
include "claims.pxi"
include "handles.pxi"
include "shares.pxi"
include "calls.pxi"
include "charge.pxi"
include "quick.pxi"
