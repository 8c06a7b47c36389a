/* What the host itself takes, without Python in between. Each function does its work n times and returns nanoseconds. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096 };

static long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

long time_getppid(long n) {
    long start = now();
    while (n--) syscall(SYS_getppid);
    return now() - start;
}

long time_fstat(int fd, long n) {
    struct stat status;
    long start = now();
    while (n--) fstat(fd, &status);
    return now() - start;
}

long time_memset(char *target, long length, long n) {
    long start = now();
    while (n--) {
        memset(target, 0, length);
        __asm__ volatile("" : : "r"(target) : "memory"); /* each one counts: not to be left out */
    }
    return now() - start;
}

long time_faults(char *base, long n) {
    long start = now();
    for (long page = 0; page < n; page++) *(volatile char *)(base + page * PAGE) = 1;
    return now() - start;
}

/* order: page numbers. -1 if the host refuses. */
long time_punches(int fd, const long *order, long n) {
    long start = now();
    for (long i = 0; i < n; i++)
        if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, order[i] * PAGE, PAGE)) return -1;
    return now() - start;
}

long time_seek_walk(int fd, long size) {
    long start = now();
    for (long data, at = 0; at < size && (data = lseek(fd, at, SEEK_DATA)) >= 0;) at = lseek(fd, data, SEEK_HOLE);
    return now() - start;
}
