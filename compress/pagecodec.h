/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The page codec: makes the pages of a checkpoint small enough for the link.
 *
 * The sender remembers recently shipped pages in a cache (LRU, RemusDB's idea: PVLDB 4(11), 2011,
 * section 4) and ships of a page only the words that changed.  Of pages that had to leave the cache
 * it keeps a fingerprint of each line, a tenth of the page, and ships the lines that are new.  The
 * receiver needs no cache: it applies checkpoints strictly in order, so that the replica's own page
 * is what was shipped last.
 *
 * Two different lines with one fingerprint would make a replica that is not the guest.  The key is
 * random, so at 100,000 new lines a second that is expected once in 22 years; the receiver's digest
 * over the checkpoint's pages notices it, the checkpoint is thrown away, and the fresh start has
 * another key and knows no fingerprints.  Whoever uses this without such a digest may not.
 *
 * Many pages make one block, and the block goes through LZ4 or zstd as one piece.
 *
 * Pure: no I/O, no clock, no threads.  One encoder or decoder belongs to one protection; nothing is
 * shared between two of them.
 *
 * Call order
 *
 *   sender                                 receiver
 *     page_encoder_new()                     page_decoder_new()
 *     a checkpoint:                          a checkpoint:
 *       page_encoder_begin()                   page_decoder_begin()
 *       page_encode() for each block           page_decode() for each block, staged;
 *                                              verified whole: copied to the replica's memory
 *     link lost, or a checkpoint was         link lost, or a checkpoint was thrown away:
 *     never acknowledged:                      page_decoder_reset()
 *       page_encoder_reset()
 *
 * Between two begins a pfn occurs once and pfns ascend.  Whatever lies between two begins on the
 * sender (a checkpoint, a round of live pre-copy) must be in the replica's memory before the
 * receiver decodes a block of the next.
 *
 * The block (integers in network byte order)
 *
 *       0     1     2  3      4  7        8  11      12  15   16  19   20
 *    +-----+------+-------+------------+----------+-------+-------+--------------+-----------+
 *    | ver | cod. | pages | generation | sequence | plain | coded | coded stream | raw pages |
 *    +-----+------+-------+------------+----------+-------+-------+--------------+-----------+
 *
 *   version     1
 *   coding      of the stream: 0 as it is, 1 LZ4 block, 2 zstd frame
 *   pages       1 to 128
 *   generation, sequence
 *               Blocks count from 0 on within a generation; a new generation begins whenever the
 *               sender starts afresh (page_encoder_reset).  A receiver takes sequence 0 at any
 *               time, and otherwise nothing but the successor of the block decoded last.  That is
 *               what makes a reference valid: every block since the fresh start is there, each
 *               checkpoint was applied before the next, so the replica's page is the sender's
 *               copy.  Block 0 holds no reference.
 *   plain, coded
 *               length of the stream, at most 616,960, and of the coded stream that follows
 *   raw pages   4096 bytes for each page of kind 6, up to the end of the block
 *
 * The stream is six sections, one right behind the other, each with what the pages put there in
 * their order.  A page is 64 lines of 8 words of 8 bytes.
 *
 *   entries     For each page a byte: kind in bits 0-3, gap in bits 4-7.  The pfn is the one
 *               before + 1 + gap; in the first block of a checkpoint it counts from 0, in later
 *               blocks on from the last pfn of the block before.  Gap 15 means 15 + the number
 *               that follows: 7 bits a byte, lowest first, bit 7 set on all but the last byte.
 *   extra       kind 3: a byte n (1 to 32), then n moves of 4 bytes; kind 4: a byte, the stride
 *   lines       kinds 2, 3, 4: a u64, bit i set when line i has bytes in `data`
 *   words       for each such line a byte: bit j set when word j of the line has
 *   bytes       for each such word a byte: bit k set when byte k of the word has
 *   data        those bytes in order; kind 5: the page
 *
 * Kinds; all others are refused.  Numbers from 7 on are free: a reference to a disk block, a page
 * that the guest deprotected.
 *
 *   0 zero        all bytes 0
 *   1 unchanged   as the replica has it
 *   2 delta       as the replica has it, with the bytes of `data` put in
 *   3 moved       Each move is u16 to, u16 from: from word `to` on, up to the next move's, the page
 *                 is what the replica's pages pfn - 1, pfn, pfn + 1 (as of the checkpoint before)
 *                 hold from byte 4 * `from` on, counted from the first byte of page pfn - 1.  `to`
 *                 ascends, the first is 0.  Then the bytes of `data` are put in.
 *   4 self        Stride 0: zeros, with the bytes of `data` put in.  Stride 8 to 64: made front to
 *                 back; each byte is predicted to be the one 8 * stride before it in the page, 0
 *                 where there is none.  A word whose byte in `bytes` is 0xff takes its 8 bytes
 *                 from `data`; of any other word the bytes from `data` are added to the
 *                 predicted ones, modulo 256.
 *   5 whole       4096 bytes in `data`
 *   6 raw         4096 bytes behind the stream
 *
 * What it costs: the sender reads a page once or twice and reads and updates its copy, 0.3 to
 * 1.5 us (remus-bench compress).  page_encode() and page_decode() allocate nothing.
 *
 * What hostile input can do: waste the time of 128 pages a block.  Every length is checked against
 * what is there before it is used.
 */
#ifndef REMUS_PAGECODEC_H
#define REMUS_PAGECODEC_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"

#define PAGE_BYTES 4096
#define PAGE_BLOCK_MAX 128 /* pages in a block */
#define PAGE_THREADS_MAX 64

enum page_codec {
    PAGE_CODEC_OFF,  /* deltas, but no compression behind them */
    PAGE_CODEC_LZ4,
    PAGE_CODEC_ZSTD,
};

enum page_kind {
    PAGE_ZERO = 0,
    PAGE_UNCHANGED = 1,
    PAGE_DELTA = 2,
    PAGE_MOVED = 3,
    PAGE_SELF = 4,
    PAGE_WHOLE = 5,
    PAGE_RAW = 6,
    PAGE_KINDS
};

struct page_stats {
    uint64_t pages[PAGE_KINDS];
    uint64_t blocks;
    uint64_t bytes_in;   /* pages * PAGE_BYTES */
    uint64_t bytes_out;
    uint64_t lookups; /* pages that were looked up in the cache, */
    uint64_t hits;    /* and those of which it held a copy or fingerprints */
};

struct page_encoder_config {
    uint64_t guest_pages;
    uint64_t cache_bytes; /* 0: page_cache_default(guest_pages) */
    enum page_codec codec;
    unsigned threads;     /* blocks under way at the same time; 0: 1 */
};

struct page_encoder;
struct page_decoder;

/* For copies and fingerprints: min(10 % of the guest, 256 MiB), at least 32 MiB. */
uint64_t page_cache_default(uint64_t guest_pages);

/*
 * Allocates everything that encoding will ever need: the cache and less than 5 % above it.
 * NULL with errno ENOMEM, or EINVAL for a guest of no pages, or as getentropy().
 */
struct page_encoder *page_encoder_new(const struct page_encoder_config *config);
void page_encoder_free(struct page_encoder *enc);

/*
 * What the backup holds is unknown from here on: nothing shipped before is referenced again, and
 * fingerprints have a new key.
 */
void page_encoder_reset(struct page_encoder *enc);

/*
 * The receiver gets this page otherwise, in the checkpoint that has begun: what was shipped of it before is no longer
 * what the replica will have.  Not while page_encode_planned() runs.
 */
void page_encoder_forget(struct page_encoder *enc, uint64_t pfn);

/* From the next block on.  The receiver needs no word of it. */
void page_encoder_set_codec(struct page_encoder *enc, enum page_codec codec);

/*
 * For tests and measurements: uses the vector code of this name (avx512, avx2, sse2, plain) instead
 * of the best that the processor has.  The bytes are the same.  -1 with errno EINVAL: not here.
 */
int page_encoder_set_vector(struct page_encoder *enc, const char *name);

/* A new checkpoint begins. */
void page_encoder_begin(struct page_encoder *enc);

/*
 * Encodes pages[0..n-1], which are guest pages pfns[0..n-1], as one block of at most
 * page_block_bound(n) bytes at `out`.  Returns its length; -1 with errno EINVAL when n is 0 or
 * above PAGE_BLOCK_MAX, when cap is below the bound, or when a pfn is outside the guest or does not
 * ascend; nothing has changed then.
 */
ssize_t page_encode(struct page_encoder *enc, const uint64_t *pfns, const uint8_t *const *pages,
                    size_t n, uint8_t *out, size_t cap);
size_t page_block_bound(size_t n);

/*
 * The same in two steps, for a ship stage with several threads.  page_plan() is called by one
 * thread, block after block, and touches no page; page_encode_planned() may then run for all
 * planned `thread` numbers (below config.threads) at the same time, and must have returned before
 * that number is planned again.
 * pfns and pages stay the caller's and must live until then.  The blocks are sent in the order of
 * page_plan(); their bytes do not depend on how many threads there are.
 */
int page_plan(struct page_encoder *enc, unsigned thread, const uint64_t *pfns,
              const uint8_t *const *pages, size_t n);
ssize_t page_encode_planned(struct page_encoder *enc, unsigned thread, uint8_t *out, size_t cap);

/* Everything encoded since page_encoder_new().  Not while page_encode_planned() runs. */
const struct page_stats *page_encoder_stats(struct page_encoder *enc);
/* Every byte that the encoder holds, cache included. */
size_t page_encoder_memory(const struct page_encoder *enc);

/* NULL with errno ENOMEM.  Its memory is fixed: less than 1 MiB. */
struct page_decoder *page_decoder_new(void);
void page_decoder_free(struct page_decoder *dec);

/*
 * Something decoded before did not reach the replica: only a sender's fresh start is accepted
 * next.
 */
void page_decoder_reset(struct page_decoder *dec);

int page_decoder_set_vector(struct page_decoder *dec, const char *name); /* as the encoder's */

/* A new checkpoint begins. */
void page_decoder_begin(struct page_decoder *dec);

/*
 * Decodes one block of exactly `len` bytes.  Page i of the result is at pages + i * PAGE_BYTES
 * and belongs at pfns[i]; both arrays have room for PAGE_BLOCK_MAX.  `memory` is the replica's
 * memory as of the checkpoint before, guest_pages * PAGE_BYTES, and is only read.
 *
 * Returns the number of pages, or -1 with a text that names the place.  Every byte of the block may
 * be hostile: nothing is read or written outside the buffers named here, memory does not grow, and
 * the time is bounded by that of PAGE_BLOCK_MAX pages.  After a failure the decoder accepts nothing
 * but a fresh start, so a broken checkpoint cannot become the reference of a later one.
 */
int page_decode(struct page_decoder *dec, const uint8_t *block, size_t len, uint64_t guest_pages,
                const uint8_t *memory, uint64_t *pfns, uint8_t *pages, struct error *err);

#endif
