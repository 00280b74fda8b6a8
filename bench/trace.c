/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/trace.h"
#include "common/cleanup.h"

/* Where pfns reach beyond this, only their order is kept, so that a replica can be mapped. */
#define TRACE_PFN_MAX (UINT64_C(1) << 30)

static uint32_t get32(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof(v));
    return le32toh(v);
}

static uint64_t get64(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof(v));
    return le64toh(v);
}

static int by_epoch_pfn(const void *a, const void *b)
{
    const struct trace_page *x = a, *y = b;

    if (x->epoch != y->epoch)
        return x->epoch < y->epoch ? -1 : 1;
    if (x->pfn != y->pfn)
        return x->pfn < y->pfn ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}

static int by_pfn_at(const void *a, const void *b)
{
    const struct trace_page *x = a, *y = b;

    if (x->pfn != y->pfn)
        return x->pfn < y->pfn ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}

static int by_at(const void *a, const void *b)
{
    const struct trace_page *x = a, *y = b;

    return x->at < y->at ? -1 : x->at > y->at;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* Of several pages with one epoch and pfn the last stays, of several bases of a pfn the first. */
static size_t unique(struct trace_page *pages, size_t n, bool keep_last)
{
    size_t kept = 0;

    for (size_t i = 0; i < n; i++) {
        if (kept && pages[kept - 1].pfn == pages[i].pfn &&
            pages[kept - 1].epoch == pages[i].epoch) {
            if (keep_last)
                pages[kept - 1] = pages[i];
            continue;
        }
        pages[kept++] = pages[i];
    }
    return kept;
}

/* Replaces each pfn by its rank among all of the trace. */
static int rank_pfns(struct trace *t, struct error *err)
{
    cleanup_free uint64_t *all = calloc(t->bases + t->changes, sizeof(*all));
    size_t n = 0, kept = 0;

    if (!all)
        return error_set(err, "not enough memory for %zu pages", t->bases + t->changes);
    for (size_t i = 0; i < t->bases; i++)
        all[n++] = t->base[i].pfn;
    for (size_t i = 0; i < t->changes; i++)
        all[n++] = t->pages[i].pfn;
    qsort(all, n, sizeof(*all), by_value);
    for (size_t i = 0; i < n; i++)
        if (kept == 0 || all[kept - 1] != all[i])
            all[kept++] = all[i];
    for (size_t i = 0; i < t->bases + t->changes; i++) {
        struct trace_page *p = i < t->bases ? &t->base[i] : &t->pages[i - t->bases];

        p->pfn = (uint64_t)((uint64_t *)bsearch(&p->pfn, all, kept, sizeof(*all), by_value) - all);
    }
    t->guest_pages = kept;
    return 0;
}

static int order(struct trace *t, const char *path, struct error *err)
{
    uint64_t max = 0;
    uint32_t epoch = 0;

    t->base = calloc(t->count, sizeof(*t->base));
    t->pages = calloc(t->count, sizeof(*t->pages));
    if (!t->base || !t->pages)
        return error_set(err, "%s: not enough memory for %zu records", path, t->count);
    for (size_t i = 0; i < t->count; i++) {
        const struct trace_record *r = &t->records[i];
        struct trace_page page = {get64(r->pfn), get32(r->epoch), i, r->page};
        uint32_t base = get32(r->base);

        if (base > 1)
            return error_set(err, "%s: record %zu, byte %zu: base is %" PRIu32 ", 0 or 1 expected: "
                             "is this a page trace?", path, i, i * sizeof(*r) + 4, base);
        if (page.pfn > max)
            max = page.pfn;
        if (base) {
            page.epoch = 0;
            t->base[t->bases++] = page;
            continue;
        }
        if (page.epoch < epoch)
            return error_set(err, "%s: record %zu, byte %zu: epoch %" PRIu32 " after epoch %" PRIu32
                             ": epochs must ascend", path, i, i * sizeof(*r), page.epoch, epoch);
        epoch = page.epoch;
        t->pages[t->changes++] = page;
    }
    if (t->changes == 0)
        return error_set(err, "%s: no changed page in the whole trace", path);
    qsort(t->base, t->bases, sizeof(*t->base), by_pfn_at);
    t->bases = unique(t->base, t->bases, false);
    qsort(t->base, t->bases, sizeof(*t->base), by_at);
    qsort(t->pages, t->changes, sizeof(*t->pages), by_epoch_pfn);
    t->changes = unique(t->pages, t->changes, true);
    if (max >= TRACE_PFN_MAX)
        return rank_pfns(t, err);
    t->guest_pages = max + 1;
    return 0;
}

int trace_open(struct trace *t, const char *path, struct error *err)
{
    cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    void *map;

    memset(t, 0, sizeof(*t));
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_set(err, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode) || st.st_size == 0)
        return error_set(err, "%s: empty or not a plain file", path);
    t->count = (size_t)st.st_size / sizeof(struct trace_record);
    if ((size_t)st.st_size % sizeof(struct trace_record))
        return error_set(err, "%s: cut off: record %zu has %zu of %zu bytes", path, t->count,
                         (size_t)st.st_size % sizeof(struct trace_record),
                         sizeof(struct trace_record));
    map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED)
        return error_set(err, "%s: cannot map it: %s", path, strerror(errno));
    t->records = map;
    if (order(t, path, err) < 0) {
        trace_close(t);
        return -1;
    }
    return 0;
}

int trace_random(struct trace *t, size_t pages, struct error *err)
{
    uint64_t seed = 1;
    void *map;

    memset(t, 0, sizeof(*t));
    t->count = pages;
    map = mmap(NULL, pages * sizeof(*t->records), PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return error_set(err, "%zu random pages: %s", pages, strerror(errno));
    t->records = map;
    for (size_t i = 0; i < pages; i++) {
        uint32_t epoch = htole32((uint32_t)(i / 100));
        uint64_t pfn = htole64(i % 300 * 7);

        memcpy(t->records[i].epoch, &epoch, sizeof(epoch));
        memcpy(t->records[i].pfn, &pfn, sizeof(pfn));
        for (size_t j = 0; j < sizeof(t->records->page); j += sizeof(seed)) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            memcpy(t->records[i].page + j, &seed, sizeof(seed));
        }
    }
    if (order(t, "random pages", err) < 0) {
        trace_close(t);
        return -1;
    }
    return 0;
}

void trace_close(struct trace *t)
{
    if (t->records)
        munmap(t->records, t->count * sizeof(struct trace_record));
    free(t->base);
    free(t->pages);
    memset(t, 0, sizeof(*t));
}

int trace_write(FILE *out, uint32_t epoch, uint32_t base, uint64_t pfn, const uint8_t *page)
{
    uint32_t head[2] = {htole32(epoch), htole32(base)};
    uint64_t where = htole64(pfn);

    return fwrite(head, sizeof(head), 1, out) == 1 && fwrite(&where, sizeof(where), 1, out) == 1 &&
                   fwrite(page, sizeof(((struct trace_record *)0)->page), 1, out) == 1
               ? 0
               : -1;
}
