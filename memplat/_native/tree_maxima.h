/* What each slot of an inner node knows of the runs below it. */

#ifndef MEMPLAT_TREE_MAXIMA_H
#define MEMPLAT_TREE_MAXIMA_H

#include "tree.h"
#include "tree_vector.h"

static inline int class_of(uint32_t meta) {
    return meta & 1 || meta >= 2 * TREE_CLASSES ? -1 : (int)(meta >> 1);
}

/* What is left of a run from the first multiple of the unit on, if that is a whole unit. */
static inline uint64_t room_of(const tree *t, uint64_t start, uint64_t end) {
    uint64_t unit = t->unit;
    if (unit <= 1 || end - start < unit)
        return 0;
    uint64_t first = (start + unit - 1) & ~(unit - 1);
    return end >= first + unit ? end - first : 0;
}

static void leaf_maxima(const tree *t, const tree_leaf *leaf, unsigned c, uint64_t *longest, uint64_t *room) {
    uint64_t most = 0, most_room = 0;
    for (uint64_t left = leaf->of[c]; left; left &= left - 1) {
        unsigned i = (unsigned)__builtin_ctzll(left);
        uint64_t length = leaf->start[i + 1] - leaf->start[i];
        if (length > most)
            most = length;
        if (length >= t->unit) {
            uint64_t here = room_of(t, leaf->start[i], leaf->start[i + 1]);
            if (here > most_room)
                most_room = here;
        }
    }
    *longest = most;
    *room = most_room;
}

static void inner_maxima(const tree_inner *inner, unsigned c, uint64_t *longest, uint64_t *room) {
    uint64_t most = 0, most_room = 0;
    for (unsigned i = 0; i < inner->head.count; i++) {
        if (inner->longest[c][i] > most)
            most = inner->longest[c][i];
        if (inner->room[c][i] > most_room)
            most_room = inner->room[c][i];
    }
    *longest = most;
    *room = most_room;
}

/* Tell the parent alone what is below a node. */
static void tell_parent(const tree *t, const tree_node *node) {
    tree_inner *parent = node->parent;
    if (!parent)
        return;
    for (unsigned c = 0; c < TREE_CLASSES; c++) {
        uint64_t *longest = &parent->longest[c][node->slot], *room = &parent->room[c][node->slot];
        if (node->level)
            inner_maxima((const tree_inner *)node, c, longest, room);
        else
            leaf_maxima(t, (const tree_leaf *)node, c, longest, room);
    }
}

/* Tell everybody above, whether or not it changes anything. */
static void tell_all(const tree *t, const tree_node *node) {
    for (; node->parent; node = &node->parent->head)
        tell_parent(t, node);
}

static uint64_t greatest(const tree *t, const uint64_t *values, unsigned count) {
#if TREE_HAS_WIDE
    if (t->is_wide)
        return greatest_wide(values, count);
#endif
    (void)t;
    return greatest_plain(values, count);
}

/* One of a node's values has changed from *old* to *new*; *most* was the greatest of them before. Which is it now? */
static inline uint64_t still_greatest(
    const tree *t, const uint64_t *values, unsigned count, uint64_t most, uint64_t old, uint64_t new) {
    if (new >= most)
        return new;
    return old < most ? most : greatest(t, values, count);
}

/* Tell those above of another value below a node, as long as it changes what they know. */
static void tell_lengths(const tree *t, const tree_node *node, unsigned c, uint64_t value) {
    for (tree_inner *parent; (parent = node->parent) != NULL; node = &parent->head) {
        uint64_t old = parent->longest[c][node->slot];
        if (old == value)
            return;
        parent->longest[c][node->slot] = value;
        const tree_inner *above = parent->head.parent;
        if (above)
            value = still_greatest(
                t, parent->longest[c], parent->head.count, above->longest[c][parent->head.slot], old, value);
    }
}

static void tell_rooms(const tree *t, const tree_node *node, unsigned c, uint64_t value) {
    for (tree_inner *parent; (parent = node->parent) != NULL; node = &parent->head) {
        uint64_t old = parent->room[c][node->slot];
        if (old == value)
            return;
        parent->room[c][node->slot] = value;
        const tree_inner *above = parent->head.parent;
        if (above)
            value = still_greatest(
                t, parent->room[c], parent->head.count, above->room[c][parent->head.slot], old, value);
    }
}

/* A class has changed in a leaf, perhaps for the less: work it out anew, and tell all above whom it concerns. */
static void refresh(const tree *t, const tree_leaf *leaf, unsigned c) {
    uint64_t longest, room;
    leaf_maxima(t, leaf, c, &longest, &room);
    /* Without a run of a whole unit, before and now, there is no room: then it is not worth a look. */
    if (t->unit > 1 && (room || leaf->head.parent->longest[c][leaf->head.slot] >= t->unit))
        tell_rooms(t, &leaf->head, c, room);
    tell_lengths(t, &leaf->head, c, longest);
}

/* A run of a class has come to a leaf: tell all above that know of no longer one. */
static void tell_new(const tree *t, const tree_leaf *leaf, unsigned c, uint64_t start, uint64_t end) {
    uint64_t length = end - start, room = room_of(t, start, end);
    const tree_node *node = &leaf->head;
    for (tree_inner *parent; (parent = node->parent) != NULL; node = &parent->head) {
        uint64_t *longest = &parent->longest[c][node->slot];
        if (*longest >= length && (!room || parent->room[c][node->slot] >= room))
            return;
        if (*longest < length)
            *longest = length;
        if (room && parent->room[c][node->slot] < room)
            parent->room[c][node->slot] = room;
    }
}

/* Whether a leaf's maxima may fall when such a run goes. */
static int counts_for(const tree *t, const tree_leaf *leaf, unsigned c, uint64_t start, uint64_t end) {
    const tree_inner *parent = leaf->head.parent;
    unsigned slot = leaf->head.slot;
    if (parent->longest[c][slot] == end - start)
        return 1;
    uint64_t room = room_of(t, start, end);
    return room && room == parent->room[c][slot];
}

#endif
