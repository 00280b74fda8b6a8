/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Input: for the page decoder, which has decoded one checkpoint before, so that references are
 * allowed. First octet 0: a block as it comes from the network. Otherwise: that many pages' stream,
 * to which a fitting header is made; the second octet says how many raw pages of it come behind.
 * The decoder must refuse or decode, and write nothing outside its buffers.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "compress/page-block.h"
#include "vector.h"

#define GUEST 16

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void check(int ok)
{
    if (!ok)
        abort();
}

/* A block 0 with every page of the guest. */
static void prime(struct page_decoder *dec, uint8_t *memory)
{
    static uint8_t out[GUEST * 6000];
    struct page_encoder_config config = {.guest_pages = GUEST, .codec = PAGE_CODEC_LZ4};
    struct page_encoder *enc = page_encoder_new(&config);
    const uint8_t *pages[GUEST];
    uint64_t pfns[GUEST], got[PAGE_BLOCK_MAX];
    uint8_t *decoded = malloc(PAGE_BLOCK_MAX * PAGE_BYTES);
    ssize_t n;

    check(enc && decoded);
    for (uint64_t i = 0; i < GUEST; i++) {
        pfns[i] = i;
        pages[i] = memory + i * PAGE_BYTES;
        memset(memory + i * PAGE_BYTES, (int)i, PAGE_BYTES);
    }
    n = page_encode(enc, pfns, pages, GUEST, out, sizeof(out));
    check(n > 0);
    check(page_decode(dec, out, (size_t)n, GUEST, memory, got, decoded, NULL) == GUEST);
    page_encoder_free(enc);
    free(decoded);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct page_decoder *dec = page_decoder_new();
    uint8_t *memory = malloc(GUEST * PAGE_BYTES), *pages = malloc(PAGE_BLOCK_MAX * PAGE_BYTES),
            *block;
    uint64_t *pfns = malloc(PAGE_BLOCK_MAX * sizeof(*pfns));
    struct error err = {""};
    int n;

    check(dec && memory && pages && pfns);
    page_decoder_set_vector(dec, vector(len));
    prime(dec, memory);
    page_decoder_begin(dec);
    /* A copy of exactly its size, so that reading beyond it is noticed. */
    if (len < 2 || data[0] == 0) {
        len -= len > 0;
        block = malloc(len ? len : 1);
        if (len)
            memcpy(block, data + 1, len);
    } else {
        size_t raw = (size_t)data[1] * PAGE_BYTES, stream = len - 2;
        struct page_block_header header = {.version = PAGE_BLOCK_VERSION, .pages = {0, data[0]}};

        if (raw > stream)
            raw = 0;
        page_put32(header.sequence, 1);
        page_put32(header.plain, (uint32_t)(stream - raw));
        page_put32(header.coded, (uint32_t)(stream - raw));
        block = malloc(sizeof(header) + stream);
        memcpy(block, &header, sizeof(header));
        memcpy(block + sizeof(header), data + 2, stream);
        len = sizeof(header) + stream;
    }
    n = page_decode(dec, block, len, GUEST, memory, pfns, pages, &err);
    check(n >= 0 || err.text[0]);
    for (int i = 0; i < n; i++)
        check(pfns[i] < GUEST && (i == 0 || pfns[i] > pfns[i - 1]));
    free(block);
    free(pfns);
    free(pages);
    free(memory);
    page_decoder_free(dec);
    return 0;
}
