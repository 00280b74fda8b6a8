/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What `remus-bench compress` measures: codecs behind one table.  An epoch's pages go in with
 * ascending pfns, one buffer comes out; the decoder is handed the replica's memory as of the epoch
 * before and fills `pages` in the same order.
 */
#ifndef REMUS_BENCH_CODEC_H
#define REMUS_BENCH_CODEC_H

#include <stddef.h>
#include <stdint.h>

struct codec_config {
    uint64_t guest_pages;
    uint64_t cache_bytes;
};

struct codec_ops {
    const char *name;
    const char *vector; /* remusd's vector code, NULL: the best */
    void *(*create)(const struct codec_ops *ops, const struct codec_config *config);
    void (*destroy)(void *state);
    /* out has room for codec_bound(n).  Returns the length. */
    size_t (*encode)(void *state, const uint64_t *pfns, const uint8_t *const *pages, size_t n,
                     uint8_t *out);
    /* Returns 0, or -1 when it cannot be decoded. */
    int (*decode)(void *state, const uint8_t *in, size_t len, const uint8_t *memory, uint64_t *pfns,
                  uint8_t *pages, size_t n);
    /*
     * One page against its old copy (NULL: none): its kind and its length in *len.  References
     * only.
     */
    int (*page_encode)(const uint8_t *page, const uint8_t *old, uint8_t *out, size_t *len);
    int (*page_decode)(int kind, const uint8_t *in, size_t len, const uint8_t *old, uint8_t *page);
};

extern const struct codec_ops *const codecs[];

size_t codec_bound(size_t n);

/* codec-reference.c: a cache and one of the published per-page codecs. */
extern const struct codec_ops codec_xbzrle, codec_remus2011, codec_lz4, codec_xorlz4;
/* codec-remusd.c: compress/. */
extern const struct codec_ops codec_remusd, codec_remusd_zstd;
/* The same as codec_remusd, with the vector code of lesser processors. */
extern const struct codec_ops codec_remusd_avx2, codec_remusd_sse2, codec_remusd_plain;

#endif
