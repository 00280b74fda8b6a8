/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Input: edits of a small guest's pages, as a list of octets {what, page, where, how much, value},
 * and checkpoints in between. After each checkpoint the replica must equal the guest (R4).
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "compress/pagecodec.h"
#include "vector.h"

#define GUEST 12

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

struct state {
    struct page_encoder *enc;
    struct page_decoder *dec;
    uint8_t guest[GUEST][PAGE_BYTES], replica[GUEST][PAGE_BYTES];
    uint8_t out[PAGE_BLOCK_MAX * 6000], pages[PAGE_BLOCK_MAX * PAGE_BYTES];
    uint16_t dirty;
};

static void check(int ok)
{
    if (!ok)
        abort();
}

/* One checkpoint, in blocks of `most` pages. */
static void ship(struct state *s, size_t most)
{
    const uint8_t *pages[GUEST];
    uint8_t *staged = s->pages;
    uint64_t pfns[GUEST], got[PAGE_BLOCK_MAX], all[GUEST];
    size_t n = 0, done = 0;

    for (uint64_t i = 0; i < GUEST; i++)
        if (s->dirty >> i & 1) {
            pfns[n] = i;
            pages[n++] = s->guest[i];
        }
    page_encoder_begin(s->enc);
    page_decoder_begin(s->dec);
    for (size_t some; done < n; done += some) {
        ssize_t len;

        some = n - done < most ? n - done : most;
        len = page_encode(s->enc, pfns + done, pages + done, some, s->out, page_block_bound(some));
        check(len > 0);
        check(page_decode(s->dec, s->out, (size_t)len, GUEST, s->replica[0], got,
                          staged + done * PAGE_BYTES, NULL) == (int)some);
        memcpy(all + done, got, some * sizeof(*got));
    }
    for (size_t i = 0; i < n; i++)
        memcpy(s->replica[all[i]], staged + i * PAGE_BYTES, PAGE_BYTES);
    check(memcmp(s->guest, s->replica, sizeof(s->guest)) == 0);
    s->dirty = 0;
}

static void edit(struct state *s, const uint8_t *op)
{
    unsigned pfn = op[1] % GUEST, at = op[2] * 16 + op[4] % 16, len = op[3] * 16u + 1;
    uint8_t *page = s->guest[pfn];

    if (len > PAGE_BYTES - at)
        len = PAGE_BYTES - at;
    s->dirty |= (uint16_t)(1u << pfn);
    switch (op[0] % 8) {
    case 0:
        memset(page + at, op[4], len);
        break;
    case 1:
        page[at] ^= op[4];
        break;
    case 2: /* move within the page */
        memmove(page + at, page + (op[4] * 4u) % (PAGE_BYTES - len + 1), len);
        break;
    case 3: /* from the next page */
        memcpy(page + at, s->guest[(pfn + 1) % GUEST] + at, len);
        break;
    case 4: /* records with a counter */
        for (unsigned i = 0, size = 8 + op[3]; i < PAGE_BYTES; i++)
            page[i] = (uint8_t)(i % size < 2 ? i / size + op[2] : i % size * op[4]);
        break;
    case 5: /* noise */
        for (unsigned i = 0, v = op[4] + 1; i < len; i++) {
            v = v * 1103515245 + 12345;
            page[at + i] = (uint8_t)(v >> 16);
        }
        break;
    case 6:
        ship(s, 1 + op[1] % GUEST);
        if (op[2] == 255)
            page_encoder_reset(s->enc);
        if (op[3] == 255)
            page_encoder_set_codec(s->enc, op[4] % (PAGE_CODEC_ZSTD + 1));
        break;
    case 7: /* dirty without a change */
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct page_encoder_config config = {
        .guest_pages = GUEST, .cache_bytes = 5 * PAGE_BYTES, .codec = PAGE_CODEC_LZ4};
    static struct state *s;

    /* One for all inputs: most of the time would go into getting fresh memory. */
    if (!s) {
        s = calloc(1, sizeof(*s));
        check(s != NULL);
        s->enc = page_encoder_new(&config);
        s->dec = page_decoder_new();
        check(s->enc && s->dec);
    }
    page_encoder_reset(s->enc);
    page_encoder_set_codec(s->enc, config.codec);
    page_decoder_reset(s->dec);
    page_encoder_set_vector(s->enc, vector(len));
    page_decoder_set_vector(s->dec, vector(len + 1));
    memset(s->guest, 0, sizeof(s->guest));
    memset(s->replica, 0, sizeof(s->replica));
    for (; len >= 5; len -= 5, data += 5)
        edit(s, data);
    ship(s, GUEST);
    return 0;
}
