/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"

static size_t word_count(uint64_t bits)
{
    return (size_t)(bits / 64 + (bits % 64 != 0));
}

int bitmap_init(struct bitmap *b, uint64_t bits)
{
    b->words = calloc(word_count(bits) + 1, sizeof(*b->words));
    b->bits = b->words ? bits : 0;
    return b->words ? 0 : -1;
}

void bitmap_free(struct bitmap *b)
{
    free(b->words);
    *b = (struct bitmap){0};
}

void bitmap_set_range(struct bitmap *b, uint64_t from, uint64_t count)
{
    uint64_t end = from + count;

    for (; from < end && from % 64; from++)
        bitmap_set(b, from);
    for (; from + 64 <= end; from += 64)
        b->words[from / 64] = UINT64_MAX;
    for (; from < end; from++)
        bitmap_set(b, from);
}

void bitmap_clear_all(struct bitmap *b)
{
    memset(b->words, 0, word_count(b->bits) * sizeof(*b->words));
}

void bitmap_or(struct bitmap *b, const struct bitmap *other)
{
    for (size_t i = 0; i < word_count(b->bits); i++)
        b->words[i] |= other->words[i];
}

uint64_t bitmap_count(const struct bitmap *b)
{
    uint64_t n = 0;

    for (size_t i = 0; i < word_count(b->bits); i++)
        n += (uint64_t)__builtin_popcountll(b->words[i]);
    return n;
}

uint64_t bitmap_next(const struct bitmap *b, uint64_t from)
{
    size_t i = (size_t)(from / 64), n = word_count(b->bits);
    uint64_t word;

    if (from >= b->bits)
        return b->bits;
    word = b->words[i] & UINT64_MAX << from % 64;
    while (!word) {
        if (++i == n)
            return b->bits;
        word = b->words[i];
    }
    return (uint64_t)i * 64 + (uint64_t)__builtin_ctzll(word);
}
