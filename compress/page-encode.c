/* SPDX-License-Identifier: GPL-2.0-or-later */
#define ZSTD_STATIC_LINKING_ONLY /* ZSTD_initStaticCCtx: a context that never allocates */
#include <errno.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#include "compress/page-block.h"
#include "compress/page-cache.h"
#include "compress/page-moves.h"

/* With more changed words than this it is worth looking for what moved. */
#define MOVES_WORDS 40
/* ... which is known after so many lines of a page that changed all over. */
#define STEP_LINES 16
/* With more changed lines than this what moved are lines, with fewer it is a row. */
#define MOVED_LINES 12
/* With fewer known words than this a page goes without them. */
#define KNOWN_WORDS 96
/* At most this share of the memory is for fingerprints; a page's take a tenth of its copy. */
#define PRINTS_SHARE(bytes) ((bytes) / 5 * 2)
#define PRINTS_BYTES (sizeof(struct page_prints) + 36) /* with the cache's overhead */
/* One of so many lines tells whether a page is new. */
#define NEW_LINES 16
/* A page with more bytes left than this is tried the other way too, */
#define RETRY_BYTES 2048
/* ... and with more than this where the pages before repeat themselves. */
#define RETRY_ALIKE_BYTES 1024
/* 2 would save 3 % of the time and cost 1.5 % of the bytes. */
#define LZ4_ACCELERATION 1
/* A page of which more is left goes as it is: masks would only be in the way. */
#define RAW_BYTES 3584
/* Of as many lines of a page that looks random something must be left for it to be a delta. */
#define SAME_LINES 8

#define HEAD_BYTES (PAGE_BLOCK_MAX * PAGE_HEAD_MAX)

/*
 * One block under way, and all the memory that it needs.  The sections of the stream are filled
 * apart; the data comes last, so that the others can be put together right before it.
 */
struct page_worker {
    const uint64_t *pfns;
    const uint8_t *const *pages;
    size_t n;
    uint64_t next_pfn;
    uint32_t generation, sequence;
    enum page_codec codec;
    const uint8_t *raw[PAGE_BLOCK_MAX];
    uint8_t *copies[PAGE_BLOCK_MAX]; /* in the cache, or NULL */
    bool found[PAGE_BLOCK_MAX];      /* whether that holds the page as shipped last */
    /*
     * Where the fingerprints go of a page that was not found, and of what its copy held before; or
     * NULL.  The first holds those of the page as shipped last when it is known.
     */
    struct page_prints *prints[PAGE_BLOCK_MAX], *left[PAGE_BLOCK_MAX];
    bool known[PAGE_BLOCK_MAX];
    const uint8_t *next; /* the copy of the page behind the one under way, or NULL */

    struct page_stats stats;
    void *lz4, *zstd_memory;
    ZSTD_CCtx *zstd;
    struct page_moves moves;
    uint8_t predicted[PAGE_BYTES];
    uint8_t partial[PAGE_BYTES]; /* an old page, as far as it is known */
    uint8_t before[PAGE_BYTES]; /* the old copy of the page before, */
    uint64_t before_pfn;        /* which is this one; UINT64_MAX: none */
    uint64_t new_pfn;           /* the last page with nothing of what was there before, as above */

    uint8_t entries[PAGE_BLOCK_MAX * PAGE_ENTRY_MAX];
    uint8_t extra[PAGE_BLOCK_MAX * PAGE_EXTRA_MAX];
    uint8_t lines[PAGE_BLOCK_MAX * 8];
    /* Room for one page more: a page may be taken twice, and the better is kept. */
    uint8_t words[(PAGE_BLOCK_MAX + 1) * PAGE_LINES + PAGE_WORDS_SLACK];
    uint8_t bytes[(PAGE_BLOCK_MAX + 1) * PAGE_WORDS + PAGE_WORDS_SLACK];
    uint8_t stream[HEAD_BYTES + (PAGE_BLOCK_MAX + 1) * PAGE_BYTES + PAGE_WORDS_SLACK];
};

struct page_encoder {
    uint64_t guest_pages;
    enum page_codec codec;
    uint32_t generation, sequence;
    uint64_t next_pfn; /* the lowest that may follow in this checkpoint */
    struct page_cache *cache, *prints;
    uint64_t key[PAGE_KEY_WORDS]; /* of the fingerprints */
    const struct page_words_ops *words;
    unsigned threads;
    struct page_worker **workers;
    struct page_stats stats; /* the workers' sum, when it was last asked for */
};

/* Where the next byte of each section goes. */
struct sections {
    uint8_t *entry, *extra, *line;
    struct page_parts parts;
    unsigned stride; /* of the last page that was predicted from itself */
};

uint64_t page_cache_default(uint64_t guest_pages)
{
    const uint64_t mib = 1 << 20;
    uint64_t bytes = guest_pages / 10 * PAGE_BYTES;

    return bytes < 32 * mib ? 32 * mib : bytes > 256 * mib ? 256 * mib : bytes;
}

/* zstd's level 1; a block needs no window beyond its own size. */
static ZSTD_compressionParameters zstd_params(void)
{
    ZSTD_compressionParameters params = ZSTD_getCParams(1, 1 << 18, 0);

    params.windowLog = 18;
    return params;
}

static size_t zstd_bytes(void)
{
    return ZSTD_estimateCCtxSize_usingCParams(zstd_params());
}

static void worker_free(struct page_worker *w)
{
    if (!w)
        return;
    free(w->lz4);
    free(w->zstd_memory);
    free(w);
}

static struct page_worker *worker_new(void)
{
    struct page_worker *w = calloc(1, sizeof(*w));

    if (!w)
        return NULL;
    w->lz4 = malloc((size_t)LZ4_sizeofState());
    w->zstd_memory = malloc(zstd_bytes());
    if (!w->lz4 || !w->zstd_memory) {
        worker_free(w);
        return NULL;
    }
    w->zstd = ZSTD_initStaticCCtx(w->zstd_memory, zstd_bytes());
    ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_compressionLevel, 1);
    ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_windowLog, (int)zstd_params().windowLog);
    ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_hashLog, (int)zstd_params().hashLog);
    ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_chainLog, (int)zstd_params().chainLog);
    return w;
}

/* Can fail only the first time. */
static int new_key(struct page_encoder *enc)
{
    return getentropy(enc->key, sizeof(enc->key));
}

/* Fingerprints for all pages, as far as their share goes; copies for the rest of the memory. */
static int caches_new(struct page_encoder *enc, uint64_t bytes)
{
    uint64_t copies = bytes / PAGE_BYTES, prints = 1; /* never used where all pages have a copy */

    if (copies < enc->guest_pages) {
        prints = PRINTS_SHARE(bytes) / PRINTS_BYTES;
        if (prints > enc->guest_pages)
            prints = enc->guest_pages;
        copies -= prints * PRINTS_BYTES / PAGE_BYTES;
    }
    enc->prints = page_cache_new((uint32_t)prints, sizeof(struct page_prints));
    enc->cache = page_cache_new((uint32_t)copies, PAGE_BYTES);
    return enc->prints && enc->cache ? 0 : -1;
}

struct page_encoder *page_encoder_new(const struct page_encoder_config *config)
{
    uint64_t bytes =
        config->cache_bytes ? config->cache_bytes : page_cache_default(config->guest_pages);
    unsigned threads = config->threads ? config->threads : 1;
    struct page_encoder *enc;

    if (bytes / PAGE_BYTES > config->guest_pages)
        bytes = config->guest_pages * PAGE_BYTES;
    if (bytes < PAGE_BYTES || bytes / PAGE_BYTES > UINT32_MAX / 4 || threads > PAGE_THREADS_MAX) {
        errno = EINVAL;
        return NULL;
    }
    enc = calloc(1, sizeof(*enc));
    if (!enc)
        return NULL;
    enc->guest_pages = config->guest_pages;
    enc->words = page_words_named(NULL);
    enc->workers = calloc(threads, sizeof(*enc->workers));
    if (!enc->workers || caches_new(enc, bytes) < 0)
        goto fail;
    if (new_key(enc) < 0) {
        page_encoder_free(enc);
        return NULL;
    }
    for (enc->threads = 0; enc->threads < threads; enc->threads++) {
        enc->workers[enc->threads] = worker_new();
        if (!enc->workers[enc->threads])
            goto fail;
    }
    page_encoder_set_codec(enc, config->codec);
    page_encoder_begin(enc);
    return enc;
fail:
    page_encoder_free(enc);
    errno = ENOMEM;
    return NULL;
}

void page_encoder_free(struct page_encoder *enc)
{
    if (!enc)
        return;
    for (unsigned i = 0; i < enc->threads; i++)
        worker_free(enc->workers[i]);
    free(enc->workers);
    page_cache_free(enc->cache);
    page_cache_free(enc->prints);
    free(enc);
}

void page_encoder_reset(struct page_encoder *enc)
{
    page_cache_clear(enc->cache);
    page_cache_clear(enc->prints);
    new_key(enc);
    enc->generation++;
    enc->sequence = 0;
    page_encoder_begin(enc);
}

void page_encoder_forget(struct page_encoder *enc, uint64_t pfn)
{
    page_cache_forget(enc->cache, pfn);
    page_cache_forget(enc->prints, pfn);
}

void page_encoder_set_codec(struct page_encoder *enc, enum page_codec codec)
{
    enc->codec = codec;
}

int page_encoder_set_vector(struct page_encoder *enc, const char *name)
{
    const struct page_words_ops *words = page_words_named(name);

    if (!words) {
        errno = EINVAL;
        return -1;
    }
    enc->words = words;
    return 0;
}

void page_encoder_begin(struct page_encoder *enc)
{
    page_cache_begin(enc->cache);
    page_cache_begin(enc->prints);
    enc->next_pfn = 0;
}

const struct page_stats *page_encoder_stats(struct page_encoder *enc)
{
    struct page_stats *stats = &enc->stats;

    memset(stats, 0, sizeof(*stats));
    for (unsigned i = 0; i < enc->threads; i++) {
        const struct page_stats *one = &enc->workers[i]->stats;

        for (int k = 0; k < PAGE_KINDS; k++)
            stats->pages[k] += one->pages[k];
        stats->blocks += one->blocks;
        stats->bytes_in += one->bytes_in;
        stats->bytes_out += one->bytes_out;
        stats->lookups += one->lookups;
        stats->hits += one->hits;
    }
    return stats;
}

size_t page_encoder_memory(const struct page_encoder *enc)
{
    return sizeof(*enc) + page_cache_memory(enc->cache) + page_cache_memory(enc->prints) +
           enc->threads * (sizeof(struct page_worker *) + sizeof(struct page_worker) +
                           (size_t)LZ4_sizeofState() + zstd_bytes());
}

size_t page_block_bound(size_t n)
{
    return sizeof(struct page_block_header) + n * (PAGE_HEAD_MAX + PAGE_BYTES);
}

static bool pfns_valid(const struct page_encoder *enc, const uint64_t *pfns, size_t n)
{
    uint64_t next = enc->next_pfn;

    for (size_t i = 0; i < n; i++) {
        if (pfns[i] < next || pfns[i] >= enc->guest_pages)
            return false;
        next = pfns[i] + 1;
    }
    return true;
}

/*
 * Looks up what is known of a page, and where to remember it.  Its fingerprints stay what the
 * replica has, also while it has a copy, until it changes; so they are made once more only when it
 * did and the copy has to make room.  Before the first copy had to make room there are none.
 */
static void plan_page(struct page_encoder *enc, struct page_worker *w, size_t i)
{
    bool found, roomy = !page_cache_full(enc->cache);
    uint64_t recycled;

    w->copies[i] = page_cache_get(enc->cache, w->pfns[i], &w->found[i], &recycled);
    w->prints[i] = w->left[i] = NULL;
    w->known[i] = false;
    if (w->found[i] || (roomy && w->copies[i]))
        return;
    w->prints[i] = (void *)page_cache_get(enc->prints, w->pfns[i], &w->known[i], NULL);
    if (recycled != UINT64_MAX)
        w->left[i] = (void *)page_cache_get(enc->prints, recycled, &found, NULL);
}

int page_plan(struct page_encoder *enc, unsigned thread, const uint64_t *pfns,
              const uint8_t *const *pages, size_t n)
{
    struct page_worker *w;

    if (thread >= enc->threads || n == 0 || n > PAGE_BLOCK_MAX || !pfns_valid(enc, pfns, n)) {
        errno = EINVAL;
        return -1;
    }
    w = enc->workers[thread];
    w->pfns = pfns;
    w->pages = pages;
    w->n = n;
    w->next_pfn = enc->next_pfn;
    w->generation = enc->generation;
    w->sequence = enc->sequence++;
    w->codec = enc->codec;
    page_cache_expect(enc->cache, pfns, n);
    if (page_cache_full(enc->cache))
        page_cache_expect(enc->prints, pfns, n);
    for (size_t i = 0; i < n; i++)
        plan_page(enc, w, i);
    enc->next_pfn = pfns[n - 1] + 1;
    return 0;
}

static uint8_t *put_entry(uint8_t *p, enum page_kind kind, uint64_t gap)
{
    if (gap < PAGE_GAP_LONG) {
        *p++ = (uint8_t)(gap << 4 | kind);
        return p;
    }
    *p++ = (uint8_t)(PAGE_GAP_LONG << 4 | kind);
    for (gap -= PAGE_GAP_LONG; gap >= 0x80; gap >>= 7)
        *p++ = (uint8_t)(gap | 0x80);
    *p++ = (uint8_t)gap;
    return p;
}

/* A page against itself, `stride` words before; against zeros when stride is 0. */
static uint64_t take_self(const struct page_words_ops *ops, const uint8_t *page, unsigned stride,
                           struct page_parts *parts)
{
    static const uint8_t zeros[PAGE_BYTES];
    uint8_t begin[2 * PAGE_LEAD_BYTES], *lead = begin + PAGE_LEAD_BYTES;
    uint64_t lines;

    if (stride == 0)
        return ops->take(page, zeros, 0, PAGE_LINES, false, parts);
    memset(begin, 0, PAGE_LEAD_BYTES);
    memcpy(lead, page, PAGE_LEAD_BYTES);
    lines = ops->take(lead, lead - 8 * stride, 0, PAGE_LEAD_LINES, true, parts);
    return lines | ops->take(page, page - 8 * stride, PAGE_LEAD_LINES, PAGE_LINES, true, parts);
}

/* How much the parts grew. */
static size_t grown(const struct page_parts *from, const struct page_parts *to)
{
    return (size_t)(to->words - from->words) + (size_t)(to->bytes - from->bytes) +
           (size_t)(to->data - from->data);
}

/* Moves what was taken from `from` to `to` back to `start`. */
static void replace(const struct page_parts *start, const struct page_parts *from,
                    struct page_parts *to)
{
    memmove(start->words, from->words, (size_t)(to->words - from->words));
    memmove(start->bytes, from->bytes, (size_t)(to->bytes - from->bytes));
    memmove(start->data, from->data, (size_t)(to->data - from->data));
    to->words -= from->words - start->words;
    to->bytes -= from->bytes - start->bytes;
    to->data -= from->data - start->data;
}

/* How many values of a line are new. */
static unsigned new_values(uint8_t *seen, const uint8_t *line)
{
    unsigned count = 0;

    for (int i = 0; i < PAGE_LINE_BYTES; i++) {
        count += !seen[line[i]];
        seen[line[i]] = 1;
    }
    return count;
}

/*
 * Is this encrypted or compressed already?  64 random bytes have 57 different values, 256 have 162;
 * anything with a structure has far fewer.
 */
static bool looks_random(const uint8_t *page)
{
    uint8_t seen[256] = {0};
    unsigned count = new_values(seen, page + 5 * PAGE_LINE_BYTES);

    if (count <= 48)
        return false;
    count += new_values(seen, page + 23 * PAGE_LINE_BYTES);
    count += new_values(seen, page + 42 * PAGE_LINE_BYTES);
    count += new_values(seen, page + 60 * PAGE_LINE_BYTES);
    return count > 140;
}

/* Is there so little left of the copy that a page that looks random goes as it is?  A byte of each line tells. */
static bool rewritten(const uint8_t *page, const uint8_t *copy)
{
    unsigned same = 0;

    for (int i = 0; i < PAGE_LINES; i++)
        same += page[i * (PAGE_LINE_BYTES + 1)] == copy[i * (PAGE_LINE_BYTES + 1)];
    return same < SAME_LINES;
}

/* The page as it is, to be coded with the rest of the stream. */
static enum page_kind put_whole(const uint8_t *page, struct sections *s,
                                const struct page_parts *start)
{
    s->parts = *start;
    memcpy(s->parts.data, page, PAGE_BYTES);
    s->parts.data += PAGE_BYTES;
    return PAGE_WHOLE;
}

static enum page_kind encode_alone(const struct page_encoder *enc, const uint8_t *page,
                                   struct sections *s)
{
    struct page_parts start = s->parts;
    unsigned stride = enc->words->stride(page, s->stride);
    uint64_t lines;

    if (stride == 0 && looks_random(page))
        return PAGE_RAW;
    lines = take_self(enc->words, page, stride, &s->parts);
    if (lines == 0)
        return PAGE_ZERO;
    if (s->parts.data - start.data > RAW_BYTES)
        return put_whole(page, s, &start);
    *s->extra++ = (uint8_t)stride;
    s->stride = stride;
    page_put64(s->line, lines);
    s->line += 8;
    return PAGE_SELF;
}

/* Makes w->predicted. Bits of `known`: the lines of old[1] that are what the replica has. */
static void predict(struct page_worker *w, const uint8_t *page, const uint8_t *const old[3],
                    uint64_t known)
{
    const struct page_moves *moves = &w->moves;

    for (unsigned k = 0; k < moves->count; k++) {
        const struct page_move *m = &moves->move[k];
        unsigned end = k + 1 < moves->count ? moves->move[k + 1].to : PAGE_WORDS;
        unsigned which = m->from / PAGE_HALVES, half = m->from % PAGE_HALVES;

        memcpy(w->predicted + 8 * m->to, old[which] + 4 * half, 8 * (end - m->to));
        if (known == UINT64_MAX || which != 1 || half == 2 * m->to)
            continue;
        for (unsigned i = m->to; i < end; i++, half += 2)
            if (!(known >> half / 16 & known >> (half + 1) / 16 & 1))
                page_moves_unknown(w->predicted, page, i, i + 1);
    }
}

/* The page as w->moves and w->predicted say, or alone when that is shorter. */
static enum page_kind put_moved(const struct page_encoder *enc, struct page_worker *w,
                                const uint8_t *page, struct sections *s)
{
    struct page_parts start = s->parts;
    uint64_t lines = enc->words->take(page, w->predicted, 0, PAGE_LINES, false, &s->parts);

    if (grown(&start, &s->parts) > (s->stride ? RETRY_ALIKE_BYTES : RETRY_BYTES)) {
        struct sections other = *s;
        enum page_kind kind = encode_alone(enc, page, &other);
        size_t alone = kind == PAGE_RAW ? RAW_BYTES : grown(&s->parts, &other.parts);

        if (alone < grown(&start, &s->parts)) {
            replace(&start, &s->parts, &other.parts);
            *s = other;
            return kind;
        }
        if (s->parts.data - start.data > RAW_BYTES)
            return put_whole(page, s, &start);
    }
    page_put64(s->line, lines);
    s->line += 8;
    if (w->moves.count == 1 && w->moves.move[0].from == PAGE_HALVES)
        return PAGE_DELTA;
    *s->extra++ = (uint8_t)w->moves.count;
    for (unsigned k = 0; k < w->moves.count; k++, s->extra += PAGE_MOVE_BYTES)
        page_put32(s->extra, (uint32_t)w->moves.move[k].to << 16 | w->moves.move[k].from);
    return PAGE_MOVED;
}

/* Looks for what moved within `mine`, of which the lines in `known` are the replica's. */
static enum page_kind encode_moved(const struct page_encoder *enc, struct page_worker *w, size_t i,
                                   const uint8_t *mine, uint64_t known, struct sections *s)
{
    const uint8_t *page = w->pages[i], *old[3] = {NULL, mine, NULL};
    uint8_t changed[PAGE_LINES];

    if (w->before_pfn + 1 == w->pfns[i] && w->before_pfn != UINT64_MAX)
        old[0] = w->before;
    if (i + 1 < w->n && w->pfns[i + 1] == w->pfns[i] + 1 && w->found[i + 1])
        old[2] = w->copies[i + 1];
    enc->words->differ(page, mine, changed);
    page_moves_find(&w->moves, page, old, changed);
    predict(w, page, old, known);
    return put_moved(enc, w, page, s);
}

/* A page of which the fingerprints `old` tell which of its lines the replica has. */
static enum page_kind encode_printed(const struct page_encoder *enc, struct page_worker *w,
                                     size_t i, const struct page_prints *old, struct sections *s)
{
    const struct page_prints *now = w->prints[i];
    const uint8_t *page = w->pages[i];
    uint64_t differ = 0;

    for (int l = 0; l < PAGE_LINES; l++)
        differ |= (uint64_t)(now->high[l] != old->high[l] || now->low[l] != old->low[l]) << l;
    if (differ == 0)
        return PAGE_UNCHANGED;
    if (__builtin_popcountll(differ) > MOVED_LINES) {
        unsigned words = page_moves_find_lines(&w->moves, enc->words, enc->key, page, differ, old,
                                               w->predicted);

        if (words == 0)
            w->new_pfn = w->pfns[i];
        if (words < KNOWN_WORDS)
            return encode_alone(enc, page, s);
        return put_moved(enc, w, page, s);
    }
    enc->words->copy(w->partial, page);
    for (uint64_t d = differ; d; d &= d - 1) {
        unsigned word = 8 * (unsigned)__builtin_ctzll(d);

        page_moves_unknown(w->partial, page, word, word + 8);
    }
    return encode_moved(enc, w, i, w->partial, ~differ, s);
}

/*
 * The caches are larger than the processor's: what the next page needs comes in while this one is
 * worked on.  A copy comes in four parts, each while something else is done: of all 64 lines asked
 * for at once the processor forgets some.
 */
static void prefetch(const uint8_t *copy, int line)
{
    for (int i = line; copy && i < line + STEP_LINES; i++)
        __builtin_prefetch(copy + i * PAGE_LINE_BYTES, 1);
}

static void prefetch_prints(const struct page_prints *prints)
{
    for (size_t at = 0; prints && at < sizeof(*prints); at += PAGE_LINE_BYTES)
        __builtin_prefetch((const uint8_t *)prints + at, 1);
}

static void prefetch_next(struct page_worker *w, size_t i)
{
    w->next = i < w->n ? w->copies[i] : NULL;
    if (i == w->n)
        return;
    prefetch_prints(w->prints[i]);
    prefetch_prints(w->left[i]);
}

static void make_prints(const struct page_encoder *enc, const uint8_t *page,
                        struct page_prints *prints)
{
    enc->words->prints(page, 0, PAGE_LINES, enc->key, prints);
    prints->absent = false;
}

/* In two parts: for the whole, compilers take a block copy that is slow to begin. */
static void copy_prints(struct page_prints *to, const struct page_prints *from)
{
    memcpy(to->high, from->high, sizeof(to->high));
    memcpy(to->low, from->low, sizeof(to->low));
}

/*
 * A log that goes through its pages once more, a file read into them: behind a page with nothing of
 * what was there before is another.  Then some lines are enough to see it, and its fingerprints,
 * which nobody would find again, are left out.
 */
static bool is_new(const struct page_encoder *enc, struct page_worker *w, size_t i)
{
    const struct page_prints *old = w->prints[i];
    struct page_prints now;

    if (!w->known[i] || w->new_pfn == UINT64_MAX || w->new_pfn + 1 != w->pfns[i])
        return false;
    for (int l = NEW_LINES / 2; !old->absent && l < PAGE_LINES; l += NEW_LINES) {
        enc->words->prints(w->pages[i], l, l + 1, enc->key, &now);
        if (now.high[l] == old->high[l])
            return false;
    }
    return true;
}

/* A page of which the cache holds no copy; makes it hold one. */
static enum page_kind encode_cold(const struct page_encoder *enc, struct page_worker *w, size_t i,
                                  struct sections *s)
{
    struct page_prints *prints = w->prints[i], old;
    bool known = w->known[i] && !prints->absent, new = is_new(enc, w, i);
    const uint8_t *page = w->pages[i];
    enum page_kind kind;

    w->stats.hits += known;
    if (new) {
        prints->absent = true;
        w->new_pfn = w->pfns[i];
    } else if (known) {
        copy_prints(&old, prints);
    }
    prefetch(w->next, 0);
    if (w->left[i])
        make_prints(enc, w->copies[i], w->left[i]);
    prefetch(w->next, STEP_LINES);
    if (prints && !new)
        make_prints(enc, page, prints);
    prefetch(w->next, 2 * STEP_LINES);
    kind = known && !new ? encode_printed(enc, w, i, &old, s) : encode_alone(enc, page, s);
    prefetch(w->next, 3 * STEP_LINES);
    if (w->copies[i])
        enc->words->copy(w->copies[i], page);
    return kind;
}

/* A page of which the cache holds the old copy; makes the copy equal to the page. */
static enum page_kind encode_known(const struct page_encoder *enc, struct page_worker *w, size_t i,
                                   struct sections *s)
{
    const uint8_t *page = w->pages[i];
    uint8_t *copy = w->copies[i];
    struct page_parts start = s->parts;
    uint64_t lines = 0;
    enum page_kind kind;
    int at;

    for (at = 0; at < PAGE_LINES && s->parts.bytes - start.bytes <= MOVES_WORDS;
         at += STEP_LINES) {
        prefetch(w->next, at);
        lines |= enc->words->take(page, copy, at, at + STEP_LINES, false, &s->parts);
    }
    if (lines == 0)
        return PAGE_UNCHANGED;
    if (s->parts.bytes - start.bytes > MOVES_WORDS) {
        for (; at < PAGE_LINES; at += STEP_LINES)
            prefetch(w->next, at);
        s->parts = start;
        kind = looks_random(page) && rewritten(page, copy)
                   ? PAGE_RAW
                   : encode_moved(enc, w, i, copy, UINT64_MAX, s);
        if (i + 1 < w->n && w->pfns[i + 1] == w->pfns[i] + 1) {
            memcpy(w->before, copy, PAGE_BYTES);
            w->before_pfn = w->pfns[i];
        }
        enc->words->copy(copy, page);
        return kind;
    }
    page_put64(s->line, lines);
    s->line += 8;
    for (; lines; lines &= lines - 1) {
        size_t line = (size_t)__builtin_ctzll(lines) * PAGE_LINE_BYTES;

        memcpy(copy + line, page + line, PAGE_LINE_BYTES);
    }
    return PAGE_DELTA;
}

/* Codes the stream into out; how many bytes, or 0 when it would not get smaller. */
static size_t code_stream(struct page_worker *w, const uint8_t *stream, size_t len, uint8_t *out,
                          enum page_coding *coding)
{
    size_t got = 0;

    if (w->codec == PAGE_CODEC_LZ4) {
        *coding = PAGE_CODING_LZ4;
        got = (size_t)LZ4_compress_fast_extState(w->lz4, (const char *)stream, (char *)out,
                                                 (int)len, (int)len - 1, LZ4_ACCELERATION);
    } else if (w->codec == PAGE_CODEC_ZSTD) {
        *coding = PAGE_CODING_ZSTD;
        got = ZSTD_compress2(w->zstd, out, len - 1, stream, len);
        if (ZSTD_isError(got))
            got = 0;
    }
    return got;
}

static uint8_t *prepend(uint8_t *at, const uint8_t *section, const uint8_t *end)
{
    at -= end - section;
    memcpy(at, section, (size_t)(end - section));
    return at;
}

ssize_t page_encode_planned(struct page_encoder *enc, unsigned thread, uint8_t *out, size_t cap)
{
    struct page_worker *w = enc->workers[thread];
    struct page_block_header *header = (struct page_block_header *)out;
    struct sections s = {
        w->entries, w->extra, w->lines, {w->words, w->bytes, w->stream + HEAD_BYTES}, 0};
    enum page_coding coding = PAGE_CODING_STORED;
    uint64_t next = w->next_pfn;
    uint8_t *stream, *end;
    size_t len, coded, raws = 0;

    if (cap < page_block_bound(w->n)) {
        errno = EINVAL;
        return -1;
    }
    w->before_pfn = w->new_pfn = UINT64_MAX;
    for (size_t i = 0; i < w->n; i++) {
        enum page_kind kind;

        prefetch_next(w, i + 1);
        w->stats.hits += w->found[i];
        kind = w->found[i] ? encode_known(enc, w, i, &s) : encode_cold(enc, w, i, &s);
        if (kind == PAGE_RAW)
            w->raw[raws++] = w->pages[i];
        s.entry = put_entry(s.entry, kind, w->pfns[i] - next);
        next = w->pfns[i] + 1;
        w->stats.pages[kind]++;
    }
    stream = prepend(w->stream + HEAD_BYTES, w->bytes, s.parts.bytes);
    stream = prepend(stream, w->words, s.parts.words);
    stream = prepend(stream, w->lines, s.line);
    stream = prepend(stream, w->extra, s.extra);
    stream = prepend(stream, w->entries, s.entry);
    len = (size_t)(s.parts.data - stream);

    coded = code_stream(w, stream, len, out + sizeof(*header), &coding);
    if (coded == 0) {
        coding = PAGE_CODING_STORED;
        coded = len;
        memcpy(out + sizeof(*header), stream, len);
    }
    header->version = PAGE_BLOCK_VERSION;
    header->coding = (uint8_t)coding;
    header->pages[0] = (uint8_t)(w->n >> 8);
    header->pages[1] = (uint8_t)w->n;
    page_put32(header->generation, w->generation);
    page_put32(header->sequence, w->sequence);
    page_put32(header->plain, (uint32_t)len);
    page_put32(header->coded, (uint32_t)coded);
    end = out + sizeof(*header) + coded;
    for (size_t i = 0; i < raws; i++, end += PAGE_BYTES)
        memcpy(end, w->raw[i], PAGE_BYTES);
    w->stats.blocks++;
    w->stats.lookups += w->n;
    w->stats.bytes_in += w->n * PAGE_BYTES;
    w->stats.bytes_out += (size_t)(end - out);
    return end - out;
}

ssize_t page_encode(struct page_encoder *enc, const uint64_t *pfns, const uint8_t *const *pages,
                    size_t n, uint8_t *out, size_t cap)
{
    if (n > PAGE_BLOCK_MAX || cap < page_block_bound(n)) {
        errno = EINVAL;
        return -1;
    }
    if (page_plan(enc, 0, pfns, pages, n) < 0)
        return -1;
    return page_encode_planned(enc, 0, out, cap);
}
