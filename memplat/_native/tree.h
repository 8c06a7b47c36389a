/* Runs of equal values that tile [0, size), maximally merged: what memplat/engine/segments.py is in Python.
 *
 * A B+-tree of runs by start. Each slot of an inner node knows the longest run below it of each indexed value, and the
 * most that is left of a run whose start is rounded up to `unit`: so the lowest or the highest run of at least a length
 * is one walk down. Every operation is O(log n), whatever the number of runs and however long they are.
 *
 * Knows nothing of Python and of memory files, and locks nothing: the owner brings the lock. A key is a page number. A
 * value is 64 bits of counts and 32 bits of meta; values with an even meta below 2 * TREE_CLASSES (and counts of 0) are
 * indexed, each as the class meta / 2.
 *
 * C and not Cython, so that it can be compiled and sanitised without an interpreter.
 */

#ifndef MEMPLAT_TREE_H
#define MEMPLAT_TREE_H

#include <stddef.h>
#include <stdint.h>

/* Tests make both small, so that few runs are a deep tree. */
#ifndef TREE_LEAF
#define TREE_LEAF 64 /* runs a leaf */
#endif
#ifndef TREE_FAN
#define TREE_FAN 64 /* children an inner node */
#endif
#define TREE_CLASSES 4 /* indexed values */

typedef struct tree_inner tree_inner;

/* What leaves and inner nodes begin with. */
typedef struct tree_node {
    tree_inner *parent;
    uint32_t count; /* runs or children */
    uint16_t slot;  /* which child of the parent */
    uint16_t level; /* 0 for a leaf */
} tree_node;

typedef struct tree_leaf {
    tree_node head;
    struct tree_leaf *prev, *next;
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

typedef struct tree {
    tree_inner *root;
    tree_leaf *first, *last;
    tree_leaf *hint; /* where the last run was found, or NULL */
    uint64_t unit;   /* 1: no rooms are kept */
    uint64_t size;   /* the end of the last run */
    size_t runs;
    size_t leaves, inners; /* nodes, spare ones included */
    tree_leaf *spare_leaves;
    tree_inner *spare_inners;
    unsigned spare_leaf_count, spare_inner_count;
} tree;

/* A run by its place; it dies with the next change. */
typedef struct tree_spot {
    tree_leaf *leaf;
    unsigned index;
} tree_spot;

/* 0, or -1 if there is no memory. */
int tree_init(tree *t, uint64_t unit);
void tree_clear(tree *t);

/* Make sure that the next change cannot fail, wherever it begins and ends. 0, or -1 if there is no memory. */
int tree_reserve(tree *t);

/* Bytes of all nodes. */
size_t tree_bytes(const tree *t);

/* The run around a key below size. */
tree_spot tree_find(tree *t, uint64_t key);

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
void tree_extend(tree *t, uint64_t size, uint64_t counts, uint32_t meta);

/* Give [start, end), within the run at the spot, another value. After tree_reserve, which lasts for the two pieces of a
 * range that may cut a run; pieces that take whole runs need none. It is merged with what lies before it, and with what
 * lies behind it if join_right. */
void tree_change(tree *t, tree_spot at, uint64_t start, uint64_t end, uint64_t counts, uint32_t meta, int join_right);

/* Give [start, end) the value, whatever runs are there. After tree_reserve. */
void tree_assign(tree *t, uint64_t start, uint64_t end, uint64_t counts, uint32_t meta);

/* Whether any run of the class is at least so long (with a room of so much, if aligned), and which one is the lowest or
 * the highest such. */
int tree_fit(tree *t, unsigned class_, uint64_t length, int aligned, int last, tree_spot *found);

/* The first run of the class that starts at the key or behind it. */
int tree_next_of(tree *t, unsigned class_, uint64_t key, tree_spot *found);

/* The length of the longest run of the class. */
uint64_t tree_longest(const tree *t, unsigned class_);

/* Which invariant does not hold, or NULL. O(n). */
const char *tree_check(const tree *t);

#endif
