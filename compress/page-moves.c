/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdbool.h>
#include <string.h>

#include "compress/page-moves.h"

/* As many equal words make a move; fewer cost less as they are. */
#define RUN_MIN 3
/* Of the pages beside, what lies as near as this in half words can have come over. */
#define NEAR 256
#define STEP 32
/* After each so many words without a hit the search looks at fewer. */
#define MISSES 64
/* In so many places a line that moved is looked for before it is taken that none did. */
#define PATIENCE 96
/* A page with fewer different lines than this has no rows. */
#define KINDS_MIN 4

/* The word at half word h. */
static inline uint64_t word(const uint8_t *page, unsigned h)
{
    uint64_t v;

    memcpy(&v, page + 4 * h, 8);
    return v;
}

static inline unsigned hash(uint64_t v)
{
    return (unsigned)(v * UINT64_C(0x9e3779b97f4a7c15) >> 54);
}

static inline bool same_line(const uint8_t *a, const uint8_t *b)
{
    uint64_t differ = 0;

    for (unsigned h = 0; h < 16; h += 2)
        differ |= word(a, h) ^ word(b, h);
    return differ == 0;
}

/*
 * Rows move by words, the line pointers of an index by halves.  Of STEP half words in a row the
 * first two are enough: whatever the shift, one of STEP / 2 neighbouring words of the page meets
 * one of them, and a hit is followed backwards.
 */
static void index_words(uint16_t *table, const uint8_t *old, unsigned base, unsigned begin,
                        unsigned end)
{
    for (unsigned h = begin; h < end; h += STEP) {
        table[hash(word(old, h))] = (uint16_t)(base + h + 1);
        table[hash(word(old, h + 1))] = (uint16_t)(base + h + 2);
    }
}

/* Are RUN_MIN words of `page` from word i on those of `old` from half word h on? */
static bool runs(const uint8_t *page, unsigned i, const uint8_t *old, unsigned h)
{
    return i + RUN_MIN <= PAGE_WORDS && h + 2 * RUN_MIN <= PAGE_HALVES &&
           word(page, 2 * i) == word(old, h) && word(page, 2 * i + 2) == word(old, h + 2) &&
           word(page, 2 * i + 4) == word(old, h + 4);
}

/* The first word from i on that changed; PAGE_WORDS when there is none. */
static unsigned next_changed(const uint8_t changed[PAGE_LINES], unsigned i)
{
    unsigned line = i / 8, words = changed[line] & 0xffu << i % 8;

    while (!words) {
        if (++line == PAGE_LINES)
            return PAGE_WORDS;
        words = changed[line];
    }
    return 8 * line + (unsigned)__builtin_ctz(words);
}

void page_moves_find(struct page_moves *moves, const uint8_t *page, const uint8_t *const old[3],
                     const uint8_t changed[PAGE_LINES])
{
    const uint8_t *source = old[1]; /* the old page of the move at hand, */
    unsigned which = 1, misses = 0; /* its number, */
    int shift = 0;                  /* its half word - 2 * i, */
    unsigned limit = PAGE_WORDS;    /* and the first word for which that would leave it */

    memset(moves->table, 0, sizeof(moves->table));
    if (old[0])
        index_words(moves->table, old[0], 0, PAGE_HALVES - NEAR, PAGE_HALVES);
    if (old[2])
        index_words(moves->table, old[2], 2 * PAGE_HALVES, 0, NEAR);
    index_words(moves->table, old[1], PAGE_HALVES, 0, PAGE_HALVES);

    moves->count = 1;
    moves->move[0] = (struct page_move){0, PAGE_HALVES};
    for (unsigned i = 0; i < PAGE_WORDS; i++) {
        unsigned from, place, start;
        uint64_t v;

        if (shift == 0 && which == 1 && (i = next_changed(changed, i)) == PAGE_WORDS)
            break;
        start = i;
        from = (unsigned)((int)(2 * i) + shift);
        v = word(page, 2 * i);
        if (i < limit && word(source, from) == v) {
            for (; i + 9 <= limit && same_line(page + 8 * (i + 1), source + 4 * (from + 2)); i += 8)
                from += 16;
            continue;
        }
        if (i == limit || (shift != 0 && runs(page, i, old[1], 2 * i))) {
            which = 1;
            shift = 0;
        } else {
            /* The last entry is kept for the way back. */
            place = v && moves->count < PAGE_MOVES_MAX - 1 ? moves->table[hash(v)] : 0;
            if (place == 0 || place - 1 == which * PAGE_HALVES + from ||
                !runs(page, i, old[(place - 1) / PAGE_HALVES], (place - 1) % PAGE_HALVES)) {
                i += misses++ / MISSES;
                if (i >= limit)
                    i = limit - 1;
                continue;
            }
            which = (place - 1) / PAGE_HALVES;
            from = (place - 1) % PAGE_HALVES;
            shift = (int)from - (int)(2 * i);
            for (; from > 1 && start > moves->move[moves->count - 1].to + 1u &&
                   i - start < STEP / 2 - 1;
                 start--) {
                from -= 2;
                if (word(page, 2 * start - 2) != word(old[which], from))
                    break;
            }
        }
        misses = 0;
        limit = shift > 0 ? (unsigned)(PAGE_HALVES - shift) / 2 : PAGE_WORDS;
        source = old[which];
        if (moves->move[moves->count - 1].to == start)
            moves->count--;
        moves->move[moves->count++] = (struct page_move){
            (uint16_t)start, (uint16_t)((int)(which * PAGE_HALVES + 2 * start) + shift)};
    }
}

void page_moves_unknown(uint8_t *guess, const uint8_t *page, unsigned from, unsigned to)
{
    for (unsigned i = from; i < to; i++) {
        uint64_t v = ~word(page, 2 * i);

        memcpy(guess + 8 * i, &v, 8);
    }
}

static void add(struct page_moves *moves, unsigned to, unsigned from)
{
    if (moves->move[moves->count - 1].to == to)
        moves->count--;
    moves->move[moves->count++] = (struct page_move){(uint16_t)to, (uint16_t)(PAGE_HALVES + from)};
}

/* Returns whether it is the first of its kind. */
static bool index_line(struct page_print_index *index, unsigned line)
{
    const struct page_prints *prints = index->prints;
    uint8_t at = (uint8_t)prints->high[line];

    for (; index->line[at]; at++)
        if (prints->high[index->line[at] - 1] == prints->high[line])
            return false;
    index->line[at] = (uint8_t)(line + 1);
    return true;
}

unsigned page_moves_find_lines(struct page_moves *moves, const struct page_words_ops *ops,
                               const uint64_t *key, const uint8_t *page, uint64_t differ,
                               const struct page_prints *old, uint8_t *guess)
{
    struct page_print_index index = {.prints = old};
    unsigned line = 0, kinds = 0, known = 0, patience = PATIENCE;
    unsigned limit = PAGE_WORDS; /* limit and shift as above */
    int shift = 0;

    for (unsigned l = 0; l < PAGE_LINES; l++)
        kinds += index_line(&index, l);
    if (kinds < KINDS_MIN)
        return 0;
    moves->count = 1;
    moves->move[0] = (struct page_move){0, PAGE_HALVES};
    for (unsigned i = 0; i < PAGE_WORDS;) {
        uint64_t still = i + 8 <= PAGE_WORDS ? ~differ & UINT64_MAX << (i + 7) / 8 : 0;
        unsigned here = still ? (unsigned)__builtin_ctzll(still) : PAGE_LINES; /* next in place */
        unsigned last = still ? 8 * here : PAGE_WORDS - 7;
        unsigned stop = last < i + patience ? last : i + patience, at = stop;

        if (i < stop) {
            at = ops->find_line(page, i, stop, key, &index, &line);
            patience = at < stop ? PATIENCE : patience - (stop - i);
        }
        if (at == stop) {
            at = 8 * here;
            line = here;
        }
        page_moves_unknown(guess, page, i, at);
        if (at == PAGE_WORDS)
            break;
        if ((int)(16 * line) - (int)(2 * at) != shift) {
            /* This may take two entries, and the way back one. */
            if (moves->count > PAGE_MOVES_MAX - 3) {
                page_moves_unknown(guess, page, at, at + 1);
                i = at + 1;
                continue;
            }
            if (limit < at)
                add(moves, limit, 2 * limit);
            add(moves, at, 16 * line);
            shift = (int)(16 * line) - (int)(2 * at);
            limit = shift > 0 ? (unsigned)(PAGE_HALVES - shift) / 2 : PAGE_WORDS;
        }
        memcpy(guess + 8 * at, page + 8 * at, PAGE_LINE_BYTES);
        known += 8;
        i = at + 8;
        line++;
    }
    if (limit < PAGE_WORDS)
        add(moves, limit, 2 * limit);
    return known;
}
