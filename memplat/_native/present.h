/* Whether pages can be written to without the host having to supply anything. */

#ifndef MEMPLAT_PRESENT_H
#define MEMPLAT_PRESENT_H

#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MEMPLAT_PRESENT_STEP = 2048 }; /* pages a call: the answer stands on the stack */

/* mincore(2): "the least significant bit of each byte will be set if the corresponding page is currently resident in
   memory". On shmem that means that it has storage, mapped here or not. To somebody who is not the owner and may not
   write it answers that all are: so only *owner*, as whom the file was made, is told anything. -1 is nobody. */
static inline int memplat_all_present(char *address, size_t length, long owner)
{
    unsigned char pages[MEMPLAT_PRESENT_STEP];
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);

    if (owner < 0 || (long)geteuid() != owner)
        return 0;
    while (length) {
        size_t part = length < page * MEMPLAT_PRESENT_STEP ? length : page * MEMPLAT_PRESENT_STEP;
        size_t count = part / page;
        unsigned char all = 1;

        if (part % page || mincore(address, part, pages))
            return 0;
        for (size_t index = 0; index < count; index++)
            all &= pages[index];
        if (!(all & 1))
            return 0;
        address += part;
        length -= part;
    }
    return 1;
}

#endif
