/* Leaves: runs, splitting and merging. */

#ifndef MEMPLAT_TREE_LEAF_H
#define MEMPLAT_TREE_LEAF_H

#include "tree_inner.h"
#include "tree_vector.h"

enum {
    MIN_LEAF = TREE_LEAF * 7 / 16, /* below, a leaf is merged with a neighbour, or gets runs from it; only the last one
                                      may begin with less */
    MERGED_LEAF = TREE_LEAF * 15 / 16, /* as MERGED_FAN */
    TAIL_LEAF = TREE_LEAF / 8 + 1,     /* as TAIL_FAN */
};

/* Work out anew which runs are of a class. */
static void index_leaf(tree_leaf *leaf) {
    memset(leaf->of, 0, sizeof leaf->of);
    for (unsigned i = 0; i < leaf->head.count; i++) {
        int c = class_of(leaf->meta[i]);
        if (c >= 0)
            leaf->of[c] |= (uint64_t)1 << i;
    }
}

/* Move runs, without the end of the last one. Counts, and which are of a class, are the caller's. */
static void move_runs(tree_leaf *to, unsigned at, tree_leaf *source, unsigned from, unsigned count) {
    memmove(to->start + at, source->start + from, count * sizeof *to->start);
    memmove(to->counts + at, source->counts + from, count * sizeof *to->counts);
    memmove(to->meta + at, source->meta + from, count * sizeof *to->meta);
}

static void split_leaf(tree *t, tree_leaf *leaf) {
    unsigned count = leaf->head.count, keep = count - (leaf == t->last ? TAIL_LEAF : count / 2);
    tree_leaf *right = new_leaf(t);
    right->head.count = count - keep;
    move_runs(right, 0, leaf, keep, count - keep);
    right->start[count - keep] = leaf->start[count];
    leaf->head.count = keep;
    for (unsigned c = 0; c < TREE_CLASSES; c++) {
        right->of[c] = leaf->of[c] >> keep;
        leaf->of[c] &= low_bits(keep);
    }
    right->prev = leaf;
    right->next = leaf->next;
    if (right->next)
        right->next->prev = right;
    else
        t->last = right;
    leaf->next = right;
    unsigned spare = t->spare_inner_count;
    insert_child(t, leaf->head.parent, leaf->head.slot + 1u, &right->head, right->start[0]);
    if (t->spare_inner_count == spare) {
        tell_parent(t, &leaf->head); /* what is below the parent altogether has not changed */
        return;
    }
    tell_all(t, &leaf->head);
    tell_all(t, &right->head);
}

static void merge_leaves(tree *t, tree_leaf *left, tree_leaf *right) {
    unsigned had = left->head.count, sum = had + right->head.count;
    move_runs(left, had, right, 0, right->head.count);
    left->start[sum] = right->start[right->head.count];
    left->head.count = sum;
    for (unsigned c = 0; c < TREE_CLASSES; c++)
        left->of[c] |= right->of[c] << had;
    left->next = right->next;
    if (left->next)
        left->next->prev = left;
    else
        t->last = left;
    tell_parent(t, &left->head);
    remove_child(t, left->head.parent, right->head.slot);
    free_leaf(t, right);
}

/* See to it that a leaf has enough runs. Where two become one, the left one stays. */
static void fix_leaf(tree *t, tree_leaf *leaf) {
    tree_inner *parent = leaf->head.parent;
    if (leaf->head.count >= MIN_LEAF || parent->head.count < 2)
        return;
    tree_leaf *left = leaf->head.slot + 1u < parent->head.count ? leaf : leaf->prev, *right = left->next;
    unsigned had = left->head.count, sum = had + right->head.count, keep = sum / 2;
    if (sum <= MERGED_LEAF) {
        merge_leaves(t, left, right);
        return;
    }
    uint64_t end = right->start[right->head.count];
    if (had > keep) {
        move_runs(right, had - keep, right, 0, right->head.count);
        move_runs(right, 0, left, keep, had - keep);
    } else {
        move_runs(left, had, right, 0, keep - had);
        move_runs(right, 0, right, keep - had, right->head.count - (keep - had));
    }
    left->head.count = keep;
    right->head.count = sum - keep;
    right->start[sum - keep] = end;
    left->start[keep] = right->start[0];
    index_leaf(left);
    index_leaf(right);
    set_key(&right->head, right->start[0]);
    tell_parent(t, &left->head);
    tell_parent(t, &right->head);
}

/* -- single runs --------------------------------------------------------------------------------------------------- */

static inline void set_value(tree_leaf *leaf, unsigned index, uint64_t counts, uint32_t meta) {
    leaf->counts[index] = counts;
    leaf->meta[index] = meta;
    for (unsigned c = 0; c < TREE_CLASSES; c++)
        leaf->of[c] = (leaf->of[c] & ~((uint64_t)1 << index)) | ((uint64_t)(meta == 2 * c) << index);
}

static inline int has_value(const tree_leaf *leaf, unsigned index, uint64_t counts, uint32_t meta) {
    return leaf->counts[index] == counts && leaf->meta[index] == meta;
}

/* Make room for one or two runs behind another one, whose end the last of them takes over. The leaf has the places. */
static inline void open_places(tree *t, tree_leaf *leaf, unsigned index, unsigned more) {
    unsigned count = leaf->head.count;
    memmove(leaf->start + index + more, leaf->start + index, (count + 1 - index) * sizeof *leaf->start);
    memmove(leaf->counts + index + more, leaf->counts + index, (count - index) * sizeof *leaf->counts);
    memmove(leaf->meta + index + more, leaf->meta + index, (count - index) * sizeof *leaf->meta);
    uint64_t low = low_bits(index);
    for (unsigned c = 0; c < TREE_CLASSES; c++) {
        uint64_t of = leaf->of[c];
        leaf->of[c] = (of & low) | ((of & ~low) << more);
    }
    leaf->head.count = count + more;
    t->runs += more;
}

/* Take a run out that is not the very first one; its keys go to the one before. At least one run stays in the leaf. */
static inline void remove_run(tree *t, tree_leaf *leaf, unsigned index) {
    unsigned count = --leaf->head.count;
    memmove(leaf->start + index, leaf->start + index + 1, (count + 1 - index) * sizeof *leaf->start);
    memmove(leaf->counts + index, leaf->counts + index + 1, (count - index) * sizeof *leaf->counts);
    memmove(leaf->meta + index, leaf->meta + index + 1, (count - index) * sizeof *leaf->meta);
    uint64_t low = low_bits(index);
    for (unsigned c = 0; c < TREE_CLASSES; c++) {
        uint64_t of = leaf->of[c];
        leaf->of[c] = (of & low) | ((of >> 1) & ~low);
    }
    t->runs--;
    if (!index) {
        leaf->prev->start[leaf->prev->head.count] = leaf->start[0];
        set_key(&leaf->head, leaf->start[0]);
    }
}

/* Move the border between a run and the one before. */
static inline void set_start(tree_leaf *leaf, unsigned index, uint64_t start) {
    leaf->start[index] = start;
    if (!index) {
        leaf->prev->start[leaf->prev->head.count] = start;
        set_key(&leaf->head, start);
    }
}

#endif
