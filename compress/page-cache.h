/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The sender's copies of what the replica holds: a fixed number of slots, found by pfn, recycled in
 * the order of last use.
 *
 *   table (open addressing, linear probing)       slots                pages
 *     hash(pfn) -> [ slot | 0 ]            ->  { pfn, prev, next, round } -> 4096 bytes
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

struct page_cache *page_cache_new(uint32_t slots); /* NULL with ENOMEM */
void page_cache_free(struct page_cache *c);
void page_cache_clear(struct page_cache *c);
void page_cache_begin(struct page_cache *c);

/*
 * The place of the copy of `pfn`, now the most recently used.  *found says whether it holds the
 * page as shipped last; otherwise the caller must fill it.  NULL when every slot is in use by this
 * checkpoint.
 */
uint8_t *page_cache_get(struct page_cache *c, uint64_t pfn, bool *found);

size_t page_cache_memory(const struct page_cache *c);

#endif
