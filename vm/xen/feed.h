/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A PV domain's memory on its way from the replica's copy into the domain that waits for its takeover.  Nobody else may write into a
 * domain's page tables, so all of it goes through the restore's stream, and that takes as long as memory is large: so after every
 * checkpoint the pages go that have changed, as the passes of a live migration do, and a takeover only has to wait for the last of them.
 *
 * A page and its type are those of one checkpoint; different pages may be of different ones, until feed_some() says that all are there.
 */
#ifndef REMUS_XEN_FEED_H
#define REMUS_XEN_FEED_H

#include "common/bitmap.h"
#include "common/buffer.h"
#include "common/error.h"

struct xen_feed {
    const uint8_t *memory; /* borrowed */
    struct bitmap missing; /* pages that are not in the domain as they are in memory: whoever writes a page sets its bit */
    uint8_t *types, *new_types;
    uint64_t at;           /* where the next batch begins, so that no page waits for ever */
    struct buffer batch;
    size_t sent;           /* octets of it */
};

int feed_init(struct xen_feed *f, const uint8_t *memory, uint64_t pages); /* 0, or -1 without memory; feed_free() in any case */
void feed_free(struct xen_feed *f);

/* Memory is a checkpoint, whose checked state begins with its pages' types: *length octets of it. */
int feed_checkpoint(struct xen_feed *f, const uint8_t *state, size_t *length, struct error *err);

/* After feed_checkpoint(), and before memory changes: as much as the stream takes.  1: all is in it; 0: it is full; -1: errno. */
int feed_some(struct xen_feed *f, int stream);

#endif
