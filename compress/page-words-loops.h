/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The loops of page-words.c, included once for each instruction set with these defined:
 *
 *   ISA(name)    the name of this version's function
 *   TARGET       its target attribute
 *   line_differs(a, b), line_nonzero(a)    a bit for each byte that differs, that is not zero
 *   line_words(a, b)           a bit for each word that differs
 *   line_copy(to, from)
 *   popcount64(v)
 *   line_take(page, prediction, mask, difference, parts)   writes one line; mask is not 0
 *   line_put(page, prediction, difference, parts)
 *   line_print(line, key)      48 bits
 */

TARGET static void ISA(copy)(uint8_t *to, const uint8_t *from)
{
    for (int i = 0; i < PAGE_LINES; i++)
        line_copy(to + i * PAGE_LINE_BYTES, from + i * PAGE_LINE_BYTES);
}

TARGET static uint64_t ISA(take)(const uint8_t *page, const uint8_t *prediction, int from, int to,
                                 bool difference, struct page_parts *parts)
{
    struct page_parts at = *parts;
    uint64_t lines = 0;

    for (int i = from; i < to; i++) {
        const uint8_t *line = page + i * PAGE_LINE_BYTES, *guess = prediction + i * PAGE_LINE_BYTES;
        uint64_t mask = line_differs(line, guess);

        if (!mask)
            continue;
        lines |= UINT64_C(1) << i;
        line_take(line, guess, mask, difference, &at);
    }
    *parts = at;
    return lines;
}

TARGET static void ISA(put)(uint8_t *page, const uint8_t *prediction, int from, int to,
                            bool difference, uint64_t lines, struct page_parts *parts)
{
    struct page_parts at = *parts;

    for (int i = from; i < to; i++) {
        uint8_t *line = page + i * PAGE_LINE_BYTES;
        const uint8_t *guess = prediction + i * PAGE_LINE_BYTES;

        if (lines >> i & 1)
            line_put(line, guess, difference, &at);
        else if (line != guess)
            line_copy(line, guess);
    }
    *parts = at;
}

TARGET static size_t ISA(popcount)(const uint8_t *bytes, size_t len)
{
    size_t bits = 0;
    uint64_t v;

    for (; len >= 8; len -= 8, bytes += 8) {
        memcpy(&v, bytes, 8);
        bits += (size_t)popcount64(v);
    }
    v = 0;
    memcpy(&v, bytes, len);
    return bits + (size_t)popcount64(v);
}

TARGET static void ISA(differ)(const uint8_t *page, const uint8_t *old, uint8_t words[PAGE_LINES])
{
    for (int i = 0; i < PAGE_LINES; i++)
        words[i] = line_words(page + i * PAGE_LINE_BYTES, old + i * PAGE_LINE_BYTES);
}

TARGET static void ISA(prints)(const uint8_t *page, int from, int to, const uint64_t *key,
                               struct page_prints *prints)
{
    for (int i = from; i < to; i++) {
        uint64_t print = line_print(page + i * PAGE_LINE_BYTES, key);

        prints->high[i] = (uint32_t)(print >> 16);
        prints->low[i] = (uint16_t)print;
    }
}

TARGET static unsigned ISA(find_line)(const uint8_t *page, unsigned from, unsigned to,
                                      const uint64_t *key, const struct page_print_index *index,
                                      unsigned *line)
{
    for (; from < to; from++) {
        uint64_t print = line_print(page + 8 * from, key);

        if (*line < PAGE_LINES && print_is(index->prints, *line, print))
            break;
        for (uint8_t at = (uint8_t)(print >> 16); index->line[at]; at++)
            if (print_is(index->prints, index->line[at] - 1u, print)) {
                *line = index->line[at] - 1u;
                return from;
            }
    }
    return from;
}

/*
 * How many bytes differ in the sampled lines; no more than is enough to reach `enough`, which is
 * taken for granted when the first two lines reach more than their share of it.
 */
TARGET static unsigned ISA(sample)(const uint8_t *page, unsigned stride, unsigned enough)
{
    unsigned differ = 0;

    for (unsigned i = 0; i < 8 && differ < enough; i += 2) {
        const uint8_t *a = page + 8 * stride_samples[i], *b = page + 8 * stride_samples[i + 1];

        differ += (unsigned)popcount64(line_differs(a, a - 8 * stride));
        differ += (unsigned)popcount64(line_differs(b, b - 8 * stride));
        if (i == 0 && differ > enough * 3 / 8)
            differ = enough;
    }
    return differ;
}

TARGET static unsigned ISA(stride)(const uint8_t *page, unsigned likely)
{
    unsigned best = 0, least = 0, differ;

    for (int i = 0; i < 8; i++)
        least += (unsigned)popcount64(line_nonzero(page + 8 * stride_samples[i]));
    least = least * 3 / 4;
    if (likely && (differ = ISA(sample)(page, likely, least)) < least) {
        if (differ <= least / 2)
            return likely;
        least = differ;
        best = likely;
    }
    for (unsigned s = PAGE_STRIDE_MIN; s <= PAGE_STRIDE_MAX; s++)
        if ((differ = ISA(sample)(page, s, least)) < least) {
            least = differ;
            best = s;
        }
    return best;
}

static const struct page_words_ops ISA(ops) = {
    .name = ISA_NAME,
    .copy = ISA(copy),
    .take = ISA(take),
    .put = ISA(put),
    .differ = ISA(differ),
    .prints = ISA(prints),
    .find_line = ISA(find_line),
    .popcount = ISA(popcount),
    .stride = ISA(stride),
};

#undef ISA
#undef ISA_NAME
#undef TARGET
#undef line_differs
#undef line_nonzero
#undef line_words
#undef line_copy
#undef line_take
#undef line_put
#undef line_print
#undef popcount64
