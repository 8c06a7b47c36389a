/* Searches within a node: all its keys or weights are looked at, without a branch that depends on them. Twice: for any
 * processor, and for those of x86-64 with AVX2, which compare four at a time and wait for all lines of the cache at once.
 */

#ifndef MEMPLAT_TREE_VECTOR_H
#define MEMPLAT_TREE_VECTOR_H

#include <stdint.h>

#if defined(__x86_64__) && !defined(TREE_PLAIN)
#define TREE_HAS_WIDE 1
#include <immintrin.h>
#define TREE_WIDE __attribute__((target("avx2,popcnt,bmi")))
#else
#define TREE_HAS_WIDE 0
#endif

#define TREE_INLINE static inline __attribute__((always_inline))

/* The lowest bits. */
TREE_INLINE uint64_t low_bits(unsigned count) {
    return count < 64 ? ((uint64_t)1 << count) - 1 : ~(uint64_t)0;
}

/* How many of the ascending keys are not above the key, at least 1: the first one never is. */
TREE_INLINE unsigned rank_plain(const uint64_t *keys, unsigned count, uint64_t key) {
    const uint64_t *base = keys;
    while (count > 1) {
        unsigned half = count / 2;
        base += base[half] <= key ? half : 0;
        count -= half;
    }
    return (unsigned)(base - keys) + 1;
}

/* The first of the weights that is not less, or the count. */
TREE_INLINE unsigned first_plain(const uint64_t *weights, unsigned count, uint64_t weight) {
    unsigned i = 0;
    while (i < count && weights[i] < weight)
        i++;
    return i;
}

TREE_INLINE uint64_t greatest_plain(const uint64_t *values, unsigned count) {
    uint64_t most = 0;
    for (unsigned i = 0; i < count; i++)
        most = values[i] > most ? values[i] : most;
    return most;
}

#if TREE_HAS_WIDE

TREE_WIDE static uint64_t greatest_wide(const uint64_t *values, unsigned count) {
    __m256i most = _mm256_setzero_si256();
    unsigned i = 0;
    for (; i + 4 <= count; i += 4) {
        __m256i here = _mm256_loadu_si256((const __m256i *)(values + i));
        most = _mm256_blendv_epi8(most, here, _mm256_cmpgt_epi64(here, most));
    }
    uint64_t found[4];
    _mm256_storeu_si256((__m256i *)found, most);
    uint64_t rest = greatest_plain(values + i, count - i), all = greatest_plain(found, 4);
    return rest > all ? rest : all;
}

/* Which of all places of a node (what lies behind the count is to be ignored) hold less. */
TREE_WIDE TREE_INLINE uint64_t less_than(const uint64_t *values, unsigned places, uint64_t than) {
    __m256i wanted = _mm256_set1_epi64x((long long)than);
    uint64_t found = 0;
#pragma GCC unroll 16
    for (unsigned i = 0; i < places; i += 4) {
        __m256i here = _mm256_loadu_si256((const __m256i *)(values + i));
        unsigned bits = (unsigned)_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(wanted, here)));
        found |= (uint64_t)bits << i;
    }
    return found;
}

TREE_WIDE TREE_INLINE unsigned rank_wide(const uint64_t *keys, unsigned places, unsigned count, uint64_t key) {
    return (unsigned)__builtin_popcountll(less_than(keys, places, key + 1) & low_bits(count));
}

TREE_WIDE TREE_INLINE unsigned first_wide(
    const uint64_t *weights, unsigned places, unsigned count, uint64_t weight) {
    uint64_t found = ~less_than(weights, places, weight) & low_bits(count);
    return found ? (unsigned)__builtin_ctzll(found) : count;
}

#endif

#endif
