/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Records as a primary makes them (remusd/ship.c), one at a time and without its threads, for tests that take
 * them apart.  Pages go through the real encoder.
 */
#ifndef TESTS_RECORDS_H
#define TESTS_RECORDS_H

#include <stddef.h>
#include <stdint.h>

#include "common/link.h"
#include "compress/pagecodec.h"

struct records {
    struct record *list; /* bodies are owned */
    size_t count;
    struct page_encoder *encoder;
    uint64_t pages; /* since the last END */
    uint8_t *hashed; /* what the digest covers, as it comes */
    size_t hashed_len;
    uint8_t *state, *net;
    size_t state_len, net_len;
};

void records_init(struct records *r, uint64_t guest_pages, enum page_codec codec);
void records_free(struct records *r);
/* A new link: the encoder starts afresh, the list is empty. */
void records_restart(struct records *r);

void records_add(struct records *r, enum proto_type type, uint64_t epoch, const void *body,
                 size_t len);
/* The checksum that this record would have on a link. */
uint64_t records_checksum(const struct record *rec);
/* Guest pages pfns[0..n-1] of `memory`; epoch 0 while synchronising. */
void records_pages(struct records *r, uint64_t epoch, const uint8_t *memory, const uint64_t *pfns,
                   size_t n);
/* A page that is a block of a disk. */
void records_block(struct records *r, uint64_t epoch, const struct proto_block *block, const uint8_t *page);
void records_blob(struct records *r, enum proto_type type, uint64_t epoch, const void *data,
                  size_t len);
/* END with everything right. */
void records_end(struct records *r, uint64_t epoch);

#endif
