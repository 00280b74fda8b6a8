/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The inner loops over a page: which 8-byte words changed, collect them, put them back.  A page is 64 lines of
 * 8 words.  `lines` has bit i set when line i changed; each changed line has one mask byte, bit j for word j.
 */
#ifndef REMUS_PAGE_WORDS_H
#define REMUS_PAGE_WORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_LINES 64
#define PAGE_LINE_BYTES 64

struct page_words_ops {
    const char *name;

    /* Is every byte of the page zero? */
    bool (*is_zero)(const uint8_t *page);

    /*
     * Compares a page with its old copy and makes the copy equal.  Writes a mask byte for each changed line
     * at *masks and the changed words at *words, and moves both behind what it wrote.  May write up to
     * one line beyond the end of *words.  Returns `lines`.
     */
    uint64_t (*take)(const uint8_t *page, uint8_t *old, uint8_t **masks, uint8_t **words);

    /*
     * The reverse: puts words into the changed lines of `page`.  May read up to one line beyond the end of
     * the words.  Returns how many bytes of words it used.
     */
    size_t (*put)(uint8_t *page, uint64_t lines, const uint8_t *masks, const uint8_t *words);
};

extern const struct page_words_ops page_words_plain;

#endif
