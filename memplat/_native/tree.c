#include "tree.h"

#include <stdlib.h>
#include <string.h>

enum {
    MIN_LEAF = TREE_LEAF * 7 / 16, /* below, a leaf is merged with a neighbour, or gets runs from it; only the last one
                                      may begin with less */
    MERGED_LEAF = TREE_LEAF * 15 / 16, /* two leaves become one up to here: not full, or it would soon be split again */
    MIN_FAN = TREE_FAN * 7 / 16,
    MERGED_FAN = TREE_FAN * 15 / 16,
    TAIL_LEAF = TREE_LEAF / 8 + 1, /* what a split of the last leaf takes along: files grow at the end */
    TAIL_FAN = TREE_FAN / 8 + 1,
};

/* -- nodes --------------------------------------------------------------------------------------------------------- */

static tree_leaf *new_leaf(tree *t) {
    tree_leaf *leaf = t->spare_leaves;
    t->spare_leaves = leaf->next;
    t->spare_leaf_count--;
    memset(&leaf->head, 0, sizeof leaf->head);
    leaf->prev = leaf->next = NULL;
    return leaf;
}

static tree_inner *new_inner(tree *t, unsigned level) {
    tree_inner *inner = t->spare_inners;
    t->spare_inners = inner->head.parent;
    t->spare_inner_count--;
    memset(&inner->head, 0, sizeof inner->head);
    inner->head.level = (uint16_t)level;
    return inner;
}

/* How many nodes the next change may need: two pieces, each of which may add two runs and so split a node a level. */
static unsigned wanted_leaves(const tree *t) {
    return t->root->head.count == 1 && t->first->head.count + 4 <= TREE_LEAF ? 0 : 2;
}

static unsigned wanted_inners(const tree *t) {
    if (t->root->head.level == 1 && t->root->head.count + 2 <= TREE_FAN)
        return 0;
    return 2u * t->root->head.level + 2;
}

static void free_leaf(tree *t, tree_leaf *leaf) {
    if (t->hint == leaf)
        t->hint = NULL;
    if (t->spare_leaf_count >= 2) {
        t->leaves--;
        free(leaf);
        return;
    }
    leaf->head.parent = NULL;
    leaf->next = t->spare_leaves;
    t->spare_leaves = leaf;
    t->spare_leaf_count++;
}

static void free_inner(tree *t, tree_inner *inner) {
    if (t->spare_inner_count >= wanted_inners(t)) {
        t->inners--;
        free(inner);
        return;
    }
    inner->head.parent = t->spare_inners;
    t->spare_inners = inner;
    t->spare_inner_count++;
}

int tree_reserve(tree *t) {
    unsigned wanted = wanted_leaves(t);
    while (t->spare_leaf_count < wanted) {
        tree_leaf *leaf = malloc(sizeof *leaf);
        if (!leaf)
            return -1;
        t->leaves++;
        leaf->next = t->spare_leaves;
        t->spare_leaves = leaf;
        t->spare_leaf_count++;
    }
    wanted = wanted_inners(t);
    while (t->spare_inner_count < wanted) {
        tree_inner *inner = malloc(sizeof *inner);
        if (!inner)
            return -1;
        t->inners++;
        inner->head.parent = t->spare_inners;
        t->spare_inners = inner;
        t->spare_inner_count++;
    }
    return 0;
}

int tree_init(tree *t, uint64_t unit) {
    memset(t, 0, sizeof *t);
    t->unit = unit;
    t->root = calloc(1, sizeof *t->root);
    t->first = t->last = calloc(1, sizeof *t->first);
    if (!t->root || !t->first) {
        free(t->root);
        free(t->first);
        memset(t, 0, sizeof *t);
        return -1;
    }
    t->leaves = t->inners = 1;
    t->first->head.parent = t->root;
    t->root->head.level = 1;
    t->root->head.count = 1;
    t->root->child[0] = &t->first->head;
    return 0;
}

static void clear_below(tree_inner *inner) {
    for (unsigned i = 0; i < inner->head.count; i++) {
        if (inner->head.level > 1)
            clear_below((tree_inner *)inner->child[i]);
        else
            free(inner->child[i]);
    }
    free(inner);
}

void tree_clear(tree *t) {
    if (t->root)
        clear_below(t->root);
    while (t->spare_leaves) {
        tree_leaf *leaf = t->spare_leaves;
        t->spare_leaves = leaf->next;
        free(leaf);
    }
    while (t->spare_inners) {
        tree_inner *inner = t->spare_inners;
        t->spare_inners = inner->head.parent;
        free(inner);
    }
    memset(t, 0, sizeof *t);
}

size_t tree_bytes(const tree *t) {
    return t->leaves * sizeof(tree_leaf) + t->inners * sizeof(tree_inner);
}

/* -- maxima -------------------------------------------------------------------------------------------------------- */

static int class_of(uint32_t meta) {
    return meta & 1 || meta >= 2 * TREE_CLASSES ? -1 : (int)(meta >> 1);
}

/* What is left of a run from the first multiple of the unit on, if that is a whole unit. */
static uint64_t room_of(const tree *t, uint64_t start, uint64_t end) {
    uint64_t unit = t->unit;
    if (unit <= 1 || end - start < unit)
        return 0;
    uint64_t first = (start + unit - 1) & ~(unit - 1);
    return end >= first + unit ? end - first : 0;
}

static void leaf_maxima(const tree *t, const tree_leaf *leaf, unsigned c, uint64_t *longest, uint64_t *room) {
    uint64_t most = 0, most_room = 0;
    for (unsigned i = 0; i < leaf->head.count; i++) {
        if (leaf->meta[i] != 2 * c)
            continue;
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

/* A class has changed in a leaf, perhaps for the less: work it out anew, and tell all above. */
static void refresh(const tree *t, const tree_leaf *leaf, unsigned c) {
    uint64_t longest, room;
    leaf_maxima(t, leaf, c, &longest, &room);
    const tree_node *node = &leaf->head;
    for (tree_inner *parent; (parent = node->parent) != NULL; node = &parent->head) {
        unsigned slot = node->slot;
        if (parent->longest[c][slot] == longest && parent->room[c][slot] == room)
            return;
        parent->longest[c][slot] = longest;
        parent->room[c][slot] = room;
        if (parent->head.parent)
            inner_maxima(parent, c, &longest, &room);
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

/* -- inner nodes --------------------------------------------------------------------------------------------------- */

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

/* -- leaves -------------------------------------------------------------------------------------------------------- */

/* Move runs, without the end of the last one. Counts are the caller's. */
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

/* See to it that a leaf has enough runs. Where two become one, the left one stays. */
static void fix_leaf(tree *t, tree_leaf *leaf) {
    tree_inner *parent = leaf->head.parent;
    if (leaf->head.count >= MIN_LEAF || parent->head.count < 2)
        return;
    tree_leaf *left = leaf->head.slot + 1u < parent->head.count ? leaf : leaf->prev, *right = left->next;
    unsigned sum = left->head.count + right->head.count;
    if (sum <= MERGED_LEAF) {
        move_runs(left, left->head.count, right, 0, right->head.count);
        left->start[sum] = right->start[right->head.count];
        left->head.count = sum;
        left->next = right->next;
        if (left->next)
            left->next->prev = left;
        else
            t->last = left;
        tell_parent(t, &left->head);
        remove_child(t, parent, right->head.slot);
        free_leaf(t, right);
        return;
    }
    unsigned keep = sum / 2, had = left->head.count;
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
    set_key(&right->head, right->start[0]);
    tell_parent(t, &left->head);
    tell_parent(t, &right->head);
}

/* -- finding ------------------------------------------------------------------------------------------------------- */

/* How many of the ascending keys are not above the key, at least 1: the first one never is. */
static inline unsigned rank(const uint64_t *keys, unsigned count, uint64_t key) {
    const uint64_t *base = keys;
    while (count > 1) {
        unsigned half = count / 2;
        base += base[half] <= key ? half : 0;
        count -= half;
    }
    return (unsigned)(base - keys) + 1;
}

tree_spot tree_find(tree *t, uint64_t key) {
    tree_leaf *leaf = t->hint;
    if (!leaf || key < leaf->start[0] || key >= leaf->start[leaf->head.count]) {
        const tree_inner *inner = t->root;
        while (inner->head.level > 1)
            inner = (const tree_inner *)inner->child[rank(inner->key, inner->head.count, key) - 1];
        leaf = (tree_leaf *)inner->child[rank(inner->key, inner->head.count, key) - 1];
        t->hint = leaf;
    }
    tree_spot spot = {leaf, rank(leaf->start, leaf->head.count, key) - 1};
    return spot;
}

static unsigned first_slot(const uint64_t *weights, unsigned count, uint64_t weight) {
    unsigned i = 0;
    while (i < count && weights[i] < weight)
        i++;
    return i;
}

/* The lowest run of the class below an inner node that is long enough; there is one. */
static tree_spot descend(const tree *t, const tree_inner *inner, unsigned slot, unsigned c, uint64_t weight, int aligned) {
    while (inner->head.level > 1) {
        inner = (const tree_inner *)inner->child[slot];
        slot = first_slot(aligned ? inner->room[c] : inner->longest[c], inner->head.count, weight);
    }
    tree_spot spot = {(tree_leaf *)inner->child[slot], 0};
    const tree_leaf *leaf = spot.leaf;
    unsigned i = 0;
    while (leaf->meta[i] != 2 * c || leaf->start[i + 1] - leaf->start[i] < weight ||
           (aligned && room_of(t, leaf->start[i], leaf->start[i + 1]) < weight))
        i++;
    spot.index = i;
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
        const tree_leaf *leaf = spot.leaf;
        unsigned i = leaf->head.count - 1;
        while (leaf->meta[i] != 2 * c || leaf->start[i + 1] - leaf->start[i] < weight ||
               (aligned && room_of(t, leaf->start[i], leaf->start[i + 1]) < weight))
            i--;
        spot.index = i;
        return spot;
    }
}

int tree_fit(tree *t, unsigned c, uint64_t length, int aligned, int last, tree_spot *found) {
    const tree_inner *root = t->root;
    unsigned slot = first_slot(aligned ? root->room[c] : root->longest[c], root->head.count, length);
    if (slot == root->head.count || !length)
        return 0;
    *found = last ? descend_last(t, c, length, aligned) : descend(t, root, slot, c, length, aligned);
    return 1;
}

int tree_next_of(tree *t, unsigned c, uint64_t key, tree_spot *found) {
    if (key >= t->size)
        return 0;
    tree_spot at = tree_find(t, key);
    const tree_leaf *leaf = at.leaf;
    for (unsigned i = at.index + (leaf->start[at.index] < key); i < leaf->head.count; i++) {
        if (leaf->meta[i] == 2 * c) {
            found->leaf = at.leaf;
            found->index = i;
            return 1;
        }
    }
    const tree_node *node = &leaf->head;
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

uint64_t tree_longest(const tree *t, unsigned c) {
    uint64_t longest, room;
    inner_maxima(t->root, c, &longest, &room);
    return longest;
}

/* -- changing ------------------------------------------------------------------------------------------------------ */

/* Add a run behind another one, whose end it takes over. The leaf has a place left. */
static void insert_run(tree *t, tree_leaf *leaf, unsigned index, uint64_t start, uint64_t counts, uint32_t meta) {
    unsigned count = leaf->head.count;
    leaf->start[count + 1] = leaf->start[count];
    move_runs(leaf, index + 1, leaf, index, count - index);
    leaf->start[index] = start;
    leaf->counts[index] = counts;
    leaf->meta[index] = meta;
    leaf->head.count = count + 1;
    t->runs++;
}

/* Take a run out that is not the very first one; its keys go to the one before. At least one run stays in the leaf. */
static void remove_run(tree *t, tree_leaf *leaf, unsigned index) {
    unsigned count = --leaf->head.count;
    move_runs(leaf, index, leaf, index + 1, count - index);
    leaf->start[count] = leaf->start[count + 1];
    t->runs--;
    if (!index) {
        leaf->prev->start[leaf->prev->head.count] = leaf->start[0];
        set_key(&leaf->head, leaf->start[0]);
    }
}

/* Move the border between a run and the one before. */
static void set_start(tree_leaf *leaf, unsigned index, uint64_t start) {
    leaf->start[index] = start;
    if (!index) {
        leaf->prev->start[leaf->prev->head.count] = start;
        set_key(&leaf->head, start);
    }
}

static void set_value(tree_leaf *leaf, unsigned index, uint64_t counts, uint32_t meta) {
    leaf->counts[index] = counts;
    leaf->meta[index] = meta;
}

static int has_value(const tree_leaf *leaf, unsigned index, uint64_t counts, uint32_t meta) {
    return leaf->counts[index] == counts && leaf->meta[index] == meta;
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
static tree_leaf *carry_out(tree *t, const change *x, uint64_t counts, uint32_t meta) {
    tree_leaf *leaf = x->leaf;
    unsigned index = x->index;
    uint64_t old_counts = leaf->counts[index];
    uint32_t old_meta = leaf->meta[index];
    if (x->start > x->run_start) {
        if (x->behind) {
            set_start(x->behind, x->behind_index, x->start);
            return x->behind;
        }
        if (x->end < x->run_end)
            insert_run(t, leaf, index + 1, x->end, old_counts, old_meta);
        insert_run(t, leaf, index + 1, x->start, counts, meta);
        return leaf;
    }
    if (x->end < x->run_end) {
        if (x->before) {
            set_start(leaf, index, x->end);
            return x->before;
        }
        insert_run(t, leaf, index + 1, x->end, old_counts, old_meta);
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

void tree_change(tree *t, tree_spot at, uint64_t start, uint64_t end, uint64_t counts, uint32_t meta, int join_right) {
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

void tree_assign(tree *t, uint64_t start, uint64_t end, uint64_t counts, uint32_t meta) {
    while (start < end) {
        tree_spot at = tree_find(t, start);
        uint64_t run_end = at.leaf->start[at.index + 1];
        uint64_t stop = run_end < end ? run_end : end;
        tree_change(t, at, start, stop, counts, meta, stop == end);
        start = stop;
    }
}

void tree_extend(tree *t, uint64_t size, uint64_t counts, uint32_t meta) {
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

/* -- checking ------------------------------------------------------------------------------------------------------ */

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
        if (i ? has_value(leaf, i - 1, leaf->counts[i], leaf->meta[i])
              : before && has_value(before, before->head.count - 1, leaf->counts[i], leaf->meta[i]))
            return "neighbours are not merged";
        *edge = leaf->start[i + 1];
    }
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

const char *tree_check(const tree *t) {
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
