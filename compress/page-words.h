/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The inner loops over a page, in one plain version and some that use what the processor has.  All
 * give the same bytes (tests/test-pagecodec-parts.c).
 *
 * A page is 64 lines of 8 words of 8 bytes.  What differs from a prediction of the page is written
 * in three parts, each front to back:
 *
 *   words   a byte for each line that differs: bit j set when word j differs
 *   bytes   a byte for each word that differs: bit k set when byte k is in `data`; a word with 5 or
 *           more differing bytes counts as differing in all 8, so that text is not torn
 *   data    those bytes of the page, in order
 *
 * With `difference` a byte of a word that is not there with all 8 is page minus prediction, modulo
 * 256: a number that grows by the same step from record to record becomes the same byte again and
 * again.
 */
#ifndef REMUS_PAGE_WORDS_H
#define REMUS_PAGE_WORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_LINES 64
#define PAGE_LINE_BYTES 64
#define PAGE_WORDS 512

/*
 * A line's fingerprint tells whether the replica has the line, in a tenth of its size.  The hash is
 * almost universal: the key is random and stays in the encoder, so two different lines, whoever
 * made them, have the same fingerprint with a probability of at most 2^-46.  (Multilinear-HM of
 * Lemire and Kaser, "Strongly universal string hashing is fast", 2014, twice: 32 bits and 16.)
 */
#define PAGE_KEY_WORDS 32

struct page_prints {
    uint32_t high[PAGE_LINES];
    uint16_t low[PAGE_LINES];
    bool absent; /* the encoder's: these are none */
};

/* Lines by their fingerprint: a table of line + 1 with linear probing; of equal lines the first. */
struct page_print_index {
    const struct page_prints *prints;
    uint8_t line[256];
};

/* A writer may write, and a reader may read, this much beyond the end of each part. */
#define PAGE_WORDS_SLACK 64

/*
 * A cold page may be predicted from itself, this many words before: at least a line, at most
 * eight.
 */
#define PAGE_STRIDE_MIN 8
#define PAGE_STRIDE_MAX 64

struct page_parts {
    uint8_t *words, *bytes, *data;
};

struct page_words_ops {
    const char *name;

    void (*copy)(uint8_t *to, const uint8_t *from);

    /*
     * Writes how lines from..to-1 of `page` differ from those of `prediction`; moves the parts
     * behind what it wrote.  Returns a bit for each line that differs.
     */
    uint64_t (*take)(const uint8_t *page, const uint8_t *prediction, int from, int to,
                     bool difference, struct page_parts *parts);

    /*
     * The reverse: makes lines from..to-1 of `page`.  The prediction may be the page itself (its
     * lines stay where `lines` has no bit) or earlier bytes of it, at least a line before.
     */
    void (*put)(uint8_t *page, const uint8_t *prediction, int from, int to, bool difference,
                uint64_t lines, struct page_parts *parts);

    /* Which words differ: byte i is that of line i. */
    void (*differ)(const uint8_t *page, const uint8_t *old, uint8_t words[PAGE_LINES]);

    /* Of lines from..to-1. */
    void (*prints)(const uint8_t *page, int from, int to, const uint64_t *key,
                   struct page_prints *prints);

    /*
     * Looks for a line of the index among the 64 bytes from word i on, i from `from` to below `to`.
     * Returns the first such i, and which line in *line; or `to`.  What is in *line is tried first.
     */
    unsigned (*find_line)(const uint8_t *page, unsigned from, unsigned to, const uint64_t *key,
                          const struct page_print_index *index, unsigned *line);

    /* How many bits are set. */
    size_t (*popcount)(const uint8_t *bytes, size_t len);

    /*
     * The stride, in words, at which the page looks most like itself, judged by eight of its lines;
     * 0 when it looks no more like itself than like zeros.  `likely` is tried
     * first (0: none) and taken when it is good.
     */
    unsigned (*stride)(const uint8_t *page, unsigned likely);
};

/* Best first, those that this processor can run; ends with NULL.  The last is the plain one. */
const struct page_words_ops *const *page_words_list(void);

/* The one of this name; NULL when there is none or the processor cannot run it.  No name: the best. */
const struct page_words_ops *page_words_named(const char *name);

#endif
