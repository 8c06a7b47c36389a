/* Uses memory in every way that the sandbox has: each line that it prints begins with "good" or "BAD". */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
static char initialized[3 * PAGE] = "from the file";
static int failures;

static void check(int good, const char *what)
{
    printf("%s %s\n", good ? "good" : "BAD ", what);
    failures += !good;
}

int main(int argc, char **argv)
{
    size_t length = 512 * PAGE;
    char *map = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int zero = 1;
    for (size_t i = 0; i < length; i += PAGE)
        zero &= map[i] == 0;
    check(map != MAP_FAILED && zero, "mmap gives zeros");
    for (size_t i = 0; i < length; i++)
        map[i] = (char)(i * 7);
    check(map[length - 1] == (char)((length - 1) * 7), "and keeps what is stored");

    check(madvise(map, length / 2, MADV_DONTNEED) == 0 && map[0] == 0 && map[PAGE] == 0, "MADV_DONTNEED makes zeros");
    check(map[length / 2 + 1] == (char)((length / 2 + 1) * 7), "and only there");

    check(munmap(map + 16 * PAGE, 16 * PAGE) == 0, "munmap of a part");
    char *hole = mmap(map + 16 * PAGE, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    check(hole == map + 16 * PAGE && hole[5] == 0, "MAP_FIXED puts zeros there");

    check(mprotect(map, PAGE, PROT_READ) == 0 && map[3] == 0, "mprotect leaves reading");
    check(mprotect(map, PAGE, PROT_READ | PROT_WRITE) == 0 && (map[3] = 9) == 9, "and gives writing back");
    check(mprotect(map, PAGE, PROT_WRITE | PROT_EXEC) != 0, "never writing and executing at once");

    char *grown = mremap(map + 256 * PAGE, 256 * PAGE, 1024 * PAGE, MREMAP_MAYMOVE);
    check(grown != MAP_FAILED && grown[1] == (char)((256 * PAGE + 1) * 7) && grown[1023 * PAGE] == 0, "mremap");

    char *old = sbrk(0);
    check(sbrk(64 * PAGE) == old, "brk");
    memset(old, 1, 64 * PAGE);
    check(sbrk(-32 * PAGE) == old + 64 * PAGE && sbrk(32 * PAGE) == old + 32 * PAGE && old[40 * PAGE] == 0, "brk down and up: zeros");

    check(strcmp(initialized, "from the file") == 0, "data from the file");
    strcpy(initialized, "copied on write");
    check(strcmp(initialized, "copied on write") == 0, "copied on write");

    char *heap = malloc(3 << 20);
    memset(heap, 5, 3 << 20);
    check(heap[(3 << 20) - 1] == 5, "malloc");
    free(heap);

    if (argc > 1 && strcmp(argv[1], "crash") == 0) {
        fflush(stdout);
        *(volatile int *)(grown + 2048 * PAGE) = 1;
    }
    if (argc > 1 && strcmp(argv[1], "eat") == 0)
        for (size_t n = 0;; n += 1 << 20) {
            char *more = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            memset(more, 1, 1 << 20);
        }
    return failures;
}
