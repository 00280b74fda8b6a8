/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The block's layout in C, for page-encode.c and page-decode.c; its description is in
 * pagecodec.h.
 */
#ifndef REMUS_PAGE_BLOCK_H
#define REMUS_PAGE_BLOCK_H

#include "compress/page-words.h"
#include "compress/pagecodec.h"

#define PAGE_BLOCK_VERSION 1

enum page_coding {
    PAGE_CODING_STORED = 0,
    PAGE_CODING_LZ4 = 1,
    PAGE_CODING_ZSTD = 2,
};

struct page_block_header {
    uint8_t version;
    uint8_t coding;
    uint8_t pages[2];
    uint8_t generation[4];
    uint8_t sequence[4];
    uint8_t plain[4];
    uint8_t coded[4];
};
_Static_assert(sizeof(struct page_block_header) == 20, "block header");

#define PAGE_ENTRY_MAX 11 /* kind and gap, then a varint */
#define PAGE_GAP_LONG 15
#define PAGE_MOVES_MAX 32
#define PAGE_MOVE_BYTES 4
/*
 * Where a move may come from, in half words: the old page before, the old page, the old page
 * behind.
 */
#define PAGE_HALVES (PAGE_BYTES / 4)
#define PAGE_MOVE_SPAN (3 * PAGE_HALVES)

/* The most that one page adds to each section of the stream. */
#define PAGE_EXTRA_MAX (1 + PAGE_MOVES_MAX * PAGE_MOVE_BYTES)
#define PAGE_HEAD_MAX (PAGE_ENTRY_MAX + PAGE_EXTRA_MAX + 8 + PAGE_LINES + PAGE_WORDS)
#define PAGE_STREAM_MAX (PAGE_BLOCK_MAX * (PAGE_HEAD_MAX + PAGE_BYTES))

static inline void page_put32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 24);
    p[1] = (uint8_t)(v >> 16);
    p[2] = (uint8_t)(v >> 8);
    p[3] = (uint8_t)v;
}

static inline uint32_t page_get32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline void page_put64(uint8_t *p, uint64_t v)
{
    page_put32(p, (uint32_t)(v >> 32));
    page_put32(p + 4, (uint32_t)v);
}

static inline uint64_t page_get64(const uint8_t *p)
{
    return (uint64_t)page_get32(p) << 32 | page_get32(p + 4);
}

/*
 * A page that is predicted from itself begins in a buffer of its own, behind as many zeros as a
 * stride can reach back.
 */
#define PAGE_LEAD_BYTES (PAGE_STRIDE_MAX * 8)
#define PAGE_LEAD_LINES (PAGE_LEAD_BYTES / PAGE_LINE_BYTES)

#endif
