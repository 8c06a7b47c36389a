/* Runs of equal values that tile [0, size), maximally merged: what memplat/engine/segments.py is in Python.
 *
 * A B+-tree of runs by start. Each slot of an inner node knows the longest run below it of each indexed value, and the
 * most that is left of a run whose start is rounded up to `unit`: so the lowest or the highest run of at least a length
 * is one walk down. Every operation is O(log n), whatever the number of runs and however long they are.
 *
 * Knows nothing of Python and of memory files, and locks nothing: the owner brings the lock. A key is a page number
 * below 2**63. A value is 64 bits of counts and 32 bits of meta; values with an even meta below 2 * TREE_CLASSES (and
 * counts of 0) are indexed, each as the class meta / 2.
 *
 * C and not Cython, so that it can be compiled and sanitised without an interpreter. The extension includes tree.c, so
 * that the compiler sees all that a call from Python does at once.
 */

#ifndef MEMPLAT_TREE_H
#define MEMPLAT_TREE_H

#include <stddef.h>
#include <stdint.h>

/* Tests make both small, so that few runs are a deep tree. */
#ifndef TREE_LEAF
#define TREE_LEAF 64 /* runs a leaf: at most 64, and a multiple of 4 */
#endif
#ifndef TREE_FAN
#define TREE_FAN 64 /* children an inner node; as TREE_LEAF */
#endif
#define TREE_CLASSES 4 /* indexed values */

#ifndef TREE_API
#define TREE_API /* where tree.c is included, static */
#endif

typedef struct tree_inner tree_inner;

/* What leaves and inner nodes begin with. */
typedef struct tree_node {
    tree_inner *parent;
    uint32_t count; /* runs or children */
    uint16_t slot;  /* which child of the parent */
    uint8_t level;  /* 0 for a leaf */
    uint8_t in_chunk;
} tree_node;

/* Lines of the cache decide what a change of one among millions of runs costs: what a search reads stands together. */
typedef struct tree_leaf {
    tree_node head;
    struct tree_leaf *prev, *next;
    uint64_t of[TREE_CLASSES];     /* which runs are of a class, a bit a run */
    uint64_t start[TREE_LEAF + 1]; /* start[count] is the end of the last run */
    uint64_t counts[TREE_LEAF];
    uint32_t meta[TREE_LEAF];
} tree_leaf;

struct tree_inner {
    tree_node head;
    uint64_t key[TREE_FAN]; /* the first start below each child */
    tree_node *child[TREE_FAN];
    uint64_t longest[TREE_CLASSES][TREE_FAN]; /* the longest run of a class below each child, in keys */
    uint64_t room[TREE_CLASSES][TREE_FAN];    /* the most that is left of one from a multiple of unit on; 0 if < unit */
};

/* Where nodes of one size come from: the first ones from malloc, a million from huge pages; see tree_pool.h. */
typedef struct tree_pool {
    struct tree_chunk *chunks; /* those with free nodes */
    size_t size;               /* of a node */
    size_t singles;            /* nodes from malloc */
    size_t chunk_count;
    unsigned empty_chunks;
} tree_pool;

typedef struct tree {
    tree_inner *root;
    tree_leaf *first, *last;
    tree_leaf *hint; /* where the last run was found, or NULL */
    uint64_t unit;   /* 1: no rooms are kept */
    uint64_t size;   /* the end of the last run */
    size_t runs;
    int is_wide; /* the processor compares four keys at a time */
    unsigned spare_leaf_count, spare_inner_count;
    tree_leaf *spare_leaves;
    tree_inner *spare_inners;
    tree_pool leaves, inners;
} tree;

/* A run by its place; it dies with the next change. */
typedef struct tree_spot {
    tree_leaf *leaf;
    unsigned index;
} tree_spot;

/* 0, or -1 if there is no memory. */
TREE_API int tree_init(tree *t, uint64_t unit);
TREE_API void tree_clear(tree *t);

/* Make sure that the next change cannot fail, wherever it begins and ends. 0, or -1 if there is no memory. */
TREE_API int tree_reserve(tree *t);

/* Bytes of all nodes, and of the room for more that was got with them. */
TREE_API size_t tree_bytes(const tree *t);

/* The run around a key below size. */
TREE_API tree_spot tree_find(tree *t, uint64_t key);

/* The run behind; its leaf is NULL behind the last one. */
static inline tree_spot tree_next(tree_spot at) {
    tree_spot next = {at.leaf, at.index + 1};
    if (next.index >= at.leaf->head.count) {
        next.leaf = at.leaf->next;
        next.index = 0;
    }
    return next;
}

/* Make the domain larger; the new keys get the value. After tree_reserve. */
TREE_API void tree_extend(tree *t, uint64_t size, uint64_t counts, uint32_t meta);

/* Give [start, end), within the run at the spot, another value. After tree_reserve, which lasts for the two pieces of a
 * range that may cut a run; pieces that take whole runs need none. It is merged with what lies before it, and with what
 * lies behind it if join_right. */
TREE_API void tree_change(
    tree *t, tree_spot at, uint64_t start, uint64_t end, uint64_t counts, uint32_t meta, int join_right);

/* Give [start, end) the value, whatever runs are there. After tree_reserve. */
TREE_API void tree_assign(tree *t, uint64_t start, uint64_t end, uint64_t counts, uint32_t meta);

/* Whether any run of the class is at least so long (with a room of so much, if aligned), and which one is the lowest or
 * the highest such. */
TREE_API int tree_fit(tree *t, unsigned class_, uint64_t length, int aligned, int last, tree_spot *found);

/* The first run of the class that starts at the key or behind it. */
TREE_API int tree_next_of(tree *t, unsigned class_, uint64_t key, tree_spot *found);

/* The length of the longest run of the class. */
TREE_API uint64_t tree_longest(const tree *t, unsigned class_);

/* Which invariant does not hold, or NULL. O(n). */
TREE_API const char *tree_check(const tree *t);

#endif
