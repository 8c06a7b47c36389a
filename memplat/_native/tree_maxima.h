/* What each slot of an inner node knows of the runs below it. */

#ifndef MEMPLAT_TREE_MAXIMA_H
#define MEMPLAT_TREE_MAXIMA_H

#include "tree.h"

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

static uint64_t greatest(const uint64_t *values, unsigned count) {
    uint64_t most = 0;
    for (unsigned i = 0; i < count; i++)
        most = values[i] > most ? values[i] : most;
    return most;
}

/* The greatest of the values, one of which has changed from the old one to the new one; it was most before. */
static inline uint64_t still_greatest(const uint64_t *values, unsigned count, uint64_t most, uint64_t old, uint64_t new) {
    if (new >= most)
        return new;
    return old < most ? most : greatest(values, count);
}

/* A class has changed in a leaf, perhaps for the less: work it out anew, and tell all above whom it concerns. */
static void refresh(const tree *t, const tree_leaf *leaf, unsigned c) {
    uint64_t longest, room;
    leaf_maxima(t, leaf, c, &longest, &room);
    const tree_node *node = &leaf->head;
    for (tree_inner *parent; (parent = node->parent) != NULL; node = &parent->head) {
        unsigned slot = node->slot, count = parent->head.count;
        uint64_t old = parent->longest[c][slot], old_room = parent->room[c][slot];
        if (old == longest && old_room == room)
            return;
        parent->longest[c][slot] = longest;
        parent->room[c][slot] = room;
        const tree_inner *above = parent->head.parent;
        if (!above)
            return;
        unsigned place = parent->head.slot;
        longest = still_greatest(parent->longest[c], count, above->longest[c][place], old, longest);
        room = still_greatest(parent->room[c], count, above->room[c][place], old_room, room);
    }
}

/* A run of a class has come to a leaf: tell all above that know of no longer one. */
static void tell_new(const tree *t, const tree_leaf *leaf, unsigned c, uint64_t start, uint64_t end) {
    uint64_t length = end - start, room = room_of(t, start, end);
    const tree_node *node = &leaf->head;
    for (tree_inner *parent; (parent = node->parent) != NULL; node = &parent->head) {
        uint64_t *longest = &parent->longest[c][node->slot], *most_room = &parent->room[c][node->slot];
        if (*longest >= length && *most_room >= room)
            return;
        if (*longest < length)
            *longest = length;
        if (*most_room < room)
            *most_room = room;
    }
}

/* Whether a leaf's maxima may fall when such a run goes. */
static int counts_for(const tree *t, const tree_leaf *leaf, unsigned c, uint64_t start, uint64_t end) {
    const tree_inner *parent = leaf->head.parent;
    unsigned slot = leaf->head.slot;
    if (parent->longest[c][slot] == end - start)
        return 1;
    uint64_t room = parent->room[c][slot];
    return room && room == room_of(t, start, end);
}

#endif
