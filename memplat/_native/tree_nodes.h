/* Nodes that are there before a change needs them, so that it cannot fail halfway. */

#ifndef MEMPLAT_TREE_NODES_H
#define MEMPLAT_TREE_NODES_H

#include "tree_pool.h"

#include <string.h>

static void clean_leaf(tree_leaf *leaf) {
    leaf->head = (tree_node){.in_chunk = leaf->head.in_chunk};
    leaf->prev = leaf->next = NULL;
    memset(leaf->of, 0, sizeof leaf->of);
}

static tree_leaf *new_leaf(tree *t) {
    tree_leaf *leaf = t->spare_leaves;
    t->spare_leaves = leaf->next;
    t->spare_leaf_count--;
    clean_leaf(leaf);
    return leaf;
}

static tree_inner *new_inner(tree *t, unsigned level) {
    tree_inner *inner = t->spare_inners;
    t->spare_inners = inner->head.parent;
    t->spare_inner_count--;
    inner->head = (tree_node){.level = (uint8_t)level, .in_chunk = inner->head.in_chunk};
    return inner;
}

/* How many nodes the next change may need: two pieces, each of which may add two runs and so split a node a level. */
static inline unsigned wanted_leaves(const tree *t) {
    return t->root->head.count == 1 && t->first->head.count + 4 <= TREE_LEAF ? 0 : 2;
}

static inline unsigned wanted_inners(const tree *t) {
    if (t->root->head.level == 1 && t->root->head.count + 2 <= TREE_FAN)
        return 0;
    return 2u * t->root->head.level + 2;
}

static void free_leaf(tree *t, tree_leaf *leaf) {
    if (t->hint == leaf)
        t->hint = NULL;
    if (t->spare_leaf_count >= 2) {
        free_node(&t->leaves, &leaf->head);
        return;
    }
    leaf->next = t->spare_leaves;
    t->spare_leaves = leaf;
    t->spare_leaf_count++;
}

static void free_inner(tree *t, tree_inner *inner) {
    if (t->spare_inner_count >= wanted_inners(t)) {
        free_node(&t->inners, &inner->head);
        return;
    }
    inner->head.parent = t->spare_inners;
    t->spare_inners = inner;
    t->spare_inner_count++;
}

static int reserve_nodes(tree *t) {
    while (t->spare_leaf_count < wanted_leaves(t)) {
        tree_leaf *leaf = (tree_leaf *)new_node(&t->leaves);
        if (!leaf)
            return -1;
        leaf->next = t->spare_leaves;
        t->spare_leaves = leaf;
        t->spare_leaf_count++;
    }
    while (t->spare_inner_count < wanted_inners(t)) {
        tree_inner *inner = (tree_inner *)new_node(&t->inners);
        if (!inner)
            return -1;
        inner->head.parent = t->spare_inners;
        t->spare_inners = inner;
        t->spare_inner_count++;
    }
    return 0;
}

TREE_API int tree_reserve(tree *t) {
    if (t->spare_leaf_count >= 2 && t->spare_inner_count >= 2u * t->root->head.level + 2)
        return 0;
    return reserve_nodes(t);
}

static void free_below(tree *t, tree_inner *inner) {
    for (unsigned i = 0; i < inner->head.count; i++) {
        if (inner->head.level > 1)
            free_below(t, (tree_inner *)inner->child[i]);
        else
            free_node(&t->leaves, inner->child[i]);
    }
    free_node(&t->inners, &inner->head);
}

TREE_API void tree_clear(tree *t) {
    if (t->root)
        free_below(t, t->root);
    while (t->spare_leaves) {
        tree_leaf *leaf = t->spare_leaves;
        t->spare_leaves = leaf->next;
        free_node(&t->leaves, &leaf->head);
    }
    while (t->spare_inners) {
        tree_inner *inner = t->spare_inners;
        t->spare_inners = inner->head.parent;
        free_node(&t->inners, &inner->head);
    }
    clear_pool(&t->leaves);
    clear_pool(&t->inners);
    memset(t, 0, sizeof *t);
}

TREE_API size_t tree_bytes(const tree *t) {
    return pool_bytes(&t->leaves) + pool_bytes(&t->inners);
}

#endif
