/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the sender remembers of the pages that the replica holds: a fixed number of slots of one
 * size, found by pfn, recycled in the order of last use.  One cache holds copies of pages, another,
 * of ten times as many, their fingerprints.
 *
 *   table (open addressing, linear probing)       slots                memory
 *     hash(pfn) -> [ slot | 0 ]            ->  { pfn, prev, next, round } -> bytes
 *
 * A slot used since the last page_cache_begin() is never recycled before the next one.  So within a
 * checkpoint each slot belongs to one page: workers may fill different slots at the same time, and
 * a checkpoint larger than the cache (a scan of the whole guest) does not flush itself out.
 */
#ifndef REMUS_PAGE_CACHE_H
#define REMUS_PAGE_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct page_cache;

struct page_cache *page_cache_new(uint32_t slots, size_t bytes); /* NULL with ENOMEM */
void page_cache_free(struct page_cache *c);
void page_cache_clear(struct page_cache *c);
void page_cache_begin(struct page_cache *c);

/*
 * The place of what is remembered of `pfn`, now the most recently used.  *found says whether it was
 * filled before; the caller must fill it in any case.  NULL when every slot is in use by this
 * checkpoint, or pfn's is already (and is then forgotten).  Unless recycled is NULL, *recycled is
 * the page whose slot was taken for it, if that was found again since it was filled first, or was filled
 * when the cache was not full yet; what it held is still there.  Otherwise UINT64_MAX.
 */
uint8_t *page_cache_get(struct page_cache *c, uint64_t pfn, bool *found, uint64_t *recycled);

/* What is remembered of pfn is not what it was: as if it had never been filled. */
void page_cache_forget(struct page_cache *c, uint64_t pfn);

/* These pages will be asked for next: gets what is known of them near the processor, all at once. */
void page_cache_expect(const struct page_cache *c, const uint64_t *pfns, size_t n);

bool page_cache_full(const struct page_cache *c); /* nothing was recycled before; never, until it is cleared */

size_t page_cache_memory(const struct page_cache *c);

#endif
