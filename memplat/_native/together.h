/* Ranges that lie close together leave the page tables at one go: the second half of memplat/linux/punching.py, in C.
 *
 * Nothing here knows Python, and nothing fails: what could not be done costs time later, and that is all. For files only
 * of which nobody else has the address or the descriptor: a page that somebody punched meanwhile would be mapped again. */

#ifndef MEMPLAT_TOGETHER_H
#define MEMPLAT_TOGETHER_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "probe.h"

#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
/* Of <asm-generic/mman-common.h> and <linux/pidfd.h>, for which the C library may be too old. */
#define MEMPLAT_REMOVE 9
#define MEMPLAT_POPULATE_READ 22
#define MEMPLAT_THIS_PROCESS (-10000L)
#define MEMPLAT_VECTOR 1024
/* As in memplat/linux/punching.py. */
#define MEMPLAT_CLOSE (32 << 10)
#define MEMPLAT_FEW 4

typedef struct memplat_pair {
    int64_t start, end;
} memplat_pair;

/* process_madvise(2) of this process: the bytes done, or -1 and errno. */
static inline long memplat_advise(const struct iovec *vector, size_t count, int advice) {
    long done = syscall(SYS_process_madvise, MEMPLAT_THIS_PROCESS, vector, (long)count, (long)advice, 0L);
    if (done < 0 && errno == EBADF) { /* before Linux 6.15 there is no name for oneself */
        long pidfd = syscall(SYS_pidfd_open, (long)getpid(), 0L);
        int code;
        if (pidfd < 0)
            return -1;
        done = syscall(SYS_process_madvise, pidfd, vector, (long)count, (long)advice, 0L);
        code = errno;
        close((int)pidfd);
        errno = code;
    }
    return done;
}

/* What it takes to look, and what was found; all zero at the beginning. */
typedef struct memplat_together {
    int pagemap, is_open;
    memplat_region *regions;
    memplat_extents seen, between; /* of a span, and of a batch without the ranges themselves */
} memplat_together;

static inline int memplat_begin_together(memplat_together *state) {
    if (state->is_open)
        return 0;
    state->regions = (memplat_region *)malloc(MEMPLAT_REGIONS * sizeof *state->regions);
    if (!state->regions)
        return -1;
    state->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (state->pagemap < 0) {
        free(state->regions);
        return -1;
    }
    state->is_open = 1;
    return 0;
}

static inline void memplat_end_together(memplat_together *state) {
    if (state->is_open) {
        close(state->pagemap);
        free(state->regions);
    }
    free(state->seen.edges);
    free(state->between.edges);
}

/* Note what was seen of a span, less its ranges. */
static inline int memplat_note_between(memplat_together *state, const memplat_pair *items, size_t count) {
    size_t index, at = 0;
    for (index = 0; index < state->seen.count; index += 2) {
        int64_t start = state->seen.edges[index], end = state->seen.edges[index + 1];
        while (start < end) {
            while (at < count && items[at].end <= start)
                at++;
            if (at < count && items[at].start <= start) {
                start = items[at].end;
                continue;
            }
            int64_t stop = at < count && items[at].start < end ? items[at].start : end;
            if (memplat_append(&state->between, start, stop))
                return -1;
            start = stop;
        }
    }
    return 0;
}

/* Take ranges that lie close together out of this process's page tables, with what is between them. Only if all of them
 * ascend: one that comes later must not be taken for what is between others. */
static inline void memplat_unmap_together(memplat_together *state, char *base, const memplat_pair *items, size_t count) {
    size_t first = 0, index;
    state->between.count = 0;
    for (index = 1; index < count; index++)
        if (items[index].start < items[index - 1].end)
            return;
    for (index = 1; index <= count; index++) {
        if (index < count) {
            int64_t gap = items[index].start - items[index - 1].end;
            if (gap <= MEMPLAT_CLOSE)
                continue;
        }
        if (index - first >= MEMPLAT_FEW) {
            uint64_t start = (uint64_t)items[first].start, end = (uint64_t)items[index - 1].end, position = start;
            size_t before = state->between.count;
            if (memplat_begin_together(state))
                return;
            state->seen.count = 0;
            /* What was never touched is "swapped", if writes are watched (userfaultfd). */
            if (memplat_pagemap(
                    state->pagemap, (uint64_t)(uintptr_t)base, end, MEMPLAT_PRESENT, &position, state->regions, &state->seen
                ) < 0)
                return;
            if (memplat_note_between(state, items + first, index - first)
                || madvise(base + start, (size_t)(end - start), MADV_DONTNEED)) {
                state->between.count = before; /* it is locked, say: what is there stays there */
                return;
            }
        }
        first = index;
    }
}

/* Map again what is between them. */
static inline void memplat_map_again(memplat_together *state, char *base) {
    struct iovec vector[MEMPLAT_VECTOR];
    const int64_t *edges = state->between.edges;
    size_t index = 0, count, at;
    while (index < state->between.count) {
        long done;
        for (count = 0; count < MEMPLAT_VECTOR && index < state->between.count; count++, index += 2) {
            vector[count].iov_base = base + edges[index];
            vector[count].iov_len = (size_t)(edges[index + 1] - edges[index]);
        }
        done = memplat_advise(vector, count, MEMPLAT_POPULATE_READ);
        for (at = 0; at < count; at++) {
            done -= (long)vector[at].iov_len;
            if (done < 0)
                (void)madvise(vector[at].iov_base, vector[at].iov_len, MEMPLAT_POPULATE_READ);
        }
    }
    state->between.count = 0;
}

#endif
