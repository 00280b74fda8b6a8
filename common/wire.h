/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Cursors over octets in network byte order.  Nobody casts a buffer to a struct.
 *
 * A reader that would pass the end sets `failed` and gives zeros from then on, so a decoder reads all its fields
 * and asks wire_reader_ok() once.  A writer likewise refuses what does not fit.
 */
#ifndef REMUS_WIRE_H
#define REMUS_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct wire_reader {
    const uint8_t *at, *end;
    bool failed;
};

struct wire_writer {
    uint8_t *at, *end;
    bool failed;
};

static inline struct wire_reader wire_reader(const void *data, size_t len)
{
    return (struct wire_reader){data, (const uint8_t *)data + len, false};
}

static inline size_t wire_left(const struct wire_reader *r)
{
    return (size_t)(r->end - r->at);
}

/* True when every field was there and nothing is left over. */
static inline bool wire_reader_ok(const struct wire_reader *r)
{
    return !r->failed && r->at == r->end;
}

/* `len` octets as they are, or NULL. */
static inline const uint8_t *wire_get(struct wire_reader *r, size_t len)
{
    const uint8_t *p = r->at;

    if (r->failed || wire_left(r) < len) {
        r->failed = true;
        return NULL;
    }
    r->at += len;
    return p;
}

static inline uint64_t wire_get_uint(struct wire_reader *r, size_t octets)
{
    const uint8_t *p = wire_get(r, octets);
    uint64_t v = 0;

    for (size_t i = 0; p && i < octets; i++)
        v = v << 8 | p[i];
    return v;
}

static inline uint8_t wire_get_u8(struct wire_reader *r)
{
    return (uint8_t)wire_get_uint(r, 1);
}

static inline uint16_t wire_get_u16(struct wire_reader *r)
{
    return (uint16_t)wire_get_uint(r, 2);
}

static inline uint32_t wire_get_u32(struct wire_reader *r)
{
    return (uint32_t)wire_get_uint(r, 4);
}

static inline uint64_t wire_get_u64(struct wire_reader *r)
{
    return wire_get_uint(r, 8);
}

/* u8 length, then that many octets, as a C string of at most size - 1; a NUL inside fails. */
static inline void wire_get_string(struct wire_reader *r, char *out, size_t size)
{
    size_t len = wire_get_u8(r);
    const uint8_t *p = wire_get(r, len);

    out[0] = '\0';
    if (!p || len >= size || memchr(p, 0, len)) {
        r->failed = true;
        return;
    }
    memcpy(out, p, len);
    out[len] = '\0';
}

static inline struct wire_writer wire_writer(void *data, size_t len)
{
    return (struct wire_writer){data, (uint8_t *)data + len, false};
}

static inline void wire_put(struct wire_writer *w, const void *data, size_t len)
{
    if (w->failed || (size_t)(w->end - w->at) < len) {
        w->failed = true;
        return;
    }
    memcpy(w->at, data, len);
    w->at += len;
}

static inline void wire_put_uint(struct wire_writer *w, uint64_t v, size_t octets)
{
    uint8_t b[8];

    for (size_t i = 0; i < octets; i++)
        b[i] = (uint8_t)(v >> 8 * (octets - 1 - i));
    wire_put(w, b, octets);
}

static inline void wire_put_string(struct wire_writer *w, const char *s)
{
    size_t len = strlen(s);

    if (len > 255)
        w->failed = true;
    wire_put_uint(w, len, 1);
    wire_put(w, s, len);
}

#endif
