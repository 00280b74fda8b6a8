/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The block's layout, shared by page-encode.c and page-decode.c; see pagecodec.h. */
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

#define PAGE_ENTRY_MAX 11 /* kind and gap, then a varint of a 64-bit gap */
#define PAGE_GAP_LONG 15

/* The longest stream: entries, lines and masks of every page, and 4096 bytes of each. */
#define PAGE_STREAM_HEAD (PAGE_BLOCK_MAX * (PAGE_ENTRY_MAX + 8 + PAGE_LINES))
#define PAGE_STREAM_MAX (PAGE_STREAM_HEAD + PAGE_BLOCK_MAX * PAGE_BYTES)

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

#endif
