/* Inner nodes: keys, children, splitting and merging. */

#ifndef MEMPLAT_TREE_INNER_H
#define MEMPLAT_TREE_INNER_H

#include "tree_maxima.h"
#include "tree_nodes.h"

enum {
    MIN_FAN = TREE_FAN * 7 / 16, /* below, a node is merged with a neighbour, or gets children from it */
    MERGED_FAN = TREE_FAN * 15 / 16, /* two nodes become one up to here: not full, or it would soon be split again */
    TAIL_FAN = TREE_FAN / 8 + 1, /* what a split of the last child takes along: files grow at the end */
};

/* The first key below a node has changed. */
static void set_key(tree_node *node, uint64_t key) {
    for (tree_inner *parent; (parent = node->parent) != NULL; node = &parent->head) {
        parent->key[node->slot] = key;
        if (node->slot)
            return;
    }
}

/* Move the children [from, from + count) of one inner node to another one, or within one. Counts are the caller's. */
static void move_children(tree_inner *to, unsigned at, tree_inner *source, unsigned from, unsigned count) {
    memmove(to->key + at, source->key + from, count * sizeof *to->key);
    memmove(to->child + at, source->child + from, count * sizeof *to->child);
    for (unsigned c = 0; c < TREE_CLASSES; c++) {
        memmove(to->longest[c] + at, source->longest[c] + from, count * sizeof *to->longest[c]);
        memmove(to->room[c] + at, source->room[c] + from, count * sizeof *to->room[c]);
    }
    for (unsigned i = at; i < at + count; i++) {
        to->child[i]->parent = to;
        to->child[i]->slot = (uint16_t)i;
    }
}

static void insert_child(tree *t, tree_inner *parent, unsigned slot, tree_node *node, uint64_t key);

static void split_inner(tree *t, tree_inner *inner) {
    if (!inner->head.parent) {
        tree_inner *root = new_inner(t, inner->head.level + 1u);
        root->head.count = 1;
        root->child[0] = &inner->head;
        root->key[0] = inner->key[0];
        inner->head.parent = root;
        inner->head.slot = 0;
        t->root = root;
        tell_parent(t, &inner->head);
    }
    const tree_inner *above = inner->head.parent;
    unsigned is_last = inner->head.slot + 1u == above->head.count;
    unsigned keep = inner->head.count - (is_last ? TAIL_FAN : inner->head.count / 2);
    tree_inner *right = new_inner(t, inner->head.level);
    right->head.count = inner->head.count - keep;
    move_children(right, 0, inner, keep, right->head.count);
    inner->head.count = keep;
    insert_child(t, inner->head.parent, inner->head.slot + 1u, &right->head, right->key[0]);
    tell_all(t, &inner->head);
    tell_all(t, &right->head);
}

/* Add a child, and tell the parent what is below it. */
static void insert_child(tree *t, tree_inner *parent, unsigned slot, tree_node *node, uint64_t key) {
    if (parent->head.count == TREE_FAN) {
        split_inner(t, parent);
        if (slot > parent->head.count) {
            slot -= parent->head.count;
            parent = (tree_inner *)parent->head.parent->child[parent->head.slot + 1];
        }
    }
    move_children(parent, slot + 1, parent, slot, parent->head.count - slot);
    parent->head.count++;
    parent->child[slot] = node;
    parent->key[slot] = key;
    node->parent = parent;
    node->slot = (uint16_t)slot;
    tell_parent(t, node);
}

static void fix_inner(tree *t, tree_inner *inner);

/* Take a child out that is not the first one. */
static void remove_child(tree *t, tree_inner *parent, unsigned slot) {
    parent->head.count--;
    move_children(parent, slot, parent, slot + 1, parent->head.count - slot);
    fix_inner(t, parent);
}

static void fix_inner(tree *t, tree_inner *inner) {
    tree_inner *parent = inner->head.parent;
    if (!parent) {
        if (inner->head.count == 1 && inner->head.level > 1) {
            t->root = (tree_inner *)inner->child[0];
            t->root->head.parent = NULL;
            t->root->head.slot = 0;
            free_inner(t, inner);
        }
        return;
    }
    if (inner->head.count >= MIN_FAN || parent->head.count < 2)
        return;
    unsigned slot = inner->head.slot ? inner->head.slot - 1u : 0;
    tree_inner *left = (tree_inner *)parent->child[slot], *right = (tree_inner *)parent->child[slot + 1];
    unsigned sum = left->head.count + right->head.count;
    if (sum <= MERGED_FAN) {
        move_children(left, left->head.count, right, 0, right->head.count);
        left->head.count = sum;
        tell_parent(t, &left->head);
        remove_child(t, parent, slot + 1);
        free_inner(t, right);
        return;
    }
    unsigned keep = sum / 2;
    if (left->head.count > keep) {
        unsigned moved = left->head.count - keep;
        move_children(right, moved, right, 0, right->head.count);
        move_children(right, 0, left, keep, moved);
    } else {
        unsigned moved = keep - left->head.count;
        move_children(left, left->head.count, right, 0, moved);
        move_children(right, 0, right, moved, right->head.count - moved);
    }
    left->head.count = keep;
    right->head.count = sum - keep;
    set_key(&right->head, right->key[0]);
    tell_parent(t, &left->head);
    tell_parent(t, &right->head);
}

#endif
