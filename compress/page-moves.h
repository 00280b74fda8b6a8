/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Finds what moved.  A database that compacts a page shifts its rows by some words: compared in
 * place everything has changed, compared with where it came from almost nothing.
 */
#ifndef REMUS_PAGE_MOVES_H
#define REMUS_PAGE_MOVES_H

#include <stdint.h>

#include "compress/page-block.h"

/*
 * From word `to` on, up to the next move, the page is predicted to be what lies from `from` on in
 * the old pages, counted in half words (4 bytes) through the old page before this one (0 to 1023),
 * this one's (1024 to 2047) and the one behind (2048 to 3071).
 */
struct page_move {
    uint16_t to, from;
};

struct page_moves {
    unsigned count;
    struct page_move move[PAGE_MOVES_MAX];
    uint16_t table[1024]; /* hash of an word -> its place in half words + 1 */
};

/*
 * Looks for the words of `page` in the old pages before, at, and behind it; old[0] and old[2] may
 * be NULL.  `changed` says which words differ from old[1] (ops->differ).  The first move always
 * begins at word 0, and no move leaves the old page that it begins in.
 */
void page_moves_find(struct page_moves *moves, const uint8_t *page, const uint8_t *const old[3],
                     const uint8_t changed[PAGE_LINES]);

/*
 * The same for a page of whose old content only the fingerprints are known.  Bits of `differ`:
 * lines that are not in place.  `guess` becomes what the moves predict; words that nobody knows
 * are made to differ from the page in every byte.  Returns how many words are known.
 */
unsigned page_moves_find_lines(struct page_moves *moves, const struct page_words_ops *ops,
                               const uint64_t *key, const uint8_t *page, uint64_t differ,
                               const struct page_prints *old, uint8_t *guess);

/* Makes `guess` differ from the page in every byte, from word `from` to below `to`. */
void page_moves_unknown(uint8_t *guess, const uint8_t *page, unsigned from, unsigned to);

#endif
