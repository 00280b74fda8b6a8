/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <endian.h>
#include <string.h>

#include "compress/page-words.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

#define EACH_BYTE(x) (UINT64_C(0x0101010101010101) * (x))
#define INLINE static inline __attribute__((always_inline))

/* Where a stride is judged, in words: places of differing phase to all usual record sizes. */
static const uint16_t stride_samples[8] = {80, 330, 138, 430, 200, 390, 265, 496};

INLINE uint64_t load64(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, 8);
    return le64toh(v);
}

INLINE void store64(uint8_t *p, uint64_t v)
{
    v = htole64(v);
    memcpy(p, &v, 8);
}

/* How many bits are set in each byte. */
INLINE uint64_t byte_counts(uint64_t m)
{
    uint64_t c = m - (m >> 1 & EACH_BYTE(0x55));

    c = (c & EACH_BYTE(0x33)) + (c >> 2 & EACH_BYTE(0x33));
    return (c + (c >> 4)) & EACH_BYTE(0x0f);
}

/* Bytes of m with 5 bits or more become 0xff. */
INLINE uint64_t widen(uint64_t m)
{
    return m | ((byte_counts(m) + EACH_BYTE(3)) >> 3 & EACH_BYTE(1)) * 0xff;
}

/* Bit j is the highest of byte j of m, which has no others. */
INLINE unsigned bits_of(uint64_t m)
{
    return (unsigned)((m >> 7) * UINT64_C(0x0102040810204080) >> 56);
}

/* Bit j set when byte j of m is not zero. */
INLINE unsigned nonzero_bytes(uint64_t m)
{
    return bits_of((((m & EACH_BYTE(0x7f)) + EACH_BYTE(0x7f)) | m) & EACH_BYTE(0x80));
}

INLINE uint64_t subtract_bytes(uint64_t a, uint64_t b)
{
    const uint64_t high = EACH_BYTE(0x80);

    return ((a | high) - (b & ~high)) ^ ((a ^ ~b) & high);
}

INLINE uint64_t add_bytes(uint64_t a, uint64_t b)
{
    const uint64_t high = EACH_BYTE(0x80);

    return ((a & ~high) + (b & ~high)) ^ ((a ^ b) & high);
}

/* 0xff in each byte whose bit is set in b. */
INLINE uint64_t expand_mask(unsigned b)
{
    uint64_t spread = EACH_BYTE((uint64_t)b) & UINT64_C(0x8040201008040201);

    return (((spread + EACH_BYTE(0x7f)) | spread) >> 7 & EACH_BYTE(1)) * 0xff;
}

INLINE uint64_t gather_plain(uint64_t v, unsigned b)
{
    uint64_t out = 0;

    for (unsigned at = 0; b; b &= b - 1, at += 8)
        out |= (v >> 8 * __builtin_ctz(b) & 0xff) << at;
    return out;
}

INLINE uint64_t scatter_plain(uint64_t v, unsigned b)
{
    uint64_t out = 0;

    for (; b; b &= b - 1, v >>= 8)
        out |= (v & 0xff) << 8 * __builtin_ctz(b);
    return out;
}

/* Plain C */

INLINE uint64_t line_differs_plain(const uint8_t *a, const uint8_t *b)
{
    uint64_t mask = 0;

    for (int j = 0; j < 8; j++)
        mask |= (uint64_t)nonzero_bytes(load64(a + 8 * j) ^ load64(b + 8 * j)) << 8 * j;
    return mask;
}

INLINE uint8_t line_words_plain(const uint8_t *a, const uint8_t *b)
{
    unsigned words = 0;

    for (int j = 0; j < 8; j++)
        words |= (unsigned)(load64(a + 8 * j) != load64(b + 8 * j)) << j;
    return (uint8_t)words;
}

INLINE uint64_t line_nonzero_plain(const uint8_t *a)
{
    static const uint8_t zeros[PAGE_LINE_BYTES];

    return line_differs_plain(a, zeros);
}

INLINE int popcount_plain(uint64_t v)
{
    return (int)(byte_counts(v) * EACH_BYTE(1) >> 56);
}

INLINE bool print_is(const struct page_prints *prints, unsigned line, uint64_t print)
{
    return prints->high[line] == print >> 16 && prints->low[line] == (uint16_t)print;
}

/* The sums, from which the fingerprint takes 32 and 16 bits. */
INLINE uint64_t print_of(uint64_t high, uint64_t low)
{
    return high >> 32 << 16 | low >> 48;
}

INLINE uint64_t line_print_plain(const uint8_t *line, const uint64_t *key)
{
    uint64_t high = 0, low = 0;

    for (int j = 0; j < 8; j++) {
        uint64_t v = load64(line + 8 * j), a = v & UINT32_MAX, b = v >> 32;

        high += (key[j] + a) * (key[8 + j] + b);
        low += (key[16 + j] + a) * (key[24 + j] + b);
    }
    return print_of(high, low);
}

/* One line, word by word. */
INLINE void line_take_plain(const uint8_t *page, const uint8_t *guess, uint64_t mask,
                            bool difference, struct page_parts *parts)
{
    unsigned words;

    mask = widen(mask);
    words = nonzero_bytes(mask);
    *parts->words++ = (uint8_t)words;
    if (mask == UINT64_MAX) {
        memset(parts->bytes, 0xff, 8);
        memcpy(parts->data, page, PAGE_LINE_BYTES);
        parts->bytes += 8;
        parts->data += PAGE_LINE_BYTES;
        return;
    }
    for (; words; words &= words - 1) {
        int at = 8 * __builtin_ctz(words);
        unsigned b = mask >> at & 0xff;
        uint64_t v = load64(page + at);

        *parts->bytes++ = (uint8_t)b;
        if (b != 0xff) {
            if (difference)
                v = subtract_bytes(v, load64(guess + at));
            v = gather_plain(v, b);
        }
        store64(parts->data, v);
        parts->data += popcount_plain(b);
    }
}

INLINE void line_put_plain(uint8_t *page, const uint8_t *guess, bool difference,
                           struct page_parts *parts)
{
    unsigned words = *parts->words++;

    if (words == 0xff && load64(parts->bytes) == UINT64_MAX) {
        memcpy(page, parts->data, PAGE_LINE_BYTES);
        parts->bytes += 8;
        parts->data += PAGE_LINE_BYTES;
        return;
    }
    if (page != guess)
        memcpy(page, guess, PAGE_LINE_BYTES);
    for (; words; words &= words - 1) {
        int at = 8 * __builtin_ctz(words);
        unsigned b = *parts->bytes++;
        uint64_t v = load64(parts->data), old = load64(page + at);

        if (b != 0xff) {
            uint64_t mask = expand_mask(b);

            v = scatter_plain(v, b);
            if (difference)
                v = add_bytes(v, old);
            v = (v & mask) | (old & ~mask);
        }
        store64(page + at, v);
        parts->data += popcount_plain(b);
    }
}

#define ISA(name) plain_##name
#define ISA_NAME "plain"
#define TARGET
#define line_differs line_differs_plain
#define line_nonzero line_nonzero_plain
#define line_words line_words_plain
#define line_copy(to, from) memcpy(to, from, PAGE_LINE_BYTES)
#define line_take line_take_plain
#define line_put line_put_plain
#define line_print line_print_plain
#define popcount64 popcount_plain
#include "compress/page-words-loops.h"

#ifdef __x86_64__

/* SSE2: every x86-64 has it */

INLINE uint64_t line_differs_sse2(const uint8_t *a, const uint8_t *b)
{
    uint64_t mask = 0;

    for (int j = 0; j < 4; j++) {
        __m128i x = _mm_loadu_si128((const __m128i *)a + j),
                y = _mm_loadu_si128((const __m128i *)b + j);

        mask |= (uint64_t)(uint16_t)_mm_movemask_epi8(_mm_cmpeq_epi8(x, y)) << 16 * j;
    }
    return ~mask;
}

INLINE uint64_t line_nonzero_sse2(const uint8_t *a)
{
    static const uint8_t zeros[PAGE_LINE_BYTES];

    return line_differs_sse2(a, zeros);
}

#define ISA(name) sse2_##name
#define ISA_NAME "sse2"
#define TARGET
#define line_differs line_differs_sse2
#define line_nonzero line_nonzero_sse2
#define line_words line_words_plain
#define line_copy(to, from) memcpy(to, from, PAGE_LINE_BYTES)
#define line_take line_take_plain
#define line_put line_put_plain
#define line_print line_print_plain
#define popcount64 popcount_plain
#include "compress/page-words-loops.h"

/* AVX2; bytes are gathered and scattered by table */

#define TARGET_AVX2 __attribute__((target("avx2,bmi2,popcnt")))

TARGET_AVX2 INLINE uint64_t line_differs_avx2(const uint8_t *a, const uint8_t *b)
{
    __m256i low = _mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)a),
                                    _mm256_loadu_si256((const __m256i *)b));
    __m256i high = _mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)a + 1),
                                     _mm256_loadu_si256((const __m256i *)b + 1));

    return ~((uint64_t)(uint32_t)_mm256_movemask_epi8(high) << 32 |
             (uint32_t)_mm256_movemask_epi8(low));
}

TARGET_AVX2 INLINE uint8_t line_words_avx2(const uint8_t *a, const uint8_t *b)
{
    __m256i low = _mm256_cmpeq_epi64(_mm256_loadu_si256((const __m256i *)a),
                                     _mm256_loadu_si256((const __m256i *)b));
    __m256i high = _mm256_cmpeq_epi64(_mm256_loadu_si256((const __m256i *)a + 1),
                                      _mm256_loadu_si256((const __m256i *)b + 1));

    return (uint8_t)~(_mm256_movemask_pd(_mm256_castsi256_pd(high)) << 4 |
                      _mm256_movemask_pd(_mm256_castsi256_pd(low)));
}

TARGET_AVX2 INLINE uint64_t line_nonzero_avx2(const uint8_t *a)
{
    static const uint8_t zeros[PAGE_LINE_BYTES];

    return line_differs_avx2(a, zeros);
}

TARGET_AVX2 INLINE void line_copy_avx2(uint8_t *to, const uint8_t *from)
{
    __m256i low = _mm256_loadu_si256((const __m256i *)from);
    __m256i high = _mm256_loadu_si256((const __m256i *)from + 1);

    _mm256_storeu_si256((__m256i *)to, low);
    _mm256_storeu_si256((__m256i *)to + 1, high);
}

TARGET_AVX2 INLINE __m256i multiply_avx2(__m256i a, __m256i b)
{
    __m256i cross = _mm256_add_epi64(_mm256_mul_epu32(_mm256_srli_epi64(a, 32), b),
                                     _mm256_mul_epu32(a, _mm256_srli_epi64(b, 32)));

    return _mm256_add_epi64(_mm256_mul_epu32(a, b), _mm256_slli_epi64(cross, 32));
}

/* (even + one) * (odd + other) for the halves of four words. */
TARGET_AVX2 INLINE __m256i print_part_avx2(__m256i v, const uint64_t *one, const uint64_t *other)
{
    __m256i even = _mm256_and_si256(v, _mm256_set1_epi64x(UINT32_MAX));
    __m256i odd = _mm256_srli_epi64(v, 32);

    return multiply_avx2(_mm256_add_epi64(even, _mm256_loadu_si256((const __m256i *)one)),
                         _mm256_add_epi64(odd, _mm256_loadu_si256((const __m256i *)other)));
}

TARGET_AVX2 INLINE uint64_t line_print_avx2(const uint8_t *line, const uint64_t *key)
{
    __m256i a = _mm256_loadu_si256((const __m256i *)line);
    __m256i b = _mm256_loadu_si256((const __m256i *)line + 1);

    __m256i high = _mm256_add_epi64(print_part_avx2(a, key, key + 8),
                                    print_part_avx2(b, key + 4, key + 12));
    __m256i low = _mm256_add_epi64(print_part_avx2(a, key + 16, key + 24),
                                   print_part_avx2(b, key + 20, key + 28));
    __m256i sum = _mm256_add_epi64(_mm256_unpacklo_epi64(high, low),
                                   _mm256_unpackhi_epi64(high, low));
    __m128i both = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));

    return print_of((uint64_t)_mm_cvtsi128_si64(both),
                    (uint64_t)_mm_cvtsi128_si64(_mm_unpackhi_epi64(both, both)));
}

/*
 * For each b: the places of its bits in ascending order, a byte each, the rest 0 (pack); for each of
 * its bits how many are below it, the rest 0 (spread).
 */
#define BITS_BELOW(b, i) ((unsigned)__builtin_popcount((b) & ((1u << (i)) - 1)))
#define PACK_1(b, i) ((b) >> (i) & 1 ? UINT64_C(i) << 8 * BITS_BELOW(b, i) : 0)
#define SPREAD_1(b, i) ((b) >> (i) & 1 ? (uint64_t)BITS_BELOW(b, i) << 8 * (i) : 0)
#define ALL_8(f, b)                                                                                \
    (f(b, 0) | f(b, 1) | f(b, 2) | f(b, 3) | f(b, 4) | f(b, 5) | f(b, 6) | f(b, 7))
#define TABLE_4(f, b) ALL_8(f, (b) + 0u), ALL_8(f, (b) + 1u), ALL_8(f, (b) + 2u), ALL_8(f, (b) + 3u)
#define TABLE_16(f, b) TABLE_4(f, b), TABLE_4(f, (b) + 4), TABLE_4(f, (b) + 8), TABLE_4(f, (b) + 12)
#define TABLE_64(f, b)                                                                             \
    TABLE_16(f, b), TABLE_16(f, (b) + 16), TABLE_16(f, (b) + 32), TABLE_16(f, (b) + 48)
#define TABLE_256(f) TABLE_64(f, 0), TABLE_64(f, 64), TABLE_64(f, 128), TABLE_64(f, 192)

/* One more: a table entry is read with what is behind it. */
static const uint64_t pack[257] = {TABLE_256(PACK_1), 0};
static const uint64_t spread[257] = {TABLE_256(SPREAD_1), 0};

TARGET_AVX2 INLINE uint64_t shuffle_avx2(uint64_t v, const uint64_t *order)
{
    return (uint64_t)_mm_cvtsi128_si64(_mm_shuffle_epi8(
        _mm_cvtsi64_si128((long long)v), _mm_loadu_si128((const __m128i *)order)));
}

/* All ones in each word of half a line whose bit is set. */
TARGET_AVX2 INLINE __m256i half_mask_avx2(unsigned words)
{
    const __m256i bit = _mm256_setr_epi64x(1, 2, 4, 8);

    return _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(words), bit), bit);
}

/*
 * All words alike and no loop: which of them differ cannot be guessed.  What is written behind the
 * bytes of a word is overwritten by those of the next.
 */
#define TAKE_WORD(at)                                                                              \
    store64(parts->data + (before >> (at) & 0xff),                                                 \
            shuffle_avx2(load64(page + (at)), &pack[mask >> (at) & 0xff]))

TARGET_AVX2 INLINE void line_take_avx2(const uint8_t *page, const uint8_t *guess, uint64_t mask,
                                       bool difference, struct page_parts *parts)
{
    uint8_t line[PAGE_LINE_BYTES];
    uint64_t count = byte_counts(mask), full = (count + EACH_BYTE(3)) >> 3 & EACH_BYTE(1), before;
    unsigned words;

    mask |= full * 0xff;
    count = (count & ~(full * 15)) | full << 3;
    words = bits_of((count + EACH_BYTE(0x7f)) & EACH_BYTE(0x80));
    *parts->words++ = (uint8_t)words;
    store64(parts->bytes, shuffle_avx2(mask, &pack[words]));
    parts->bytes += __builtin_popcount(words);
    if (difference) {
        unsigned part = ~bits_of(full << 7); /* the words that are not there whole */

        for (int i = 0; i < 2; i++) {
            __m256i v = _mm256_loadu_si256((const __m256i *)page + i);
            __m256i old = _mm256_loadu_si256((const __m256i *)guess + i);

            old = _mm256_and_si256(old, half_mask_avx2(part >> 4 * i));
            _mm256_storeu_si256((__m256i *)line + i, _mm256_sub_epi8(v, old));
        }
        page = line;
    } else if (!(words & (words - 1))) {
        int at = 8 * __builtin_ctz(words);

        store64(parts->data, shuffle_avx2(load64(page + at), &pack[mask >> at & 0xff]));
        parts->data += __builtin_popcountll(mask);
        return;
    }
    before = count * EACH_BYTE(1) << 8;
    TAKE_WORD(0);
    TAKE_WORD(8);
    TAKE_WORD(16);
    TAKE_WORD(24);
    TAKE_WORD(32);
    TAKE_WORD(40);
    TAKE_WORD(48);
    TAKE_WORD(56);
    parts->data += __builtin_popcountll(mask);
}

#define PUT_WORD(at)                                                                               \
    store64(line + (at), shuffle_avx2(load64(parts->data + (before >> (at) & 0xff)),               \
                                      &spread[each >> (at) & 0xff]))

TARGET_AVX2 INLINE void line_put_avx2(uint8_t *page, const uint8_t *guess, bool difference,
                                      struct page_parts *parts)
{
    unsigned words = *parts->words++;
    uint64_t each = shuffle_avx2(load64(parts->bytes), &spread[words]) & expand_mask(words);
    uint64_t before = byte_counts(each) * EACH_BYTE(1) << 8;
    uint8_t line[PAGE_LINE_BYTES];

    PUT_WORD(0);
    PUT_WORD(8);
    PUT_WORD(16);
    PUT_WORD(24);
    PUT_WORD(32);
    PUT_WORD(40);
    PUT_WORD(48);
    PUT_WORD(56);
    for (int i = 0; i < 2; i++) {
        const __m256i bit = _mm256_set1_epi64x((long long)UINT64_C(0x8040201008040201));
        uint32_t half = (uint32_t)(each >> 32 * i);
        /* Each bit of the mask to its byte: a byte of it to all of its word, then its bit alone. */
        __m256i m = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128((int)half));
        __m256i full = _mm256_cmpeq_epi64(m, _mm256_set1_epi64x(0xff));
        __m256i old = _mm256_loadu_si256((const __m256i *)guess + i);
        __m256i v = _mm256_loadu_si256((const __m256i *)line + i);

        m = _mm256_shuffle_epi8(m, _mm256_setr_epi64x(0, EACH_BYTE(8), 0, EACH_BYTE(8)));
        m = _mm256_cmpeq_epi8(_mm256_and_si256(m, bit), bit);
        if (difference)
            v = _mm256_add_epi8(v, _mm256_andnot_si256(full, old));
        _mm256_storeu_si256((__m256i *)page + i, _mm256_blendv_epi8(old, v, m));
    }
    parts->bytes += __builtin_popcount(words);
    parts->data += __builtin_popcountll(each);
}

#define ISA(name) avx2_##name
#define ISA_NAME "avx2"
#define TARGET TARGET_AVX2
#define line_differs line_differs_avx2
#define line_nonzero line_nonzero_avx2
#define line_words line_words_avx2
#define line_copy line_copy_avx2
#define line_take line_take_avx2
#define line_put line_put_avx2
#define line_print line_print_avx2
#define popcount64 __builtin_popcountll
#include "compress/page-words-loops.h"

/* AVX-512 as from Ice Lake and Zen 4 on: a whole line at a time */

#define TARGET_AVX512                                                                              \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,avx512bitalg,popcnt")))

TARGET_AVX512 INLINE uint64_t line_differs_avx512(const uint8_t *a, const uint8_t *b)
{
    return _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(a), _mm512_loadu_si512(b));
}

TARGET_AVX512 INLINE uint8_t line_words_avx512(const uint8_t *a, const uint8_t *b)
{
    return _mm512_cmpneq_epi64_mask(_mm512_loadu_si512(a), _mm512_loadu_si512(b));
}

TARGET_AVX512 INLINE uint64_t line_nonzero_avx512(const uint8_t *a)
{
    __m512i v = _mm512_loadu_si512(a);

    return _mm512_test_epi8_mask(v, v);
}

TARGET_AVX512 INLINE void line_copy_avx512(uint8_t *to, const uint8_t *from)
{
    _mm512_storeu_si512(to, _mm512_loadu_si512(from));
}

TARGET_AVX512 INLINE void line_take_avx512(const uint8_t *page, const uint8_t *guess, uint64_t mask,
                                           bool difference, struct page_parts *parts)
{
    __m128i each = _mm_cvtsi64_si128((long long)mask);
    __mmask16 full = _mm_cmpgt_epi8_mask(_mm_popcnt_epi8(each), _mm_set1_epi8(4));
    __m512i v = _mm512_loadu_si512(page);
    __mmask16 words;

    each = _mm_or_si128(each, _mm_movm_epi8(full));
    words = _mm_test_epi8_mask(each, each);
    mask = (uint64_t)_mm_cvtsi128_si64(each);
    *parts->words++ = (uint8_t)words;
    _mm_storel_epi64((__m128i *)parts->bytes, _mm_maskz_compress_epi8(words, each));
    parts->bytes += __builtin_popcount(words);
    if (difference)
        v = _mm512_mask_blend_epi64((__mmask8)full, _mm512_sub_epi8(v, _mm512_loadu_si512(guess)),
                                    v);
    _mm512_storeu_si512(parts->data, _mm512_maskz_compress_epi8(mask, v));
    parts->data += __builtin_popcountll(mask);
}

TARGET_AVX512 INLINE void line_put_avx512(uint8_t *page, const uint8_t *guess, bool difference,
                                          struct page_parts *parts)
{
    __mmask16 words = *parts->words++;
    __m128i each = _mm_maskz_expand_epi8(words, _mm_loadl_epi64((const __m128i *)parts->bytes));
    __mmask16 full = _mm_cmpeq_epi8_mask(each, _mm_set1_epi8(-1));
    uint64_t mask = (uint64_t)_mm_cvtsi128_si64(each);
    __m512i old = _mm512_loadu_si512(guess);
    __m512i v = _mm512_maskz_expand_epi8(mask, _mm512_loadu_si512(parts->data));

    parts->bytes += __builtin_popcount(words);
    parts->data += __builtin_popcountll(mask);
    if (difference)
        v = _mm512_mask_blend_epi64((__mmask8)full, _mm512_add_epi8(v, old), v);
    _mm512_storeu_si512(page, _mm512_mask_blend_epi8(mask, old, v));
}

TARGET_AVX512 INLINE __m512i print_part_avx512(__m512i v, const uint64_t *key)
{
    __m512i even = _mm512_and_si512(v, _mm512_set1_epi64(UINT32_MAX));
    __m512i odd = _mm512_srli_epi64(v, 32);

    return _mm512_mullo_epi64(_mm512_add_epi64(even, _mm512_loadu_si512(key)),
                              _mm512_add_epi64(odd, _mm512_loadu_si512(key + 8)));
}

TARGET_AVX512 INLINE uint64_t line_print_avx512(const uint8_t *line, const uint64_t *key)
{
    __m512i v = _mm512_loadu_si512(line);
    __m512i high = print_part_avx512(v, key), low = print_part_avx512(v, key + 16);
    __m512i sum = _mm512_add_epi64(_mm512_unpacklo_epi64(high, low),
                                   _mm512_unpackhi_epi64(high, low));
    __m256i half = _mm256_add_epi64(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
    __m128i both = _mm_add_epi64(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));

    return print_of((uint64_t)_mm_cvtsi128_si64(both),
                    (uint64_t)_mm_cvtsi128_si64(_mm_unpackhi_epi64(both, both)));
}

#define ISA(name) avx512_##name
#define ISA_NAME "avx512"
#define TARGET TARGET_AVX512
#define line_differs line_differs_avx512
#define line_nonzero line_nonzero_avx512
#define line_words line_words_avx512
#define line_copy line_copy_avx512
#define line_take line_take_avx512
#define line_put line_put_avx512
#define line_print line_print_avx512
#define popcount64 __builtin_popcountll
#include "compress/page-words-loops.h"

static const struct page_words_ops *const all[] = {&avx512_ops, &avx2_ops, &sse2_ops, &plain_ops,
                                                   NULL};

const struct page_words_ops *const *page_words_list(void)
{
    if (__builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512bitalg") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return all;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
        __builtin_cpu_supports("popcnt"))
        return all + 1;
    return all + 2;
}

#else

static const struct page_words_ops *const all[] = {&plain_ops, NULL};

const struct page_words_ops *const *page_words_list(void)
{
    return all;
}

#endif

const struct page_words_ops *page_words_named(const char *name)
{
    const struct page_words_ops *const *ops = page_words_list();

    while (name && *ops && strcmp((*ops)->name, name) != 0)
        ops++;
    return *ops;
}
