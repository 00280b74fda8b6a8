/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Page traces: the pages that a guest changed, epoch by epoch; docs/trace-format.pod.
 *
 * A trace is opened whole (mapped), checked and ordered once: base pages in the order of the file,
 * then epochs with ascending pfns, one page a pfn (the last of the epoch's).
 */
#ifndef REMUS_TRACE_H
#define REMUS_TRACE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/error.h"

struct trace_record {
    uint8_t epoch[4];
    uint8_t base[4];
    uint8_t pfn[8];
    uint8_t page[4096];
};
_Static_assert(sizeof(struct trace_record) == 4112, "trace record");

struct trace_page {
    uint64_t pfn;
    uint32_t epoch;
    size_t at; /* place in the file, which breaks ties */
    const uint8_t *data;
};

struct trace {
    struct trace_record *records; /* mapped */
    size_t count;
    struct trace_page *base, *pages;
    size_t bases, changes;
    uint64_t guest_pages; /* above every pfn */
};

/* 0, or -1 with the place of what is wrong. */
int trace_open(struct trace *t, const char *path, struct error *err);
/* A trace of `pages` incompressible pages, 100 an epoch. */
int trace_random(struct trace *t, size_t pages, struct error *err);
void trace_close(struct trace *t);

int trace_write(FILE *out, uint32_t epoch, uint32_t base, uint64_t pfn, const uint8_t *page);

#endif
