/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "common/wire.h"
#include "model.h"
#include "vm/vm.h"

#define LINES 64u
#define WORDS 8u
#define MEMORY_MAGIC UINT64_C(0x52454d5553313032)
#define STATE_MAGIC 0x52465354u /* "RFST" */
#define STATE_VERSION 1u

struct header {
    uint64_t magic, pages;
    struct model_regs regs;
    uint64_t digest;
};

struct page {
    uint64_t seq, sum, check, zero[WORDS - 3];
    uint64_t line[LINES - 1][WORDS];
};

_Static_assert(sizeof(struct page) == PAGE_SIZE, "a page");
_Static_assert(sizeof(struct header) <= PAGE_SIZE, "in page 0");

/* The finaliser of splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014). */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static uint64_t next_random(struct model *m)
{
    return mix(m->regs.random += UINT64_C(0x9e3779b97f4a7c15));
}

static uint64_t line_sum(uint64_t line, uint64_t seq)
{
    return seq ? mix(seq + (line << 56)) : 0;
}

static uint64_t page_check(uint64_t number, const struct page *p)
{
    return p->seq ? mix(mix(p->seq + (number << 32)) + p->sum) : 0;
}

/* Twenty random bits a word. */
static void line_fill(uint64_t words[WORDS], uint64_t number, uint64_t line, uint64_t seq)
{
    uint64_t base = seq ? mix(seq ^ number << 40 ^ line << 34) : 0;

    words[0] = seq;
    for (uint64_t i = 1; i < WORDS; i++)
        words[i] = seq ? (base * (2 * i + 1)) >> 44 : 0;
}

static bool line_good(const struct page *p, uint64_t number, uint64_t line)
{
    uint64_t want[WORDS];

    line_fill(want, number, line, p->line[line][0]);
    return memcmp(want, p->line[line], sizeof(want)) == 0;
}

static struct header *header_of(const struct model *m)
{
    return (struct header *)m->memory;
}

static struct page *page_of(const struct model *m, uint64_t number)
{
    return (struct page *)(m->memory + number * PAGE_SIZE);
}

void model_store(struct model *m)
{
    header_of(m)->regs = m->regs;
}

void model_init(struct model *m, uint8_t *memory, uint64_t pages)
{
    *m = (struct model){.memory = memory, .pages = pages, .regs = {.random = pages}};
    *header_of(m) = (struct header){.magic = MEMORY_MAGIC, .pages = pages};
    model_store(m);
}

static uint64_t choose_page(struct model *m, enum model_pattern pattern)
{
    uint64_t r = next_random(m), usable = m->pages - 1;

    if (pattern == MODEL_SEQUENTIAL)
        return m->regs.cursor = m->regs.cursor % usable + 1;
    if (pattern == MODEL_HOT && usable >= 10 && (r & 0xffff) < 0xe666) /* nine in ten */
        return 10 * ((r >> 16) % (usable / 10)) + 1;
    return (r >> 16) % usable + 1;
}

bool model_work(struct model *m, enum model_pattern pattern)
{
    uint64_t number = choose_page(m, pattern), r = next_random(m), seq = ++m->regs.seq;
    struct page *p = page_of(m, number);
    uint64_t first = (r >> 8) % (LINES - 1), count = 1 + (r >> 16) % 4;
    bool good = p->check == page_check(number, p);

    if (r % 32 == 0)
        count = LINES - 1;
    header_of(m)->digest -= p->check;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t line = (first + i) % (LINES - 1);

        good &= line_good(p, number, line);
        p->sum += line_sum(line, seq) - line_sum(line, p->line[line][0]);
        line_fill(p->line[line], number, line, seq);
    }
    p->seq = seq;
    p->check = page_check(number, p);
    header_of(m)->digest += p->check;
    model_store(m);
    return good;
}

static bool page_good(const struct model *m, uint64_t number)
{
    static const uint64_t zero[WORDS - 3];
    const struct page *p = page_of(m, number);
    uint64_t sum = 0, newest = 0;
    bool good = memcmp(p->zero, zero, sizeof(zero)) == 0;

    for (uint64_t line = 0; line < LINES - 1; line++) {
        uint64_t seq = p->line[line][0];

        good &= line_good(p, number, line);
        sum += line_sum(line, seq);
        newest = seq > newest ? seq : newest;
    }
    return good && p->sum == sum && p->seq == newest && p->check == page_check(number, p);
}

static bool header_good(const struct model *m, struct error *err)
{
    const struct header *h = header_of(m);

    if (h->magic != MEMORY_MAGIC || h->pages != m->pages)
        error_set(err, "page 0 is not that of a guest with %" PRIu64 " pages", m->pages);
    else if (memcmp(&h->regs, &m->regs, sizeof(h->regs)) != 0)
        error_set(err, "memory and machine state are of different epochs (seq %" PRIu64
                  " and %" PRIu64 ", frames %" PRIu64 " and %" PRIu64 ")",
                  h->regs.seq, m->regs.seq, h->regs.frames, m->regs.frames);
    else
        return true;
    return false;
}

uint64_t model_verify(const struct model *m, int fd, uint64_t *verified, struct error *err)
{
    uint64_t bad = 0, digest = 0, number = 1;

    *verified = 0;
    if (!header_good(m, err))
        return 1;
    while (number < m->pages) {
        off_t data = lseek(fd, (off_t)(number * PAGE_SIZE), SEEK_DATA);
        off_t hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);

        if (data < 0 || hole < 0)
            break;
        for (number = (uint64_t)data / PAGE_SIZE;
             number < m->pages && number < (uint64_t)hole / PAGE_SIZE; number++) {
            if (!page_good(m, number) && bad++ == 0)
                error_set(err, "page %" PRIu64 " is damaged", number);
            digest += page_of(m, number)->check;
            ++*verified;
        }
    }
    if (!bad && digest != header_of(m)->digest) {
        error_set(err, "the pages are not all of one epoch (seq %" PRIu64 ")", m->regs.seq);
        bad = 1;
    }
    return bad;
}

uint64_t model_fnv1a(const uint8_t *data, size_t len)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325);

    for (size_t i = 0; i < len; i++)
        h = (h ^ data[i]) * UINT64_C(0x100000001b3);
    return h;
}

void model_encode(const struct model_regs *regs, uint8_t out[MODEL_STATE_LEN])
{
    const uint64_t fields[] = {regs->seq,    regs->random,   regs->cursor,
                               regs->frames, regs->requests, regs->last_request};
    struct wire_writer w = wire_writer(out, MODEL_STATE_LEN);

    wire_put_uint(&w, STATE_MAGIC, 4);
    wire_put_uint(&w, STATE_VERSION, 4);
    for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++)
        wire_put_uint(&w, fields[i], 8);
    wire_put_uint(&w, model_fnv1a(out, MODEL_STATE_LEN - 8), 8);
}

int model_decode(struct model_regs *regs, const uint8_t *data, size_t len, struct error *err)
{
    struct wire_reader r = wire_reader(data, len);
    uint32_t magic = wire_get_u32(&r), version = wire_get_u32(&r);

    regs->seq = wire_get_u64(&r);
    regs->random = wire_get_u64(&r);
    regs->cursor = wire_get_u64(&r);
    regs->frames = wire_get_u64(&r);
    regs->requests = wire_get_u64(&r);
    regs->last_request = wire_get_u64(&r);
    if (len != MODEL_STATE_LEN || magic != STATE_MAGIC)
        return error_set(err, "machine state (%zu octets) is not a fake guest's", len);
    if (version != STATE_VERSION)
        return error_set(err, "machine state has version %u, this build reads %u", version,
                         STATE_VERSION);
    if (wire_get_u64(&r) != model_fnv1a(data, len - 8) || !wire_reader_ok(&r))
        return error_set(err, "machine state is damaged");
    return 0;
}
