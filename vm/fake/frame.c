/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <string.h>

#include "common/wire.h"
#include "fake.h"
#include "model.h"

#define HEADER 14
#define BODY 32

void fake_frame_encode(const struct fake_frame *f, uint8_t out[FAKE_FRAME_LEN])
{
    struct wire_writer w = wire_writer(out, FAKE_FRAME_LEN);

    memset(out, 0, FAKE_FRAME_LEN);
    wire_put(&w, f->to, 6);
    wire_put(&w, f->from, 6);
    wire_put_uint(&w, FAKE_ETHERTYPE, 2);
    wire_put_uint(&w, FAKE_FRAME_MAGIC, 4);
    wire_put_uint(&w, f->kind, 4);
    wire_put_uint(&w, f->number, 8);
    wire_put_uint(&w, f->seq, 8);
    wire_put_uint(&w, f->requests, 8);
    wire_put_uint(&w, model_fnv1a(out + HEADER, BODY), 8);
}

bool fake_frame_decode(struct fake_frame *f, const uint8_t *data, size_t len)
{
    struct wire_reader r = wire_reader(data, len);

    if (len != FAKE_FRAME_LEN)
        return false;
    memcpy(f->to, wire_get(&r, 6), 6);
    memcpy(f->from, wire_get(&r, 6), 6);
    if (wire_get_u16(&r) != FAKE_ETHERTYPE || wire_get_u32(&r) != FAKE_FRAME_MAGIC)
        return false;
    f->kind = wire_get_u32(&r);
    f->number = wire_get_u64(&r);
    f->seq = wire_get_u64(&r);
    f->requests = wire_get_u64(&r);
    return wire_get_u64(&r) == model_fnv1a(data + HEADER, BODY) && f->kind >= FAKE_BEACON &&
           f->kind <= FAKE_REPLY;
}
