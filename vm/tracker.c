/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tracker.h"
#include "uffd.h"
#include "vm.h"

/*
 * The kernel reports a page without a page table entry as written (it may have been, before it was swapped out), and
 * protects it by a marker: a hole of the file costs as much as memory, and its page table besides.  So the
 * scan leaves out whole blocks of the memory until the file has data in them, and asks the file about each page
 * that is reported for the first time.  A file made by posix_fallocate has no holes: the search for data would look
 * at each page, 14 ms a GiB, so there all blocks are scanned.
 */
#define BLOCK_PAGES 8192u
#define REGIONS 4096u

struct tracker {
    const char *name;
    int (*scan)(struct tracker *t, struct bitmap *dirty, struct error *err);
    struct tracker_target target;
    struct bitmap data;     /* pages that the file was seen to hold data for */
    bool allocated;         /* the file has no unallocated part */
    bool first;

    /* uffd */
    int pagemap;
    struct bitmap blocks;   /* blocks to scan */
    struct page_region *regions;

    /* compare */
    uint8_t *shadow;
};

int tracker_arm(void *memory, size_t len)
{
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED,
    };
    struct uffdio_register reg = {
        .range = {.start = (uintptr_t)memory, .len = len},
        .mode = UFFDIO_REGISTER_MODE_WP,
    };
    int saved, fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);

    if (fd < 0)
        return -1;
    if (ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg)) {
        saved = errno;
        close(fd);
        errno = saved;
        return -1;
    }
    return 0; /* the protection ends when fd is closed: with the process */
}

/* The first page from `page` on that may differ from zero; the end when there is none. */
static uint64_t next_data(struct tracker *t, uint64_t page, uint64_t end)
{
    off_t at;

    if (page >= end || bitmap_test(&t->data, page))
        return page < end ? page : end;
    at = lseek(t->target.fd, (off_t)(page * PAGE_SIZE), SEEK_DATA);
    if (at < 0 && errno == ENXIO)
        return end;
    if (at >= 0)
        page = (uint64_t)at / PAGE_SIZE;
    if (page >= end)
        return end;
    bitmap_set(&t->data, page);
    return page;
}

static void report(struct tracker *t, struct bitmap *dirty, uint64_t from, uint64_t to)
{
    while ((from = next_data(t, from, to)) < to)
        bitmap_set(dirty, from++);
}

/* Takes up the blocks that got their first data since the last look. */
static void find_blocks(struct tracker *t)
{
    uint64_t page, block;

    for (block = 0; block < t->blocks.bits; block++) {
        if (bitmap_test(&t->blocks, block))
            continue;
        page = next_data(t, block * BLOCK_PAGES, t->target.pages);
        if (page == t->target.pages)
            return;
        block = page / BLOCK_PAGES;
        bitmap_set(&t->blocks, block);
    }
}

/* The next run of blocks to scan, as addresses in the guest's process. */
static bool next_run(const struct tracker *t, uint64_t *block, uint64_t *start, uint64_t *end)
{
    uint64_t first = bitmap_next(&t->blocks, *block), stop = first, pages;

    if (first == t->blocks.bits)
        return false;
    while (stop < t->blocks.bits && bitmap_test(&t->blocks, stop))
        stop++;
    pages = stop * BLOCK_PAGES < t->target.pages ? stop * BLOCK_PAGES : t->target.pages;
    *block = stop;
    *start = t->target.address + first * BLOCK_PAGES * PAGE_SIZE;
    *end = t->target.address + pages * PAGE_SIZE;
    return true;
}

static int scan_uffd(struct tracker *t, struct bitmap *dirty, struct error *err)
{
    struct pm_scan_arg arg = {
        .size = sizeof(arg),
        .flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
        .vec = (uintptr_t)t->regions,
        .vec_len = REGIONS,
        .category_mask = PAGE_IS_WRITTEN,
        .return_mask = PAGE_IS_WRITTEN,
    };
    uint64_t block = 0;
    int n;

    find_blocks(t);
    while (next_run(t, &block, &arg.start, &arg.end)) {
        for (; arg.start < arg.end; arg.start = arg.walk_end) {
            n = ioctl(t->pagemap, PAGEMAP_SCAN, &arg);
            if (n < 0 || (n == 0 && arg.walk_end <= arg.start))
                return error_set(err, "dirty pages of process %d: PAGEMAP_SCAN: %s",
                                 (int)t->target.pid, n < 0 ? strerror(errno) : "no progress");
            for (int i = 0; i < n; i++)
                report(t, dirty, (t->regions[i].start - t->target.address) / PAGE_SIZE,
                       (t->regions[i].end - t->target.address) / PAGE_SIZE);
        }
    }
    if (t->first) /* an earlier daemon may have left pages protected */
        report(t, dirty, 0, t->target.pages);
    return 0;
}

static int scan_compare(struct tracker *t, struct bitmap *dirty, struct error *err)
{
    uint64_t page = 0, end = t->target.pages;

    (void)err;
    for (; (page = next_data(t, page, end)) < end; page++) {
        const uint8_t *now = t->target.memory + page * PAGE_SIZE;
        uint8_t *then = t->shadow + page * PAGE_SIZE;

        if (!t->first && memcmp(now, then, PAGE_SIZE) == 0)
            continue;
        memcpy(then, now, PAGE_SIZE);
        bitmap_set(dirty, page);
    }
    return 0;
}

/* Is all of the memory mapped there and armed?  Asks for one region that covers it. */
static int probe_uffd(struct tracker *t, struct error *err)
{
    struct pm_scan_arg arg = {
        .size = sizeof(arg),
        .flags = PM_SCAN_CHECK_WPASYNC,
        .start = t->target.address,
        .end = t->target.address + t->target.pages * PAGE_SIZE,
        .vec = (uintptr_t)t->regions,
        .vec_len = REGIONS,
        .category_mask = PAGE_IS_WPALLOWED,
        .return_mask = PAGE_IS_WPALLOWED,
    };
    int n = ioctl(t->pagemap, PAGEMAP_SCAN, &arg);

    if (n < 0)
        return error_set(err, "process %d: PAGEMAP_SCAN: %s%s", (int)t->target.pid, strerror(errno),
                         errno == EPERM ? " (its memory is not armed)" : "");
    for (int i = 0; i < n && t->regions[i].start == arg.start; i++)
        arg.start = t->regions[i].end;
    if (arg.start != arg.end)
        return error_set(err, "process %d: its memory at 0x%" PRIx64 " is not mapped as told",
                         (int)t->target.pid, t->target.address);
    return 0;
}

static int init_uffd(struct tracker *t, struct error *err)
{
    char path[64];

    if (!t->target.address)
        return error_set(err, "process %d: its memory is not armed (Linux 6.7 or later is needed)",
                         (int)t->target.pid);
    snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)t->target.pid);
    t->pagemap = open(path, O_RDONLY | O_CLOEXEC);
    if (t->pagemap < 0)
        return error_set(err, "%s: %s (run as the guest's user)", path, strerror(errno));
    t->regions = malloc(REGIONS * sizeof(*t->regions));
    if (!t->regions || bitmap_init(&t->blocks, (t->target.pages + BLOCK_PAGES - 1) / BLOCK_PAGES))
        return error_set(err, "no memory for the dirty tracker");
    if (t->allocated)
        bitmap_set_range(&t->blocks, 0, t->blocks.bits);
    if (probe_uffd(t, err))
        return -1;
    t->name = "uffd";
    t->scan = scan_uffd;
    return 0;
}

static int init_compare(struct tracker *t, struct error *err)
{
    size_t len = t->target.pages * PAGE_SIZE;
    void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);

    if (p == MAP_FAILED)
        return error_set(err, "no memory for the dirty tracker's copy of the guest (%zu MiB)",
                         len >> 20);
    madvise(p, len, MADV_HUGEPAGE);
    t->shadow = p;
    t->name = "compare";
    t->scan = scan_compare;
    return 0;
}

/* Prepares the map of pages with data: all of them when there is no file to ask. */
static int init_data(struct tracker *t, struct error *err)
{
    struct stat st;

    if (bitmap_init(&t->data, t->target.pages))
        return error_set(err, "no memory for the dirty tracker");
    if (t->target.fd <= 0)
        bitmap_set_range(&t->data, 0, t->target.pages);
    else if (fstat(t->target.fd, &st) || (uint64_t)st.st_size < t->target.pages * PAGE_SIZE)
        return error_set(err, "dirty tracker: descriptor %d is not the guest's memory", t->target.fd);
    else
        t->allocated = (uint64_t)st.st_blocks * 512 >= t->target.pages * PAGE_SIZE;
    return 0;
}

struct tracker *tracker_new(const char *want, const struct tracker_target *target,
                            struct error *err)
{
    bool uffd = strcmp(want, "compare") != 0, compare = strcmp(want, "uffd") != 0;
    struct tracker *t = calloc(1, sizeof(*t));

    if (!t) {
        error_set(err, "no memory for the dirty tracker");
        return NULL;
    }
    t->target = *target;
    t->pagemap = -1;
    t->first = true;
    if (init_data(t, err) == 0 &&
        ((uffd && init_uffd(t, err) == 0) || (compare && init_compare(t, err) == 0)))
        return t;
    tracker_free(t);
    return NULL;
}

const char *tracker_name(const struct tracker *t)
{
    return t->name;
}

const uint8_t *tracker_memory(const struct tracker *t)
{
    return t->shadow ? t->shadow : t->target.memory;
}

int tracker_scan(struct tracker *t, struct bitmap *dirty, struct error *err)
{
    if (t->scan(t, dirty, err))
        return -1;
    t->first = false;
    return 0;
}

void tracker_free(struct tracker *t)
{
    if (!t)
        return;
    if (t->shadow)
        munmap(t->shadow, t->target.pages * PAGE_SIZE);
    if (t->pagemap >= 0)
        close(t->pagemap);
    free(t->regions);
    bitmap_free(&t->blocks);
    bitmap_free(&t->data);
    free(t);
}
