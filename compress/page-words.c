/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <string.h>

#include "compress/page-words.h"
#include "compress/pagecodec.h"

static uint64_t load(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, 8);
    return v;
}

static bool plain_is_zero(const uint8_t *page)
{
    return load(page) == 0 && memcmp(page, page + 8, PAGE_BYTES - 8) == 0;
}

static uint64_t plain_take(const uint8_t *page, uint8_t *old, uint8_t **masks, uint8_t **words)
{
    uint64_t lines = 0;

    for (int i = 0; i < PAGE_LINES; i++, page += PAGE_LINE_BYTES, old += PAGE_LINE_BYTES) {
        uint8_t mask = 0;

        if (memcmp(page, old, PAGE_LINE_BYTES) == 0)
            continue;
        for (int j = 0; j < 8; j++) {
            if (load(page + 8 * j) == load(old + 8 * j))
                continue;
            mask |= (uint8_t)(1u << j);
            memcpy(*words, page + 8 * j, 8);
            *words += 8;
        }
        memcpy(old, page, PAGE_LINE_BYTES);
        *(*masks)++ = mask;
        lines |= UINT64_C(1) << i;
    }
    return lines;
}

static size_t plain_put(uint8_t *page, uint64_t lines, const uint8_t *masks, const uint8_t *words)
{
    const uint8_t *start = words;

    for (; lines; lines &= lines - 1) {
        uint8_t *line = page + __builtin_ctzll(lines) * PAGE_LINE_BYTES;

        for (unsigned mask = *masks++; mask; mask &= mask - 1) {
            memcpy(line + 8 * __builtin_ctz(mask), words, 8);
            words += 8;
        }
    }
    return (size_t)(words - start);
}

const struct page_words_ops page_words_plain = {
    .name = "plain",
    .is_zero = plain_is_zero,
    .take = plain_take,
    .put = plain_put,
};
