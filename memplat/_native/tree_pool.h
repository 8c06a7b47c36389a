/* Where the nodes come from.
 *
 * A change of one among a million runs reads some nodes that nobody has touched for long. With pages of 4 KiB each of
 * them costs a walk of the page tables besides, under a hypervisor one of two dimensions: as much as the node itself.
 * So a large tree takes its nodes from chunks of a huge page each, where the host grants them (madvise(2),
 * MADV_HUGEPAGE); a small one from malloc, because it should not take 2 MiB.
 */

#ifndef MEMPLAT_TREE_POOL_H
#define MEMPLAT_TREE_POOL_H

#include "tree.h"

#include <stdlib.h>
#include <sys/mman.h>

#ifndef TREE_CHUNK
#define TREE_CHUNK ((size_t)2 << 20) /* a huge page of x86-64 and of arm64 */
#endif
#ifndef TREE_SMALL
#define TREE_SMALL ((size_t)1 << 20) /* bytes of nodes that come from malloc */
#endif

typedef struct tree_chunk {
    struct tree_chunk *prev, *next; /* of those with free nodes */
    tree_node *free;                /* a list by parent */
    uint32_t used, fresh;           /* nodes; fresh ones were never used and lie behind all others */
} __attribute__((aligned(64))) tree_chunk;

/* In a chunk each node begins with a line of the cache. */
static size_t chunk_step(const tree_pool *pool) {
    return (pool->size + 63) & ~(size_t)63;
}

static uint32_t chunk_nodes(const tree_pool *pool) {
    return (uint32_t)((TREE_CHUNK - sizeof(tree_chunk)) / chunk_step(pool));
}

static void link_chunk(tree_pool *pool, tree_chunk *chunk) {
    chunk->prev = NULL;
    chunk->next = pool->chunks;
    if (chunk->next)
        chunk->next->prev = chunk;
    pool->chunks = chunk;
}

static void unlink_chunk(tree_pool *pool, tree_chunk *chunk) {
    if (chunk->prev)
        chunk->prev->next = chunk->next;
    else
        pool->chunks = chunk->next;
    if (chunk->next)
        chunk->next->prev = chunk->prev;
}

static tree_chunk *new_chunk(tree_pool *pool) {
    char *all = mmap(NULL, 2 * TREE_CHUNK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED)
        return NULL;
    size_t before = (size_t)(-(uintptr_t)all & (TREE_CHUNK - 1));
    if (before)
        munmap(all, before);
    munmap(all + before + TREE_CHUNK, TREE_CHUNK - before);
    tree_chunk *chunk = (tree_chunk *)(all + before);
    (void)madvise(chunk, TREE_CHUNK, MADV_HUGEPAGE); /* a kernel without them refuses: it only gets slower */
    chunk->free = NULL;
    chunk->used = 0;
    chunk->fresh = chunk_nodes(pool);
    link_chunk(pool, chunk);
    pool->chunk_count++;
    pool->empty_chunks++;
    return chunk;
}

/* A node, of which only in_chunk is set; NULL if there is no memory. */
static tree_node *new_node(tree_pool *pool) {
    tree_chunk *chunk = pool->chunks;
    if (!chunk && (pool->singles + 1) * pool->size > TREE_SMALL)
        chunk = new_chunk(pool);
    if (!chunk) {
        tree_node *node = malloc(pool->size);
        if (node) {
            node->in_chunk = 0;
            pool->singles++;
        }
        return node;
    }
    tree_node *node = chunk->free;
    if (node)
        chunk->free = (tree_node *)node->parent;
    else
        node = (tree_node *)((char *)(chunk + 1) + (chunk_nodes(pool) - chunk->fresh--) * chunk_step(pool));
    node->in_chunk = 1;
    pool->empty_chunks -= !chunk->used++;
    if (!chunk->free && !chunk->fresh)
        unlink_chunk(pool, chunk);
    return node;
}

static void free_node(tree_pool *pool, tree_node *node) {
    if (!node->in_chunk) {
        free(node);
        pool->singles--;
        return;
    }
    tree_chunk *chunk = (tree_chunk *)((uintptr_t)node & ~(uintptr_t)(TREE_CHUNK - 1));
    if (!chunk->free && !chunk->fresh)
        link_chunk(pool, chunk);
    node->parent = (tree_inner *)chunk->free;
    chunk->free = node;
    if (--chunk->used)
        return;
    if (!pool->empty_chunks) { /* one is kept: a tree that breathes must not get and lose a chunk with each breath */
        pool->empty_chunks = 1;
        return;
    }
    unlink_chunk(pool, chunk);
    pool->chunk_count--;
    munmap(chunk, TREE_CHUNK);
}

/* Give back the empty chunks; others are freed with their last nodes. */
static void clear_pool(tree_pool *pool) {
    while (pool->chunks) {
        tree_chunk *chunk = pool->chunks;
        unlink_chunk(pool, chunk);
        munmap(chunk, TREE_CHUNK);
    }
}

static size_t pool_bytes(const tree_pool *pool) {
    return pool->singles * pool->size + pool->chunk_count * TREE_CHUNK;
}

#endif
