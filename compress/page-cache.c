/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "compress/page-cache.h"
#include "compress/pagecodec.h"

/* Slots are numbered from 1: 0 is "none" in the table, and the head of the list in use. */
struct slot {
    uint64_t pfn;
    uint32_t prev, next; /* towards more and less recently used */
    uint32_t round;
    bool filled; /* in this checkpoint or before */
    bool found;  /* since pfn has the slot, or nobody had it before */
};

struct page_cache {
    uint32_t slots, used;
    uint32_t mask; /* table size - 1 */
    uint32_t round;
    size_t bytes; /* of a slot */
    uint32_t *table;
    struct slot *slot;
    uint8_t *memory;
};

static uint32_t table_home(const struct page_cache *c, uint64_t pfn)
{
    return (uint32_t)((pfn * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & c->mask;
}

static void table_remove(struct page_cache *c, uint64_t pfn)
{
    uint32_t hole = table_home(c, pfn), i, home;

    while (c->slot[c->table[hole]].pfn != pfn)
        hole = (hole + 1) & c->mask;
    /* Entries behind the hole move up, unless that would put them before their home. */
    for (i = (hole + 1) & c->mask; c->table[i]; i = (i + 1) & c->mask) {
        home = table_home(c, c->slot[c->table[i]].pfn);
        if (((i - home) & c->mask) >= ((i - hole) & c->mask)) {
            c->table[hole] = c->table[i];
            hole = i;
        }
    }
    c->table[hole] = 0;
}

static void list_remove(struct page_cache *c, uint32_t s)
{
    c->slot[c->slot[s].prev].next = c->slot[s].next;
    c->slot[c->slot[s].next].prev = c->slot[s].prev;
}

static void list_push(struct page_cache *c, uint32_t s)
{
    c->slot[s].prev = 0;
    c->slot[s].next = c->slot[0].next;
    c->slot[c->slot[0].next].prev = s;
    c->slot[0].next = s;
}

/* Where pfn is in the table, or the empty place where it belongs. */
static uint32_t table_find(const struct page_cache *c, uint64_t pfn)
{
    uint32_t i = table_home(c, pfn);

    while (c->table[i] && c->slot[c->table[i]].pfn != pfn)
        i = (i + 1) & c->mask;
    return i;
}

void page_cache_expect(const struct page_cache *c, const uint64_t *pfns, size_t n)
{
    for (size_t i = 0; i < n; i++)
        __builtin_prefetch(&c->table[table_home(c, pfns[i])]);
    for (size_t i = 0; i < n; i++)
        __builtin_prefetch(&c->slot[c->table[table_home(c, pfns[i])]], 1);
    for (size_t i = 0; i < n; i++) {
        const struct slot *s = &c->slot[c->table[table_home(c, pfns[i])]];

        __builtin_prefetch(&c->slot[s->prev], 1);
        __builtin_prefetch(&c->slot[s->next], 1);
    }
    /* As many may have to make room. */
    for (uint32_t s = c->slot[0].prev; page_cache_full(c) && s && n; s = c->slot[s].prev, n--)
        __builtin_prefetch(&c->table[table_home(c, c->slot[s].pfn)]);
}

uint8_t *page_cache_get(struct page_cache *c, uint64_t pfn, bool *found, uint64_t *recycled)
{
    uint32_t i = table_find(c, pfn), s = c->table[i];

    *found = false;
    if (recycled)
        *recycled = UINT64_MAX;
    if (s) {
        if (c->slot[s].round == c->round) {
            c->slot[s].filled = false;
            return NULL;
        }
        *found = c->slot[s].found = c->slot[s].filled;
        list_remove(c, s);
    } else {
        bool fresh = c->used < c->slots;

        if (fresh) {
            s = ++c->used;
        } else {
            s = c->slot[0].prev;
            if (c->slot[s].round == c->round)
                return NULL;
            if (recycled && c->slot[s].found)
                *recycled = c->slot[s].pfn;
            list_remove(c, s);
            table_remove(c, c->slot[s].pfn);
            i = table_find(c, pfn);
        }
        c->table[i] = s;
        c->slot[s].pfn = pfn;
        c->slot[s].found = fresh;
    }
    list_push(c, s);
    c->slot[s].round = c->round;
    c->slot[s].filled = true;
    return c->memory + (size_t)(s - 1) * c->bytes;
}

void page_cache_forget(struct page_cache *c, uint64_t pfn)
{
    uint32_t s = c->table[table_find(c, pfn)];

    if (s)
        c->slot[s].filled = c->slot[s].found = false;
}

bool page_cache_full(const struct page_cache *c)
{
    return c->used == c->slots;
}

void page_cache_begin(struct page_cache *c)
{
    c->round++;
}

void page_cache_clear(struct page_cache *c)
{
    memset(c->table, 0, ((size_t)c->mask + 1) * sizeof(*c->table));
    c->slot[0].prev = c->slot[0].next = 0;
    c->used = 0;
}

static size_t memory_bytes(const struct page_cache *c)
{
    return (size_t)c->slots * c->bytes;
}

struct page_cache *page_cache_new(uint32_t slots, size_t bytes)
{
    struct page_cache *c = calloc(1, sizeof(*c));
    size_t table = 16;

    if (!c)
        return NULL;
    while (table < (size_t)slots + slots / 2)
        table *= 2;
    c->slots = slots;
    c->bytes = bytes;
    c->mask = (uint32_t)(table - 1);
    c->round = 1;
    c->table = calloc(table, sizeof(*c->table));
    c->slot = calloc((size_t)slots + 1, sizeof(*c->slot));
    c->memory =
        mmap(NULL, memory_bytes(c), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (c->memory == MAP_FAILED)
        c->memory = NULL;
    else
        madvise(c->memory, memory_bytes(c), MADV_HUGEPAGE); /* used in no order: spares TLB misses */
    if (!c->table || !c->slot || !c->memory) {
        page_cache_free(c);
        errno = ENOMEM;
        return NULL;
    }
    return c;
}

void page_cache_free(struct page_cache *c)
{
    if (!c)
        return;
    if (c->memory)
        munmap(c->memory, memory_bytes(c));
    free(c->table);
    free(c->slot);
    free(c);
}

size_t page_cache_memory(const struct page_cache *c)
{
    return sizeof(*c) + ((size_t)c->mask + 1) * sizeof(*c->table) +
           ((size_t)c->slots + 1) * sizeof(*c->slot) + memory_bytes(c);
}
