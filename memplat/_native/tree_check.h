/* Whether all is as it should be. */

#ifndef MEMPLAT_TREE_CHECK_H
#define MEMPLAT_TREE_CHECK_H

#include "tree_leaf.h"

static const char *check_leaf(const tree *t, const tree_leaf *leaf, uint64_t *edge, const tree_leaf *before) {
    if (leaf->prev != before || (before && before->next != leaf))
        return "the leaves are not linked in order";
    if (leaf->head.count > TREE_LEAF || (!leaf->head.count && t->size))
        return "a leaf has too many runs, or none";
    for (unsigned i = 0; i < leaf->head.count; i++) {
        if (leaf->start[i] != *edge)
            return "the runs leave a gap or overlap";
        if (leaf->start[i + 1] <= leaf->start[i])
            return "an empty run";
        if (class_of(leaf->meta[i]) >= 0 && leaf->counts[i])
            return "an indexed value has counts";
        for (unsigned c = 0; c < TREE_CLASSES; c++)
            if ((leaf->of[c] >> i & 1) != (class_of(leaf->meta[i]) == (int)c))
                return "a leaf does not know which runs are of a class";
        if (i ? has_value(leaf, i - 1, leaf->counts[i], leaf->meta[i])
              : before && has_value(before, before->head.count - 1, leaf->counts[i], leaf->meta[i]))
            return "neighbours are not merged";
        *edge = leaf->start[i + 1];
    }
    for (unsigned c = 0; c < TREE_CLASSES; c++)
        if (leaf->of[c] & ~low_bits(leaf->head.count))
            return "a leaf knows of runs that are not there";
    return NULL;
}

static const char *check_inner(const tree *t, const tree_inner *inner, uint64_t *edge, const tree_leaf **before) {
    if (!inner->head.count || inner->head.count > TREE_FAN)
        return "an inner node has too many children, or none";
    for (unsigned i = 0; i < inner->head.count; i++) {
        const tree_node *child = inner->child[i];
        if (child->parent != inner || child->slot != i || child->level + 1 != inner->head.level)
            return "a child does not know its place";
        if (inner->key[i] != *edge)
            return "a key is not the first start below it";
        const char *fault = child->level ? check_inner(t, (const tree_inner *)child, edge, before)
                                         : check_leaf(t, (const tree_leaf *)child, edge, *before);
        if (fault)
            return fault;
        if (!child->level)
            *before = (const tree_leaf *)child;
        for (unsigned c = 0; c < TREE_CLASSES; c++) {
            uint64_t longest, room;
            if (child->level)
                inner_maxima((const tree_inner *)child, c, &longest, &room);
            else
                leaf_maxima(t, (const tree_leaf *)child, c, &longest, &room);
            if (inner->longest[c][i] != longest || inner->room[c][i] != room)
                return "a maximum is not that of what is below it";
        }
    }
    return NULL;
}

TREE_API const char *tree_check(const tree *t) {
    uint64_t edge = 0;
    const tree_leaf *before = NULL;
    const char *fault = check_inner(t, t->root, &edge, &before);
    if (fault)
        return fault;
    if (t->root->head.parent || before != t->last || before->next)
        return "the ends of the tree are wrong";
    if (edge != t->size)
        return "the runs do not end where the domain does";
    size_t runs = 0;
    for (const tree_leaf *leaf = t->first; leaf; leaf = leaf->next)
        runs += leaf->head.count;
    return runs == t->runs ? NULL : "the runs are miscounted";
}

#endif
