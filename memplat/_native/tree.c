#include "tree.h"

#include "tree_check.h"
#include "tree_find.h"

TREE_API int tree_init(tree *t, uint64_t unit) {
    memset(t, 0, sizeof *t);
    t->unit = unit;
    t->leaves.size = sizeof(tree_leaf);
    t->inners.size = sizeof(tree_inner);
#if TREE_HAS_WIDE
    t->is_wide = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi");
#endif
    t->root = (tree_inner *)new_node(&t->inners);
    t->first = t->last = (tree_leaf *)new_node(&t->leaves);
    if (!t->root || !t->first) {
        if (t->root)
            free_node(&t->inners, &t->root->head);
        if (t->first)
            free_node(&t->leaves, &t->first->head);
        memset(t, 0, sizeof *t);
        return -1;
    }
    memset(t->root->longest, 0, sizeof t->root->longest);
    memset(t->root->room, 0, sizeof t->root->room);
    t->root->key[0] = t->first->start[0] = 0;
    t->root->head = (tree_node){.level = 1, .count = 1, .in_chunk = t->root->head.in_chunk};
    t->root->child[0] = &t->first->head;
    clean_leaf(t->first);
    t->first->head.parent = t->root;
    return 0;
}

/* What tree_change knows of the run, of the part that changes, and of the runs that this part joins. */
typedef struct change {
    tree_leaf *leaf, *before, *behind; /* of the run; of the joined ones, NULL if none is */
    unsigned index, behind_index;
    uint64_t run_start, run_end; /* before the change */
    uint64_t start, end;         /* of the part that changes */
    uint64_t all_start, all_end; /* of the run that it becomes */
} change;

static void find_neighbours(change *x, uint64_t counts, uint32_t meta, int join_right) {
    x->before = x->behind = NULL;
    x->behind_index = 0;
    x->all_start = x->start;
    x->all_end = x->end;
    if (x->start == x->run_start) {
        tree_leaf *leaf = x->index ? x->leaf : x->leaf->prev;
        unsigned index = x->index ? x->index - 1 : leaf ? leaf->head.count - 1 : 0;
        if (leaf && has_value(leaf, index, counts, meta)) {
            x->before = leaf;
            x->all_start = leaf->start[index];
        }
    }
    if (x->end == x->run_end && join_right) {
        int inside = x->index + 1 < x->leaf->head.count;
        tree_leaf *leaf = inside ? x->leaf : x->leaf->next;
        unsigned index = inside ? x->index + 1 : 0;
        if (leaf && has_value(leaf, index, counts, meta)) {
            x->behind = leaf;
            x->behind_index = index;
            x->all_end = leaf->start[index + 1];
        }
    }
}

/* Put the change into the leaves; returns the leaf that the changed keys are in now. */
static inline tree_leaf *carry_out(tree *t, const change *x, uint64_t counts, uint32_t meta) {
    tree_leaf *leaf = x->leaf;
    unsigned index = x->index;
    uint64_t old_counts = leaf->counts[index];
    uint32_t old_meta = leaf->meta[index];
    if (x->start > x->run_start) {
        if (x->behind) {
            set_start(x->behind, x->behind_index, x->start);
            return x->behind;
        }
        unsigned more = 1 + (x->end < x->run_end);
        open_places(t, leaf, index + 1, more);
        leaf->start[index + 1] = x->start;
        set_value(leaf, index + 1, counts, meta);
        if (more == 2) {
            leaf->start[index + 2] = x->end;
            set_value(leaf, index + 2, old_counts, old_meta);
        }
        return leaf;
    }
    if (x->end < x->run_end) {
        if (x->before) {
            set_start(leaf, index, x->end);
            return x->before;
        }
        open_places(t, leaf, index + 1, 1);
        leaf->start[index + 1] = x->end;
        set_value(leaf, index + 1, old_counts, old_meta);
        set_value(leaf, index, counts, meta);
        return leaf;
    }
    if (x->behind)
        remove_run(t, x->behind, x->behind_index);
    if (x->before) {
        remove_run(t, leaf, index);
        return x->before;
    }
    set_value(leaf, index, counts, meta);
    return leaf;
}

TREE_API void tree_change(tree *t, tree_spot at, uint64_t start, uint64_t end, uint64_t counts, uint32_t meta, int join_right) {
    change x = {.leaf = at.leaf, .index = at.index, .start = start, .end = end};
    x.run_start = at.leaf->start[at.index];
    x.run_end = at.leaf->start[at.index + 1];
    int same = has_value(at.leaf, at.index, counts, meta);
    if (same) {
        if (start > x.run_start)
            return;
        x.end = x.run_end;
    }
    unsigned more = (x.start > x.run_start) + (x.end < x.run_end);
    if (at.leaf->head.count + more > TREE_LEAF) {
        split_leaf(t, x.leaf);
        if (x.index >= x.leaf->head.count) {
            x.index -= x.leaf->head.count;
            x.leaf = x.leaf->next;
        }
    }
    find_neighbours(&x, counts, meta, join_right && !same);
    if (same && !x.before)
        return;

    int old_class = class_of(x.leaf->meta[x.index]), new_class = class_of(meta);
    int old_falls = old_class >= 0 && counts_for(t, x.leaf, (unsigned)old_class, x.run_start, x.run_end);
    /* Unless it stays in its leaf, if only as a part of a longer one. */
    const tree_leaf *stays = x.before ? x.before : x.start > x.run_start ? x.behind : x.leaf;
    int behind_falls = new_class >= 0 && x.behind && x.behind != stays &&
                       counts_for(t, x.behind, (unsigned)new_class, x.end, x.all_end);
    size_t runs = t->runs;
    tree_leaf *home = carry_out(t, &x, counts, meta);
    t->hint = home;
    if (old_falls) {
        refresh(t, x.leaf, (unsigned)old_class);
    } else if (old_class >= 0 && !same) {
        if (x.start > x.run_start)
            tell_new(t, x.leaf, (unsigned)old_class, x.run_start, x.start);
        if (x.end < x.run_end)
            tell_new(t, x.leaf, (unsigned)old_class, x.end, x.run_end);
    }
    if (behind_falls)
        refresh(t, x.behind, (unsigned)new_class);
    if (new_class >= 0)
        tell_new(t, home, (unsigned)new_class, x.all_start, x.all_end);
    if (t->runs >= runs)
        return;
    if (x.behind && x.behind != x.leaf)
        fix_leaf(t, x.behind);
    fix_leaf(t, x.leaf);
}

TREE_API void tree_assign(tree *t, uint64_t start, uint64_t end, uint64_t counts, uint32_t meta) {
    while (start < end) {
        tree_spot at = tree_find(t, start);
        uint64_t run_end = at.leaf->start[at.index + 1];
        uint64_t stop = run_end < end ? run_end : end;
        tree_change(t, at, start, stop, counts, meta, stop == end);
        start = stop;
    }
}

TREE_API void tree_extend(tree *t, uint64_t size, uint64_t counts, uint32_t meta) {
    tree_leaf *leaf = t->last;
    uint64_t start = t->size;
    t->size = size;
    if (leaf->head.count && has_value(leaf, leaf->head.count - 1, counts, meta)) {
        start = leaf->start[leaf->head.count - 1];
        leaf->start[leaf->head.count] = size;
    } else {
        if (leaf->head.count == TREE_LEAF) {
            split_leaf(t, leaf);
            leaf = t->last;
        }
        unsigned index = leaf->head.count++;
        leaf->start[index] = start;
        leaf->start[index + 1] = size;
        set_value(leaf, index, counts, meta);
        t->runs++;
    }
    int class_ = class_of(meta);
    if (class_ >= 0)
        tell_new(t, leaf, (unsigned)class_, start, size);
}
