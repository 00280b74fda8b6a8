/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "common/wire.h"
#include "records.h"

static void must(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "records: %s\n", what);
        abort();
    }
}

static void append(uint8_t **to, size_t *len, const void *data, size_t more)
{
    *to = realloc(*to, *len + more + 1);
    must(*to != NULL, "no memory");
    if (more)
        memcpy(*to + *len, data, more);
    *len += more;
}

void records_init(struct records *r, uint64_t guest_pages, enum page_codec codec)
{
    struct page_encoder_config config = {.guest_pages = guest_pages, .codec = codec};

    *r = (struct records){.encoder = page_encoder_new(&config)};
    must(r->encoder != NULL, "page encoder");
}

static void clear(struct records *r)
{
    for (size_t i = 0; i < r->count; i++)
        free((void *)r->list[i].body);
    r->count = r->hashed_len = r->state_len = r->net_len = 0;
    r->pages = 0;
}

void records_free(struct records *r)
{
    clear(r);
    page_encoder_free(r->encoder);
    free(r->list);
    free(r->hashed);
    free(r->state);
    free(r->net);
}

void records_restart(struct records *r)
{
    clear(r);
    page_encoder_reset(r->encoder);
}

void records_add(struct records *r, enum proto_type type, uint64_t epoch, const void *body,
                 size_t len)
{
    uint8_t *copy = NULL;
    size_t copy_len = 0;

    append(&copy, &copy_len, body, len);
    r->list = realloc(r->list, (r->count + 1) * sizeof(*r->list));
    must(r->list != NULL, "no memory");
    r->list[r->count] = (struct record){type, epoch, copy, len, 0};
    r->list[r->count].checksum = records_checksum(&r->list[r->count]);
    r->count++;
}

uint64_t records_checksum(const struct record *rec)
{
    struct proto_header h = {.type = rec->type, .epoch = rec->epoch, .length = (uint32_t)rec->length};
    uint8_t header[PROTO_HEADER_LEN];
    XXH3_state_t state;

    proto_put_header(header, &h);
    XXH3_64bits_reset(&state);
    XXH3_64bits_update(&state, header, PROTO_CHECKED);
    XXH3_64bits_update(&state, rec->body, rec->length);
    return XXH3_64bits_digest(&state);
}

static void hash_page(struct records *r, uint64_t pfn, const uint8_t *page)
{
    uint8_t number[8];
    struct wire_writer w = wire_writer(number, sizeof(number));

    wire_put_uint(&w, pfn, 8);
    append(&r->hashed, &r->hashed_len, number, sizeof(number));
    append(&r->hashed, &r->hashed_len, page, PAGE_BYTES);
    r->pages++;
}

void records_pages(struct records *r, uint64_t epoch, const uint8_t *memory, const uint64_t *pfns,
                   size_t n)
{
    const uint8_t *pages[PAGE_BLOCK_MAX];
    uint8_t *block = malloc(page_block_bound(n));
    ssize_t len;

    for (size_t i = 0; i < n; i++) {
        pages[i] = memory + pfns[i] * PAGE_BYTES;
        hash_page(r, pfns[i], pages[i]);
    }
    len = page_encode(r->encoder, pfns, pages, n, block, page_block_bound(n));
    must(len > 0, "page_encode");
    if (epoch == 0)
        page_encoder_begin(r->encoder);
    records_add(r, PROTO_PAGES, epoch, block, (size_t)len);
    free(block);
}

void records_block(struct records *r, uint64_t epoch, const struct proto_block *block, const uint8_t *page)
{
    uint8_t body[PROTO_BLOCK_LEN];

    hash_page(r, block->pfn, page);
    records_add(r, PROTO_BLOCKS, epoch, body, proto_put_block(body, block));
}

void records_blob(struct records *r, enum proto_type type, uint64_t epoch, const void *data,
                  size_t len)
{
    if (type == PROTO_STATE)
        append(&r->state, &r->state_len, data, len);
    else
        append(&r->net, &r->net_len, data, len);
    records_add(r, type, epoch, data, len);
}

void records_end(struct records *r, uint64_t epoch)
{
    struct proto_end end = {.pages = r->pages,
                            .state_length = (uint32_t)r->state_len,
                            .net_length = (uint32_t)r->net_len};
    uint8_t body[PROTO_SMALL_MAX];

    append(&r->hashed, &r->hashed_len, r->state, r->state_len);
    append(&r->hashed, &r->hashed_len, r->net, r->net_len);
    end.digest = XXH3_64bits(r->hashed, r->hashed_len);
    records_add(r, PROTO_END, epoch, body, proto_put_end(body, &end));
    r->pages = r->hashed_len = r->state_len = r->net_len = 0;
    page_encoder_begin(r->encoder);
}
