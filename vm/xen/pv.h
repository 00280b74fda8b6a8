/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a PV domain's memory and processors hold, from libxenguest's xc_domain_save(): page tables name machine frames, and it alone knows
 * how to make them the domain's own again.  Needs a Xen with CONFIG_SHADOW_PAGING, for log-dirty mode.
 *
 * It runs in a thread, on a stream of checkpoints (Remus) that ends here, in a copy of the domain's memory: it writes what changed, over and
 * over while the domain runs, then each time that the domain is suspended; in between it is parked.  All calls come from one thread.
 */
#ifndef REMUS_XEN_PV_H
#define REMUS_XEN_PV_H

#include "common/bitmap.h"
#include "common/buffer.h"
#include "common/error.h"

struct xen_pv {
    uint8_t *memory;     /* the copy, as of the last xen_pv_take(), or of no moment before it; page tables hold page numbers */
    uint8_t *types;      /* of each page: enum stream_type */
    uint64_t pages;
    bool taken;          /* once: there are no passes any more */
    struct buffer head;  /* of the stream, from the image header up to the first page */
    struct buffer state; /* records of the last xen_pv_take() */
};

/* Copies the memory of a domain that runs, which may take seconds. */
int xen_pv_start(struct xen_pv **pv, uint32_t domid, struct error *err);

/* The domain runs, and nothing was taken yet: what has changed since the last time.  After a failure only xen_pv_stop() is left. */
int xen_pv_pass(struct xen_pv *pv, struct bitmap *dirty, struct error *err);

/* The domain is suspended: the same, and its state. */
int xen_pv_take(struct xen_pv *pv, struct bitmap *dirty, struct error *err);

/* The domain goes on, and is not tracked any more. */
void xen_pv_stop(struct xen_pv *pv);

#endif
