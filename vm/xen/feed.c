/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "feed.h"
#include "stream.h"
#include "vm/vm.h"

#define BATCH_MAX (STREAM_PAGES_MAX * (8 + PAGE_SIZE) + 16) /* octets of PAGE_DATA */

int feed_init(struct xen_feed *f, const uint8_t *memory, uint64_t pages)
{
    *f = (struct xen_feed){.memory = memory, .types = malloc(pages), .new_types = malloc(pages)};
    if (!f->types || !f->new_types || bitmap_init(&f->missing, pages) < 0 || buffer_reserve(&f->batch, BATCH_MAX) < 0)
        return -1;
    memset(f->types, STREAM_XTAB, pages);
    return 0;
}

void feed_free(struct xen_feed *f)
{
    bitmap_free(&f->missing);
    buffer_free(&f->batch);
    free(f->types);
    free(f->new_types);
}

int feed_checkpoint(struct xen_feed *f, const uint8_t *state, size_t *length, struct error *err)
{
    if (stream_get_types(state, f->new_types, f->missing.bits, length, err) < 0)
        return -1;
    for (uint64_t page = 0; page < f->missing.bits; page++)
        if (f->types[page] != f->new_types[page]) {
            f->types[page] = f->new_types[page];
            bitmap_set(&f->missing, page);
        }
    return 0;
}

/* Of what is missing, as much as there is room for; false: nothing is. */
static bool next_batch(struct xen_feed *f)
{
    uint64_t pfns[STREAM_PAGES_MAX], page;
    unsigned count = 0;

    while (count < STREAM_PAGES_MAX) {
        page = bitmap_next(&f->missing, f->at);
        if (page < f->missing.bits) {
            bitmap_clear(&f->missing, page);
            pfns[count++] = page;
            f->at = page + 1;
        } else if (f->at > 0) {
            f->at = 0;
        } else {
            break;
        }
    }
    f->sent = 0;
    buffer_clear(&f->batch);
    if (count)
        stream_put_pages(&f->batch, pfns, count, f->types);
    for (unsigned i = 0; i < count; i++)
        if (stream_has_data(f->types[pfns[i]]))
            buffer_append(&f->batch, f->memory + pfns[i] * PAGE_SIZE, PAGE_SIZE);
    return count;
}

int feed_some(struct xen_feed *f, int stream)
{
    while (f->sent < f->batch.len || next_batch(f)) {
        ssize_t n = write(stream, f->batch.data + f->sent, f->batch.len - f->sent);

        if (n < 0 && errno != EINTR)
            return errno == EAGAIN ? 0 : -1;
        f->sent += n < 0 ? 0 : (size_t)n;
    }
    return 1;
}
