/* Finding runs by place, by length and by class. */

#ifndef MEMPLAT_TREE_FIND_H
#define MEMPLAT_TREE_FIND_H

#include "tree_leaf.h"

/* Ask for all lines of a leaf at once, before it is known which ones are needed: of a large tree it is in no cache. */
static inline void fetch_leaf(const tree *t, const tree_node *leaf) {
    if (!t->leaves.chunk_count)
        return;
    const char *at = (const char *)leaf;
    for (unsigned offset = 0; offset < sizeof(tree_leaf); offset += 64)
        __builtin_prefetch(at + offset);
}

#if TREE_HAS_WIDE

TREE_WIDE static tree_spot find_wide(tree *t, uint64_t key) {
    tree_leaf *leaf = t->hint;
    if (!leaf || key < leaf->start[0] || key >= leaf->start[leaf->head.count]) {
        const tree_node *node = &t->root->head;
        for (unsigned level = node->level; level; level--) {
            const tree_inner *inner = (const tree_inner *)node;
            node = inner->child[rank_wide(inner->key, TREE_FAN, inner->head.count, key) - 1];
        }
        fetch_leaf(t, node);
        t->hint = leaf = (tree_leaf *)node;
    }
    tree_spot spot = {leaf, rank_wide(leaf->start, TREE_LEAF, leaf->head.count, key) - 1};
    return spot;
}

TREE_WIDE static unsigned first_in_wide(const tree_inner *inner, const uint64_t *weights, uint64_t weight) {
    return first_wide(weights, TREE_FAN, inner->head.count, weight);
}

#endif

static tree_spot find_plain(tree *t, uint64_t key) {
    tree_leaf *leaf = t->hint;
    if (!leaf || key < leaf->start[0] || key >= leaf->start[leaf->head.count]) {
        const tree_node *node = &t->root->head;
        for (unsigned level = node->level; level; level--) {
            const tree_inner *inner = (const tree_inner *)node;
            node = inner->child[rank_plain(inner->key, inner->head.count, key) - 1];
        }
        fetch_leaf(t, node);
        t->hint = leaf = (tree_leaf *)node;
    }
    tree_spot spot = {leaf, rank_plain(leaf->start, leaf->head.count, key) - 1};
    return spot;
}

TREE_API tree_spot tree_find(tree *t, uint64_t key) {
#if TREE_HAS_WIDE
    if (t->is_wide)
        return find_wide(t, key);
#endif
    return find_plain(t, key);
}

static inline unsigned first_in(const tree *t, const tree_inner *inner, unsigned c, uint64_t weight, int aligned) {
    const uint64_t *weights = aligned ? inner->room[c] : inner->longest[c];
#if TREE_HAS_WIDE
    if (t->is_wide)
        return first_in_wide(inner, weights, weight);
#endif
    (void)t;
    return first_plain(weights, inner->head.count, weight);
}

static inline int is_enough(const tree *t, const tree_leaf *leaf, unsigned i, uint64_t weight, int aligned) {
    uint64_t start = leaf->start[i], end = leaf->start[i + 1];
    return end - start >= weight && (!aligned || room_of(t, start, end) >= weight);
}

/* The lowest run of the class below an inner node that is long enough; there is one. */
static tree_spot descend(const tree *t, const tree_inner *inner, unsigned slot, unsigned c, uint64_t weight, int aligned) {
    while (inner->head.level > 1) {
        inner = (const tree_inner *)inner->child[slot];
        slot = first_in(t, inner, c, weight, aligned);
    }
    fetch_leaf(t, inner->child[slot]);
    tree_spot spot = {(tree_leaf *)inner->child[slot], 0};
    uint64_t left = spot.leaf->of[c];
    while (!is_enough(t, spot.leaf, spot.index = (unsigned)__builtin_ctzll(left), weight, aligned))
        left &= left - 1;
    return spot;
}

static tree_spot descend_last(const tree *t, unsigned c, uint64_t weight, int aligned) {
    const tree_inner *inner = t->root;
    for (;;) {
        const uint64_t *weights = aligned ? inner->room[c] : inner->longest[c];
        unsigned slot = inner->head.count - 1;
        while (weights[slot] < weight)
            slot--;
        if (inner->head.level > 1) {
            inner = (const tree_inner *)inner->child[slot];
            continue;
        }
        tree_spot spot = {(tree_leaf *)inner->child[slot], 0};
        uint64_t left = spot.leaf->of[c];
        while (!is_enough(t, spot.leaf, spot.index = 63u - (unsigned)__builtin_clzll(left), weight, aligned))
            left &= ~((uint64_t)1 << spot.index);
        return spot;
    }
}

TREE_API int tree_fit(tree *t, unsigned c, uint64_t length, int aligned, int last, tree_spot *found) {
    const tree_inner *root = t->root;
    unsigned slot = first_in(t, root, c, length, aligned);
    if (slot == root->head.count || !length)
        return 0;
    *found = last ? descend_last(t, c, length, aligned) : descend(t, root, slot, c, length, aligned);
    return 1;
}

TREE_API int tree_next_of(tree *t, unsigned c, uint64_t key, tree_spot *found) {
    if (key >= t->size)
        return 0;
    tree_spot at = tree_find(t, key);
    unsigned from = at.index + (at.leaf->start[at.index] < key);
    uint64_t here = at.leaf->of[c] & ~low_bits(from);
    if (here) {
        found->leaf = at.leaf;
        found->index = (unsigned)__builtin_ctzll(here);
        return 1;
    }
    const tree_node *node = &at.leaf->head;
    for (const tree_inner *parent; (parent = node->parent) != NULL; node = &parent->head) {
        for (unsigned i = node->slot + 1u; i < parent->head.count; i++) {
            if (parent->longest[c][i]) {
                *found = descend(t, parent, i, c, 1, 0);
                return 1;
            }
        }
    }
    return 0;
}

TREE_API uint64_t tree_longest(const tree *t, unsigned c) {
    return greatest(t, t->root->longest[c], t->root->head.count);
}

#endif
