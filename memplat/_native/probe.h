/* What a file holds, asked of the kernel: the system calls of memplat/linux/{files,pagemap}.py, in C.
 *
 * Nothing here knows Python. Extents are flat: start, end, start, end, and so on, in bytes, sorted, without touching. */

#ifndef MEMPLAT_PROBE_H
#define MEMPLAT_PROBE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* <linux/fs.h>, from Linux 6.7 on */
#define MEMPLAT_PAGEMAP_SCAN 0xC0606610UL
#define MEMPLAT_PRESENT (1u << 3)
#define MEMPLAT_PRESENT_OR_SWAPPED (MEMPLAT_PRESENT | (1u << 4))
#define MEMPLAT_REGIONS 8192

typedef struct memplat_region {
    uint64_t start, end, categories;
} memplat_region;

typedef struct memplat_scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
} memplat_scan_arg;

/* Growing extents. */
typedef struct memplat_extents {
    int64_t *edges;
    size_t count, capacity;
} memplat_extents;

static inline int64_t memplat_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* The bytes that the host spends on a file (st_blocks), and its size; -1 and errno. */
static inline int memplat_status(int fd, int64_t *storage, int64_t *size) {
    struct stat status;
    if (fstat(fd, &status))
        return -1;
    *storage = (int64_t)status.st_blocks * 512;
    *size = (int64_t)status.st_size;
    return 0;
}

/* Room for two more edges. */
static inline int memplat_grow(memplat_extents *found) {
    if (found->count + 2 <= found->capacity)
        return 0;
    size_t capacity = found->capacity ? 2 * found->capacity : 1024;
    int64_t *edges = (int64_t *)realloc(found->edges, capacity * sizeof *edges);
    if (!edges) {
        errno = ENOMEM;
        return -1;
    }
    found->edges = edges;
    found->capacity = capacity;
    return 0;
}

/* Add an extent that begins where the last one ends, or behind. */
static inline int memplat_append(memplat_extents *found, int64_t start, int64_t end) {
    if (found->count && found->edges[found->count - 1] == start) {
        found->edges[found->count - 1] = end;
        return 0;
    }
    if (memplat_grow(found))
        return -1;
    found->edges[found->count++] = start;
    found->edges[found->count++] = end;
    return 0;
}

/* The touched pages of a part of a shmem file whose offset nobody else uses, as edges; -1 if there are more than *most*, or
 * whatever. lseek(2): SEEK_DATA finds "the next location in the file greater than or equal to offset containing data". It
 * is asked page by page, because SEEK_HOLE goes through all of the data. What has data at its front and in its middle is
 * not worth asking on. */
static inline int memplat_few_touched(int fd, int64_t start, int64_t end, int64_t page, int64_t *edges, int most) {
    const int64_t middle = start + (end - start) / 2 / page * page;
    int64_t position = start, offset = lseek(fd, 0, SEEK_CUR);
    int count = 0, pages = 0;
    if (offset < 0)
        return -1;
    while (position < end) {
        int64_t data = lseek(fd, position, SEEK_DATA);
        if (data < 0 ? errno == ENXIO : data >= end) {
            position = end; /* nothing more */
        } else if (data < position || pages == most ||
                   (data == start && middle > start && lseek(fd, middle, SEEK_DATA) == middle)) {
            break;
        } else {
            data = data / page * page;
            pages++;
            if (count && edges[count - 1] == data) {
                edges[count - 1] = data + page;
            } else {
                edges[count++] = data;
                edges[count++] = data + page;
            }
            position = data + page;
        }
    }
    return lseek(fd, offset, SEEK_SET) == offset && position >= end ? count : -1;
}

/* All of a file that is nearly empty and whose offset nobody else uses, by SEEK_DATA. How many edges, of 2 * most at the
 * most; -1 if they do not add up to the storage, or whatever. */
static inline int memplat_seek_few(int fd, int64_t storage, int64_t *edges, int most) {
    int count = 0;
    int64_t position = 0, missing = storage, offset = lseek(fd, 0, SEEK_CUR);
    if (offset < 0)
        return -1;
    while (missing > 0) {
        int64_t data = lseek(fd, position, SEEK_DATA), hole;
        if (data < position || (hole = lseek(fd, data, SEEK_HOLE)) <= data)
            break;
        if (count && edges[count - 1] == data) {
            edges[count - 1] = hole;
        } else if (count < 2 * most) {
            edges[count++] = data;
            edges[count++] = hole;
        } else {
            break;
        }
        missing -= hole - data;
        position = hole;
    }
    lseek(fd, offset, SEEK_SET);
    return missing ? -1 : count;
}

/* How a walk ended: at the end of what was asked for, not yet, or with the errno of one of the two seeks. */
enum { MEMPLAT_WALKED, MEMPLAT_MORE, MEMPLAT_NO_DATA, MEMPLAT_NO_HOLE, MEMPLAT_STALLED };

/* A walk along the data of a file. */
typedef struct memplat_walk {
    int64_t position, end, missing;  /* missing: bytes after which there cannot be any more */
    int stalled;
} memplat_walk;

#define MEMPLAT_MOST_STALLS 1000

/* Go on for so many extents, by SEEK_DATA and SEEK_HOLE. See memplat/linux/files.py, whose _walk() this is. */
static inline int memplat_seek(int fd, memplat_walk *walk, size_t steps, memplat_extents *found) {
    for (; walk->position < walk->end && walk->missing > 0; steps--) {
        int64_t data, hole;
        if (!steps)
            return MEMPLAT_MORE;
        data = lseek(fd, walk->position, SEEK_DATA);
        if (data < 0)
            return errno == ENXIO ? MEMPLAT_WALKED : MEMPLAT_NO_DATA;
        if (data >= walk->end)
            break;
        hole = lseek(fd, data, SEEK_HOLE);
        if (hole < 0)
            return errno == ENXIO ? MEMPLAT_WALKED : MEMPLAT_NO_HOLE; /* truncated between the two calls */
        /* A hole may be data a moment later (no extent of its own), and data a hole. */
        if (hole > data && memplat_append(found, data, hole < walk->end ? hole : walk->end)) {
            errno = ENOMEM;
            return MEMPLAT_NO_DATA;
        }
        walk->stalled = hole <= walk->position ? walk->stalled + 1 : 0;
        if (walk->stalled > MEMPLAT_MOST_STALLS || data < walk->position) {
            errno = EIO;
            return MEMPLAT_STALLED;
        }
        walk->missing -= hole - data;
        walk->position = hole;
    }
    return MEMPLAT_WALKED;
}

/* <linux/fs.h>, <linux/fiemap.h> */
#define MEMPLAT_FIEMAP 0xC020660BUL
#define MEMPLAT_FIEMAP_LAST 0x0001u
#define MEMPLAT_FIEMAP_DELALLOC 0x0004u
#define MEMPLAT_FIEMAP_CAPACITY 8192
#define MEMPLAT_FIEMAP_FIRST 128

typedef struct memplat_fiemap_extent {
    uint64_t logical, physical, length, reserved[2];
    uint32_t flags, more[3];
} memplat_fiemap_extent;

typedef struct memplat_fiemap {
    uint64_t start, length;
    uint32_t flags, mapped, capacity, reserved;
    memplat_fiemap_extent extents[MEMPLAT_FIEMAP_CAPACITY];
} memplat_fiemap;

/* What of a file has disk blocks. */
typedef struct memplat_blocks {
    int64_t start, end, position;
    size_t count, delayed; /* of the file system's own extents */
} memplat_blocks;

/* Go on for so many calls, with a buffer of one's own. 0: all of it is found; 1: not yet; -1 and errno. */
static inline int memplat_map_blocks(
    int fd, memplat_blocks *walk, size_t calls, memplat_fiemap *map, memplat_extents *found
) {
    for (; walk->position < walk->end; calls--) {
        int64_t reached = 0;
        uint32_t index;
        if (!calls)
            return 1;
        memset(map, 0, offsetof(memplat_fiemap, extents));
        map->start = (uint64_t)walk->position;
        map->length = (uint64_t)(walk->end - walk->position);
        map->capacity = walk->count ? MEMPLAT_FIEMAP_CAPACITY : MEMPLAT_FIEMAP_FIRST;
        if (ioctl(fd, MEMPLAT_FIEMAP, map))
            return -1;
        if (!map->mapped)
            break;
        for (index = 0; index < map->mapped; index++) {
            memplat_fiemap_extent *extent = &map->extents[index];
            int64_t start = (int64_t)extent->logical, end = (int64_t)(extent->logical + extent->length);
            /* It may reach outside of what was asked for, or have grown into what is listed already. */
            int64_t floor = found->count ? found->edges[found->count - 1] : walk->start;
            walk->count++;
            walk->delayed += extent->flags & MEMPLAT_FIEMAP_DELALLOC ? 1 : 0;
            reached = end > reached ? end : reached;
            start = start > floor ? start : floor;
            end = end < walk->end ? end : walk->end;
            if (start < end && memplat_append(found, start, end)) {
                errno = ENOMEM;
                return -1;
            }
        }
        walk->position = reached > walk->position ? reached : walk->position + 1;
        if (map->extents[map->mapped - 1].flags & MEMPLAT_FIEMAP_LAST)
            break;
    }
    return 0;
}

/* What of these categories is in the page tables of [address + start, address + end), as extents of file offsets; the bytes in
 * all, or -1 and errno. After EINTR it goes on from where it was: *position, which the caller sets to start at the beginning. */
static inline int64_t memplat_pagemap(
    int pagemap, uint64_t address, uint64_t end, uint64_t categories, uint64_t *position, memplat_region *regions,
    memplat_extents *found
) {
    uint64_t limit = address + end;
    int64_t total = 0;
    size_t index;
    while (*position < end) {
        memplat_scan_arg argument;
        memset(&argument, 0, sizeof argument);
        argument.size = sizeof argument;
        argument.start = address + *position;
        argument.end = limit;
        argument.vec = (uint64_t)(uintptr_t)regions;
        argument.vec_len = MEMPLAT_REGIONS;
        argument.category_anyof_mask = categories;
        long count = ioctl(pagemap, MEMPLAT_PAGEMAP_SCAN, &argument);
        if (count < 0)
            return -1;
        if (!count)
            break;
        for (index = 0; index < (size_t)count; index++) {
            if (memplat_append(found, (int64_t)(regions[index].start - address), (int64_t)(regions[index].end - address)))
                return -1;
        }
        /* walk_end can lie below the end of the last region, which would then be reported again. */
        uint64_t reached = argument.walk_end > regions[count - 1].end ? argument.walk_end : regions[count - 1].end;
        *position = reached - address;
    }
    for (index = 0; index < found->count; index += 2)
        total += found->edges[index + 1] - found->edges[index];
    return total;
}

/* The bytes in all extents, if they are a proper answer of a probe of [start, end) by pages; else -1. */
static inline int64_t memplat_measure(const int64_t *edges, size_t count, int64_t start, int64_t end, int64_t page_mask) {
    int64_t total = 0, last = start - 1, odd = 0;
    size_t index;
    if (!count)
        return 0;
    if (count % 2 || edges[0] < start || start < 0 || edges[count - 1] > end)
        return -1;
    for (index = 0; index < count; index += 2) {
        if (edges[index] <= last || edges[index + 1] <= edges[index])
            return -1;
        last = edges[index + 1];
        odd |= edges[index] | last;
        total += last - edges[index];
    }
    return odd & page_mask ? -1 : total;
}

#endif
