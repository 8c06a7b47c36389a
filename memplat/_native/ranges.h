/* FileRange: made of two numbers, read, and used again.
 *
 * A range is a tuple of two ints. To make and to free these three objects takes more time than to allocate the pages,
 * and among a million of them the allocator's own notes lie in memory that nobody has touched for long. So ranges that
 * die are kept, a few, with their ints, and the next ones are made of them. Nobody can see that: a range is only kept
 * when its last reference has gone, and so is an int.
 *
 * All this only where it was tested: in Python 3.11, with the GIL, and where the interpreter keeps no lists of all objects.
 * Elsewhere ranges are made as any tuple is.
 */

#ifndef MEMPLAT_RANGES_H
#define MEMPLAT_RANGES_H

#include <Python.h>
#include <stdint.h>

#if defined(Py_GIL_DISABLED) || defined(Py_TRACE_REFS) || PY_VERSION_HEX >= 0x030C0000
#define RANGES_KEEP 0
#else
#define RANGES_KEEP 1
#endif

#if RANGES_KEEP && PYLONG_BITS_IN_DIGIT == 30 && UINTPTR_MAX > UINT32_MAX
#define RANGES_KNOW_INTS 1
#include <cpython/longintrepr.h>
#else
#define RANGES_KNOW_INTS 0
#endif

enum { SPARE_RANGES = 64, LARGEST_SHARED_INT = 256 };

static PyTypeObject *range_type;
static int ranges_are_kept; /* FileRange has free_range */
static PyObject *spare_ranges[SPARE_RANGES];
static int spare_range_count;

/* Whether the object is an int, and from 0 up to 2**63 - 1: which one. Sets no error. */
static inline int read_int(PyObject *object, uint64_t *value) {
    if (!PyLong_CheckExact(object))
        return 0;
#if RANGES_KNOW_INTS
    const digit *digits = ((PyLongObject *)object)->ob_digit;
    Py_ssize_t size = Py_SIZE(object);
    if (size == 2 || size == 1) {
        *value = size == 2 ? (uint64_t)digits[1] << 30 | digits[0] : digits[0];
        return 1;
    }
#endif
    int overflow;
    long long found = PyLong_AsLongLongAndOverflow(object, &overflow);
    *value = (uint64_t)found;
    return !overflow && found >= 0;
}

/* The collector has two words before each object: its lists, the first one 0 if the object is in none; and, of an object in
 * none, nothing in the second one but two flags below. So a range that is in none can say there, too, where it begins and
 * how long it is, in pages of 4 KiB. To read that takes one line of the cache that the end of the range reads anyway; to
 * read the ints takes one or two more, and only after the range itself has come. Nobody can change the ints.
 */
enum { NOTE_PAGE = 12, NOTE_LENGTH = 22, NOTE_FLAGS = 2 };

#if RANGES_KNOW_INTS

static inline void note_ends(PyObject *range, uint64_t start, uint64_t end) {
    uint64_t length = end - start;
    int fits = start < end && !((start | end) & ((1 << NOTE_PAGE) - 1)) && !(length >> (NOTE_PAGE + NOTE_LENGTH)) &&
               !(start >> (64 - NOTE_FLAGS - NOTE_LENGTH + NOTE_PAGE));
    uint64_t noted = (start >> NOTE_PAGE << NOTE_LENGTH | length >> NOTE_PAGE) << NOTE_FLAGS;
    ((uintptr_t *)range)[-1] = fits ? noted : 0;
}

/* Whether a range has noted its ends: which ones. */
static inline int read_note(const PyObject *range, uint64_t *start, uint64_t *end) {
    const uintptr_t *before = (const uintptr_t *)range - 2;
    uint64_t noted = before[1] >> NOTE_FLAGS;
    if (before[0] || !noted)
        return 0;
    *start = noted >> NOTE_LENGTH << NOTE_PAGE;
    *end = *start + ((noted & ((1 << NOTE_LENGTH) - 1)) << NOTE_PAGE);
    return 1;
}

#endif

/* Whether the items of a pair, which is a FileRange, are ints from 0 up to 2**63 - 1: which ones. */
static inline int read_ends(PyObject *range, uint64_t *start, uint64_t *end) {
    PyObject **items = ((PyTupleObject *)range)->ob_item;
#if RANGES_KNOW_INTS
    if (read_note(range, start, end)) {
        __builtin_prefetch(items[0]); /* what the end of the range will read */
        __builtin_prefetch(items[1]);
        return 1;
    }
#endif
    __builtin_prefetch((const char *)range - 2 * sizeof(void *)); /* and this */
    return read_int(items[0], start) && read_int(items[1], end);
}

/* An int, made of one that nobody else has if there is one; takes that over. */
static inline PyObject *make_int(PyObject *own, uint64_t value) {
#if RANGES_KNOW_INTS
    if (own) {
        digit *digits = ((PyLongObject *)own)->ob_digit;
        Py_ssize_t size = Py_SIZE(own);
        uint64_t high = value >> 30;
        if (high ? size == 2 && high < (uint64_t)1 << 30 : size == 1 && value > LARGEST_SHARED_INT) {
            digits[0] = (digit)(value & (((uint64_t)1 << 30) - 1));
            if (high)
                digits[1] = (digit)high;
            return own;
        }
    }
#endif
    Py_XDECREF(own);
    return PyLong_FromUnsignedLongLong(value);
}

/* What the collector has before each object, in 3.11. Whoever makes many tuples sets it off again and again, although it
 * has nothing to find among ranges: so they are got and given back without being counted, always both. */
enum { COLLECTORS = 2 * sizeof(void *) };

static inline PyObject *get_range(void) {
#if RANGES_KNOW_INTS
    if (ranges_are_kept) {
        char *got = PyObject_Calloc(1, COLLECTORS + sizeof(PyTupleObject) + sizeof(PyObject *));
        return got ? PyObject_Init((PyObject *)(got + COLLECTORS), range_type) : PyErr_NoMemory();
    }
#endif
    PyObject *range = range_type->tp_alloc(range_type, 2);
    if (range)
        PyObject_GC_UnTrack(range);
    return range;
}

/* A new range; NULL, and an error, if there is no memory. The collector need not look at it: it only holds integers. */
static inline PyObject *make_range(uint64_t start, uint64_t end) {
    PyObject *range;
    if (spare_range_count) {
        range = spare_ranges[--spare_range_count];
        PyObject_InitVar((PyVarObject *)range, range_type, 2);
    } else {
        range = get_range();
        if (!range)
            return NULL;
        Py_SET_SIZE(range, 2);
    }
    PyObject **items = ((PyTupleObject *)range)->ob_item;
    items[0] = make_int(items[0], start);
    items[1] = make_int(items[1], end);
#if RANGES_KNOW_INTS
    note_ends(range, start, end);
#endif
    if (items[0] && items[1])
        return range;
    Py_DECREF(range);
    return NULL;
}

#if RANGES_KEEP

/* Keep an int if nobody else has it. */
static inline PyObject *own_int(PyObject *object) {
    if (RANGES_KNOW_INTS && Py_REFCNT(object) == 1)
        return object;
    Py_DECREF(object);
    return NULL;
}

/* What tp_dealloc of FileRange is: also the end of what object of a subclass subtype_dealloc leaves to its base. */
static void free_range(PyObject *range) {
    PyTypeObject *type = Py_TYPE(range);
    PyObject **items = ((PyTupleObject *)range)->ob_item;
    PyObject_GC_UnTrack(range);
    if (type == range_type && Py_SIZE(range) == 2 && items[0] && items[1] && PyLong_CheckExact(items[0]) &&
        PyLong_CheckExact(items[1])) {
        if (spare_range_count < SPARE_RANGES) {
            items[0] = own_int(items[0]);
            items[1] = own_int(items[1]);
            spare_ranges[spare_range_count++] = range;
            Py_DECREF(type);
            return;
        }
#if RANGES_KNOW_INTS
        Py_DECREF(items[0]);
        Py_DECREF(items[1]);
        PyObject_Free((char *)range - COLLECTORS);
        Py_DECREF(type);
        return;
#endif
    }
    Py_TRASHCAN_BEGIN(range, free_range)
    PyTuple_Type.tp_dealloc(range);
    Py_DECREF(type); /* a base that is a heap type does that, for its subclasses too */
    Py_TRASHCAN_END
}

#endif

/* Say which class FileRange is. It has to be a plain named tuple. */
static void adopt_ranges(PyTypeObject *type) {
    range_type = type;
#if RANGES_KEEP
    if (type->tp_base == &PyTuple_Type && type->tp_basicsize == PyTuple_Type.tp_basicsize && !type->tp_dictoffset &&
        !type->tp_weaklistoffset && !type->tp_del && !type->tp_finalize) {
        type->tp_dealloc = free_range;
        ranges_are_kept = 1;
    }
#endif
}

#endif
