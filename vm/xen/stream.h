/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Xen's migration stream, as far as it is needed to have a domain restored: written from
 * docs/specs/ libxl-migration-stream.pandoc (version 2) and libxc-migration-stream.pandoc (version
 * 3) of Xen 4.17.  Pure, and without Xen's headers.
 *
 *     libxl header, LIBXC_CONTEXT          stream_put_begin
 *     head: libxc image and domain header, stream_put_head
 *           CPUID and MSR policy,          stream_put_record: made on the primary, once
 *           STATIC_DATA_END
 *     PAGE_DATA: which pages there are     stream_put_pages
 *     machine state of a checkpoint        stream_put_record
 *     END, libxl END                       stream_put_end
 *
 * A PVH domain: PAGE_DATA has no data, type XALLOC only populates; the content is written by other means.  Its state is TSC_INFO,
 * HVM_CONTEXT and HVM_PARAMS.
 *
 * A PV domain: its head, as libxenguest makes it, also has X86_PV_INFO and X86_PV_P2M_FRAMES.  Its state begins with a record of our own,
 * stream_put_types, and goes on with TSC_INFO, SHARED_INFO and the X86_PV_VCPU_ records.  Its pages follow in PAGE_DATA with their types
 * and data, over and over as they change (feed.h), ahead of the state.
 *
 * Integers are little-endian but for the two headers' first fields.
 */
#ifndef REMUS_XEN_STREAM_H
#define REMUS_XEN_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buffer.h"
#include "common/error.h"

enum stream_record {
    STREAM_END = 0,
    STREAM_PAGE_DATA = 1,
    STREAM_PV_INFO = 2,
    STREAM_PV_P2M_FRAMES = 3,
    STREAM_PV_VCPU_BASIC = 4,
    STREAM_PV_VCPU_EXTENDED = 5,
    STREAM_PV_VCPU_XSAVE = 6,
    STREAM_SHARED_INFO = 7,
    STREAM_TSC_INFO = 8,
    STREAM_HVM_CONTEXT = 9,
    STREAM_HVM_PARAMS = 10,
    STREAM_PV_VCPU_MSRS = 12,
    STREAM_CHECKPOINT = 14,
    STREAM_STATIC_DATA_END = 16,
    STREAM_CPUID_POLICY = 17,
    STREAM_MSR_POLICY = 18,
    STREAM_TYPES = 30, /* ours, as is the next: libxc never sees them */
    STREAM_PARKED = 31,
};

/* Of a page, in the upper 4 bits of its number.  Tables have 1 to 4, their level, and 8 when they are pinned. */
enum stream_type {
    STREAM_NOTAB = 0,
    STREAM_XALLOC = 14, /* there, without data */
    STREAM_XTAB = 15,   /* not there */
};
#define STREAM_TYPE_SHIFT 60

#define STREAM_PAGES_MAX 1024u /* in one PAGE_DATA */
#define STREAM_PFN_MAX (UINT64_C(1) << 52)

/* Pages that are there. */
struct xen_range {
    uint64_t first, count;
};

/*
 * What the backup must know ahead of any checkpoint: struct vm's description.
 *
 *     magic u32 | version u32 | pages u64 | ranges u32 | head u32 | config u32, lengths in octets
 *     ranges of (first u64, count u64), ascending | head | config
 *
 * in network byte order.
 */
struct xen_machine {
    uint64_t pages; /* numbers of pages are below this */
    struct xen_range *ranges;
    unsigned range_count;
    const uint8_t *head;
    size_t head_length;
    const char *config; /* libxl's JSON, config_length octets */
    size_t config_length;
    bool pv; /* what the head is for; xen_machine_get() sets it */
};

/* All of these: 0, or -1 without memory. */
int stream_put_begin(struct buffer *b);
int stream_put_head(struct buffer *b, bool pv, unsigned xen_major, unsigned xen_minor);
int stream_put_record(struct buffer *b, enum stream_record type, const void *body, size_t len);
/* PAGE_DATA of pages, whose types are at their numbers in `types'; NULL: all of them XALLOC.  What stream_has_data() has to follow, by the
 * caller. */
int stream_put_pages(struct buffer *b, const uint64_t *pfns, unsigned count, const uint8_t *types);
/* What types the pages from the first on have: runs of u32, type << 28 | pages. */
int stream_put_types(struct buffer *b, const uint8_t *types, uint64_t pages);
int stream_put_end(struct buffer *b);
int xen_machine_put(struct buffer *b, const struct xen_machine *m);

static inline bool stream_has_data(uint8_t type)
{
    return type < 13 && (type & 7) < 5;
}

/* Pages in all ranges. */
uint64_t xen_machine_present(const struct xen_machine *m);

/*
 * Checks everything that is ours to check (R10); what is in the policies and in the config, libxl
 * and libxc do. `data' must last as long as m.  xen_machine_free in any case.
 */
int xen_machine_get(struct xen_machine *m, const uint8_t *data, size_t len, struct error *err);
void xen_machine_free(struct xen_machine *m);

/* The body of a record of a head that xen_machine_get() has checked. */
const uint8_t *stream_find(const uint8_t *head, size_t head_length, enum stream_record type, size_t *length);

/* Is this a checkpoint's machine state: what belongs to it, whole, and once where it cannot be there for each processor? */
int stream_check_state(const uint8_t *data, size_t len, bool pv, struct error *err);

/* The types from the beginning of a PV domain's state that was checked; *length: of the record. */
int stream_get_types(const uint8_t *state, uint8_t *types, uint64_t pages, size_t *length, struct error *err);

#endif
