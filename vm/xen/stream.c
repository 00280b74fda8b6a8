/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <endian.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/wire.h"
#include "stream.h"

#define LIBXL_IDENT UINT64_C(0x4c6962786c466d74) /* "LibxlFmt" */
#define LIBXL_VERSION_2 2
#define LIBXL_LIBXC_CONTEXT 1
#define LIBXC_ID 0x58454e46u /* "XENF" */
#define LIBXC_VERSION_3 3
#define LIBXC_PV 1u /* of the domain header */
#define LIBXC_HVM 2u /* PVH too */
#define PAGE_SHIFT 12
#define IMAGE_HEADER 24
#define DOMAIN_HEADER 16
#define RECORD_HEADER 8
#define RUN_SHIFT 28
#define RUN_MAX 0xfffffffu

#define MACHINE_MAGIC 0x5258454eu /* "RXEN" */
#define MACHINE_VERSION 1u
#define MACHINE_FIXED 28

static const uint8_t zeros[8];

static size_t padding(size_t len)
{
    return -len & 7;
}

static int put_u32(struct buffer *b, uint32_t value)
{
    value = htole32(value);
    return buffer_append(b, &value, sizeof(value));
}

static int put_u64(struct buffer *b, uint64_t value)
{
    value = htole64(value);
    return buffer_append(b, &value, sizeof(value));
}

int stream_put_begin(struct buffer *b)
{
    uint64_t ident = htobe64(LIBXL_IDENT);
    uint32_t version = htobe32(LIBXL_VERSION_2);

    return buffer_append(b, &ident, sizeof(ident)) || buffer_append(b, &version, sizeof(version)) ||
                   put_u32(b, 0) || put_u32(b, LIBXL_LIBXC_CONTEXT) || put_u32(b, 0)
               ? -1
               : 0;
}

int stream_put_head(struct buffer *b, bool pv, unsigned xen_major, unsigned xen_minor)
{
    uint64_t marker = UINT64_MAX;
    uint32_t id = htobe32(LIBXC_ID), version = htobe32(LIBXC_VERSION_3);

    return buffer_append(b, &marker, sizeof(marker)) || buffer_append(b, &id, sizeof(id)) ||
                   buffer_append(b, &version, sizeof(version)) || put_u64(b, 0) ||
                   put_u32(b, pv ? LIBXC_PV : LIBXC_HVM) || put_u32(b, PAGE_SHIFT) || put_u32(b, xen_major) ||
                   put_u32(b, xen_minor)
               ? -1
               : 0;
}

int stream_put_record(struct buffer *b, enum stream_record type, const void *body, size_t len)
{
    return put_u32(b, type) || put_u32(b, (uint32_t)len) || (len && buffer_append(b, body, len)) ||
                   buffer_append(b, zeros, padding(len))
               ? -1
               : 0;
}

int stream_put_pages(struct buffer *b, const uint64_t *pfns, unsigned count, const uint8_t *types)
{
    uint32_t length = 8 + 8 * count;

    for (unsigned i = 0; types && i < count; i++)
        length += stream_has_data(types[pfns[i]]) ? 1u << PAGE_SHIFT : 0;
    if (put_u32(b, STREAM_PAGE_DATA) || put_u32(b, length) || put_u32(b, count) ||
        put_u32(b, 0))
        return -1;
    for (unsigned i = 0; i < count; i++)
        if (put_u64(b, (uint64_t)(types ? types[pfns[i]] : STREAM_XALLOC) << STREAM_TYPE_SHIFT | pfns[i]))
            return -1;
    return 0;
}

int stream_put_types(struct buffer *b, const uint8_t *types, uint64_t pages)
{
    size_t at = b->len;
    uint32_t length;

    if (put_u32(b, STREAM_TYPES) || put_u32(b, 0))
        return -1;
    for (uint64_t page = 0, run; page < pages; page += run) {
        for (run = 1; page + run < pages && run < RUN_MAX && types[page + run] == types[page]; run++)
            ;
        if (put_u32(b, (uint32_t)types[page] << RUN_SHIFT | (uint32_t)run))
            return -1;
    }
    length = htole32((uint32_t)(b->len - at - RECORD_HEADER));
    memcpy(b->data + at + 4, &length, sizeof(length));
    return buffer_append(b, zeros, padding(b->len - at));
}

int stream_get_types(const uint8_t *state, uint8_t *types, uint64_t pages, size_t *length, struct error *err)
{
    uint64_t page = 0;
    uint32_t len, run;

    memcpy(&len, state + 4, 4);
    len = le32toh(len);
    for (uint32_t at = 0; at + 4 <= len; at += 4) {
        memcpy(&run, state + RECORD_HEADER + at, 4);
        run = le32toh(run);
        if ((run & RUN_MAX) > pages - page)
            return error_set(err, "machine state: types of more than %" PRIu64 " pages", pages);
        memset(types + page, (int)(run >> RUN_SHIFT), run & RUN_MAX);
        page += run & RUN_MAX;
    }
    if (page != pages)
        return error_set(err, "machine state: types of %" PRIu64 " pages, the domain has %" PRIu64, page, pages);
    *length = RECORD_HEADER + len + padding(len);
    return 0;
}

int stream_put_end(struct buffer *b)
{
    return stream_put_record(b, STREAM_END, NULL, 0) || put_u64(b, 0) ? -1 : 0;
}

int xen_machine_put(struct buffer *b, const struct xen_machine *m)
{
    size_t len = MACHINE_FIXED + 16 * m->range_count;
    struct wire_writer w;

    if (buffer_reserve(b, len) < 0)
        return -1;
    w = wire_writer(b->data + b->len, len);
    wire_put_uint(&w, MACHINE_MAGIC, 4);
    wire_put_uint(&w, MACHINE_VERSION, 4);
    wire_put_uint(&w, m->pages, 8);
    wire_put_uint(&w, m->range_count * 16, 4);
    wire_put_uint(&w, m->head_length, 4);
    wire_put_uint(&w, m->config_length, 4);
    for (unsigned i = 0; i < m->range_count; i++) {
        wire_put_uint(&w, m->ranges[i].first, 8);
        wire_put_uint(&w, m->ranges[i].count, 8);
    }
    b->len += len;
    return buffer_append(b, m->head, m->head_length) ||
                   buffer_append(b, m->config, m->config_length)
               ? -1
               : 0;
}

uint64_t xen_machine_present(const struct xen_machine *m)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < m->range_count; i++)
        n += m->ranges[i].count;
    return n;
}

/* Walks records; each type in `want` at most once, in `many` as often as it comes, no other.  The bits of those found, or -1. */
static int walk(const uint8_t *data, size_t len, uint32_t want, uint32_t many, struct error *err)
{
    uint32_t found = 0, type, length;

    while (len) {
        if (len < RECORD_HEADER)
            return error_set(err, "a Xen record ends in its header");
        memcpy(&type, data, 4);
        memcpy(&length, data + 4, 4);
        type = le32toh(type);
        length = le32toh(length);
        if (type > 30 || !((want | many) >> type & 1) || (found & ~many) >> type & 1)
            return error_set(err, "a Xen record of type %" PRIu32 " does not belong here", type);
        if (length > len - RECORD_HEADER || padding(length) > len - RECORD_HEADER - length)
            return error_set(err, "a Xen record of type %" PRIu32 " is cut off", type);
        found |= UINT32_C(1) << type;
        data += RECORD_HEADER + length + padding(length);
        len -= RECORD_HEADER + length + padding(length);
    }
    return (int)found;
}

/* The headers are ours to the octet, but for the version of Xen. */
static bool is_head(const uint8_t *data, size_t len, bool pv)
{
    struct buffer want = {0};
    bool same = len >= IMAGE_HEADER + DOMAIN_HEADER && stream_put_head(&want, pv, 0, 0) == 0 &&
                memcmp(data, want.data, IMAGE_HEADER + 8) == 0;

    buffer_free(&want);
    return same;
}

static int check_head(const uint8_t *data, size_t len, bool *pv, struct error *err)
{
    uint32_t all = 1u << STREAM_CPUID_POLICY | 1u << STREAM_MSR_POLICY | 1u << STREAM_STATIC_DATA_END, more = 0;
    int found;

    *pv = is_head(data, len, true);
    if (!*pv && !is_head(data, len, false))
        return error_set(err, "the image header is none of a PVH or PV domain");
    if (*pv) { /* a preflight does not know the frames */
        all |= 1u << STREAM_PV_INFO;
        more = 1u << STREAM_PV_P2M_FRAMES;
    }
    found = walk(data + IMAGE_HEADER + DOMAIN_HEADER, len - IMAGE_HEADER - DOMAIN_HEADER, all | more, 0, err);
    if (found < 0)
        return -1;
    return ((uint32_t)found & all) == all ? 0 : error_set(err, "the processor's description is not whole");
}

static int get_ranges(struct xen_machine *m, struct wire_reader *r, size_t len, struct error *err)
{
    uint64_t end = 0;

    if (len % 16 || len == 0 || len > wire_left(r))
        return error_set(err, "ranges of %zu octets", len);
    m->range_count = (unsigned)(len / 16);
    m->ranges = calloc(m->range_count, sizeof(*m->ranges));
    if (!m->ranges)
        return error_set(err, "no memory");
    for (unsigned i = 0; i < m->range_count; i++) {
        struct xen_range *range = &m->ranges[i];

        range->first = wire_get_u64(r);
        range->count = wire_get_u64(r);
        if (range->first < end || range->count == 0 || range->first >= m->pages ||
            range->count > m->pages - range->first)
            return error_set(err,
                             "range %u of pages, %" PRIu64 " from %" PRIu64
                             " on, is not in order or not below"
                             " %" PRIu64,
                             i, range->count, range->first, m->pages);
        end = range->first + range->count;
    }
    return 0;
}

int xen_machine_get(struct xen_machine *m, const uint8_t *data, size_t len, struct error *err)
{
    struct wire_reader r = wire_reader(data, len);
    uint32_t magic = wire_get_u32(&r), version = wire_get_u32(&r), ranges;

    *m = (struct xen_machine){.pages = wire_get_u64(&r)};
    ranges = wire_get_u32(&r);
    m->head_length = wire_get_u32(&r);
    m->config_length = wire_get_u32(&r);
    if (r.failed || magic != MACHINE_MAGIC || version != MACHINE_VERSION ||
        m->pages > STREAM_PFN_MAX)
        return error_set(err, "%zu octets that are no description of a Xen domain of version %u",
                         len, MACHINE_VERSION);
    if (get_ranges(m, &r, ranges, err) < 0)
        return error_prefix(err, "description of the domain");
    m->head = wire_get(&r, m->head_length);
    m->config = (const char *)wire_get(&r, m->config_length);
    if (!wire_reader_ok(&r) || m->config_length == 0 || memchr(m->config, '\0', m->config_length))
        return error_set(err, "description of the domain: its lengths do not add up to %zu octets",
                         len);
    return check_head(m->head, m->head_length, &m->pv, err) < 0
               ? error_prefix(err, "description of the domain")
               : 0;
}

const uint8_t *stream_find(const uint8_t *head, size_t head_length, enum stream_record wanted, size_t *length)
{
    const uint8_t *at = head + IMAGE_HEADER + DOMAIN_HEADER;
    uint32_t type, len;

    for (; at < head + head_length; at += RECORD_HEADER + len + padding(len)) {
        memcpy(&type, at, 4);
        memcpy(&len, at + 4, 4);
        type = le32toh(type);
        len = le32toh(len);
        if (type == wanted) {
            *length = len;
            return at + RECORD_HEADER;
        }
    }
    *length = 0;
    return NULL;
}

void xen_machine_free(struct xen_machine *m)
{
    free(m->ranges);
    m->ranges = NULL;
}

int stream_check_state(const uint8_t *data, size_t len, bool pv, struct error *err)
{
    const uint32_t all = pv ? 1u << STREAM_TYPES | 1u << STREAM_TSC_INFO | 1u << STREAM_SHARED_INFO | 1u << STREAM_PV_VCPU_BASIC
                            : 1u << STREAM_TSC_INFO | 1u << STREAM_HVM_CONTEXT | 1u << STREAM_HVM_PARAMS;
    const uint32_t many = pv ? 1u << STREAM_PV_VCPU_BASIC | 1u << STREAM_PV_VCPU_EXTENDED | 1u << STREAM_PV_VCPU_XSAVE |
                                   1u << STREAM_PV_VCPU_MSRS
                             : 0;
    int found = walk(data, len, all, many, err);
    uint32_t first = 0;

    if (found < 0)
        return error_prefix(err, "machine state");
    if (len)
        memcpy(&first, data, sizeof(first));
    return ((uint32_t)found & all) == all && (!pv || le32toh(first) == STREAM_TYPES)
               ? 0 : error_set(err, "machine state: a part of it is missing");
}
