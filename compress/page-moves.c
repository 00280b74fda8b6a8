/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdbool.h>
#include <string.h>

#include "compress/page-moves.h"

/* As many equal words make a move; fewer cost less as they are. */
#define RUN_MIN 3

static inline uint64_t word(const uint8_t *page, unsigned i)
{
    uint64_t v;

    memcpy(&v, page + 8 * i, 8);
    return v;
}

static inline unsigned hash(uint64_t v)
{
    return (unsigned)(v * UINT64_C(0x9e3779b97f4a7c15) >> 54);
}

/* Every second word is enough: the one before a hit is tried too. */
static void index_words(uint16_t *table, const uint8_t *old, unsigned base)
{
    for (unsigned i = PAGE_WORDS; i > 0; i -= 2)
        if (word(old, i - 2))
            table[hash(word(old, i - 2))] = (uint16_t)(base + i - 1);
}

/* Are RUN_MIN words of `page` from i on the old words from j on, j counted within `old`? */
static bool runs(const uint8_t *page, unsigned i, const uint8_t *old, unsigned j)
{
    return i + RUN_MIN <= PAGE_WORDS && j + RUN_MIN <= PAGE_WORDS &&
           memcmp(page + 8 * i, old + 8 * j, 8 * RUN_MIN) == 0;
}

void page_moves_find(struct page_moves *moves, const uint8_t *page, const uint8_t *const old[3])
{
    const uint8_t *source = old[1]; /* the old page of the move at hand, its number, and */
    unsigned which = 1, shift = 0;  /* source word = i + shift, modulo 2^32 */

    memset(moves->table, 0, sizeof(moves->table));
    for (unsigned k = 0; k < 3; k += 2)
        if (old[k])
            index_words(moves->table, old[k], k * PAGE_WORDS);
    index_words(moves->table, old[1], PAGE_WORDS);

    moves->count = 1;
    moves->move[0] = (struct page_move){0, PAGE_WORDS};
    for (unsigned i = 0; i < PAGE_WORDS; i++) {
        unsigned from = i + shift, place, start = i;
        uint64_t v = word(page, i);

        if (from < PAGE_WORDS && word(source, from) == v)
            continue;
        if (shift != 0 && (from >= PAGE_WORDS || runs(page, i, old[1], i))) {
            which = 1;
            shift = 0;
        } else {
            /* The last entry is kept for the way back. */
            place = v && moves->count < PAGE_MOVES_MAX - 1 ? moves->table[hash(v)] : 0;
            if (place == 0 || place - 1 == which * PAGE_WORDS + from ||
                !runs(page, i, old[(place - 1) / PAGE_WORDS], (place - 1) % PAGE_WORDS))
                continue;
            which = (place - 1) / PAGE_WORDS;
            shift = (place - 1) % PAGE_WORDS - i;
            if (i + shift > 0 && i > moves->move[moves->count - 1].to + 1u &&
                word(page, i - 1) == word(old[which], i - 1 + shift))
                start--;
        }
        source = old[which];
        if (moves->move[moves->count - 1].to == start)
            moves->count--;
        moves->move[moves->count++] =
            (struct page_move){(uint16_t)start, (uint16_t)(which * PAGE_WORDS + start + shift)};
    }
}
