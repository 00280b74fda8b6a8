/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * remus-bench compress: replays a trace through every codec, each on the same pages in the same
 * order, one core.
 *
 * Each epoch's pages are copied to a staging buffer, encoded (timed), decoded (timed) against the
 * replica's memory, compared with what went in, and applied to the replica.  A codec's times are
 * the median of the rounds.
 *
 * Base pages are the replica's memory before the first epoch.  All caches are loaded with them in
 * the order of the file, by the codec's own encoder, untimed and uncounted: as the pre-copy of a
 * protection would. With --no-base all caches begin empty.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "bench/bench.h"
#include "bench/codec.h"
#include "bench/trace.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "compress/page-words.h"
#include "compress/pagecodec.h"

#define ROUNDS_MAX 99

const struct codec_ops *const codecs[] = {&codec_remusd, &codec_remusd_zstd, &codec_xbzrle,
                                          &codec_remus2011, &codec_lz4, &codec_xorlz4,
                                          &codec_remusd_avx2, &codec_remusd_sse2,
                                          &codec_remusd_plain};
#define CODECS (sizeof(codecs) / sizeof(*codecs))

struct replay {
    const struct trace *trace;
    struct codec_config config;
    bool base;
    size_t most; /* pages in an epoch */
    uint8_t *memory, *staging, *encoded, *decoded;
    uint64_t *pfns, *got;
    const uint8_t **pages;
};

struct result {
    uint64_t bytes, encode_ns[ROUNDS_MAX], decode_ns[ROUNDS_MAX];
};

/* Time on the processor: what other programs take of a shared machine does not count. */
static uint64_t cpu_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

size_t codec_bound(size_t n)
{
    return n * (PAGE_BYTES + 128) + (n / PAGE_BLOCK_MAX + 1) * 64;
}

static void *map(size_t len)
{
    void *p =
        mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

static size_t epoch_pages(const struct trace *t, size_t from)
{
    size_t n = from;

    while (n < t->changes && t->pages[n].epoch == t->pages[from].epoch)
        n++;
    return n - from;
}

/* Encodes and decodes one epoch's pages; 0, or -1 when the replica would not equal the guest. */
static int replay_pages(struct replay *r, const struct codec_ops *ops, void *state,
                        const struct trace_page *pages, size_t n, struct result *result, int round)
{
    uint64_t t0, t1, t2;
    size_t len;
    int rc;

    for (size_t i = 0; i < n; i++) {
        r->pfns[i] = pages[i].pfn;
        memcpy(r->staging + i * PAGE_BYTES, pages[i].data, PAGE_BYTES);
    }
    t0 = cpu_ns();
    len = ops->encode(state, r->pfns, r->pages, n, r->encoded);
    t1 = cpu_ns();
    rc = ops->decode(state, r->encoded, len, r->memory, r->got, r->decoded, n);
    t2 = cpu_ns();
    if (rc < 0 || memcmp(r->got, r->pfns, n * sizeof(*r->pfns)) != 0 ||
        memcmp(r->decoded, r->staging, n * PAGE_BYTES) != 0)
        return -1;
    for (size_t i = 0; i < n; i++)
        memcpy(r->memory + pages[i].pfn * PAGE_BYTES, r->decoded + i * PAGE_BYTES, PAGE_BYTES);
    if (result) {
        if (round == 0)
            result->bytes += len;
        result->encode_ns[round] += t1 - t0;
        result->decode_ns[round] += t2 - t1;
    }
    return 0;
}

static int replay_round(struct replay *r, const struct codec_ops *ops, struct result *result,
                        int round)
{
    const struct trace *t = r->trace;
    void *state = ops->create(ops, &r->config);
    int rc = 0;

    if (!state) {
        fprintf(stderr, "remus-bench compress: %s: not enough memory\n", ops->name);
        return -1;
    }
    madvise(r->memory, t->guest_pages * PAGE_BYTES, MADV_DONTNEED);
    for (size_t i = 0; rc == 0 && i < t->bases; i++) {
        memcpy(r->memory + t->base[i].pfn * PAGE_BYTES, t->base[i].data, PAGE_BYTES);
        if (r->base)
            rc = replay_pages(r, ops, state, &t->base[i], 1, NULL, 0);
    }
    for (size_t i = 0, n; rc == 0 && i < t->changes; i += n) {
        n = epoch_pages(t, i);
        rc = replay_pages(r, ops, state, &t->pages[i], n, result, round);
        if (rc < 0)
            fprintf(stderr, "remus-bench compress: %s: epoch %" PRIu32 " decodes to other pages\n",
                    ops->name, t->pages[i].epoch);
    }
    ops->destroy(state);
    return rc;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static double per_page(uint64_t *ns, int rounds, size_t pages)
{
    qsort(ns, (size_t)rounds, sizeof(*ns), by_value);
    return (double)ns[rounds / 2] / (double)pages;
}

static void print(const struct codec_ops *ops, struct result *result, const struct trace *t,
                  int rounds, bool json)
{
    double encode = per_page(result->encode_ns, rounds, t->changes);
    double decode = per_page(result->decode_ns, rounds, t->changes);
    double ratio = (double)t->changes * PAGE_BYTES / (double)result->bytes;

    if (json)
        printf("{\"codec\": \"%s\", \"pages\": %zu, \"bytes\": %" PRIu64
               ", \"encode_ns_per_page\": %.1f, \"decode_ns_per_page\": %.1f, \"ratio\": %.2f}\n",
               ops->name, t->changes, result->bytes, encode, decode, ratio);
    else
        printf("%-12s %9zu pages %12" PRIu64
               " bytes  ratio %6.2f  encode %7.1f ns  decode %7.1f ns\n",
               ops->name, t->changes, result->bytes, ratio, encode, decode);
}

/* `only`: names with commas between, or "all"; without it all but those for lesser processors. */
static bool wanted(const struct codec_ops *ops, const char *only)
{
    size_t len = strlen(ops->name);

    if (ops->vector && !page_words_named(ops->vector))
        return false;
    if (!only)
        return !ops->vector;
    if (strcmp(only, "all") == 0)
        return true;
    for (; only; only = strchr(only, ',')) {
        only += *only == ',';
        if (strncmp(only, ops->name, len) == 0 && (only[len] == ',' || !only[len]))
            return true;
    }
    return false;
}

static int replay_all(const struct trace *t, const char *only, uint64_t cache_bytes, bool base,
                      int rounds, bool json)
{
    static struct result results[CODECS];
    struct replay r = {.trace = t, .config = {t->guest_pages, cache_bytes}, .base = base};
    int rc = -1;

    for (size_t i = 0, n; i < t->changes; i += n) {
        n = epoch_pages(t, i);
        if (n > r.most)
            r.most = n;
    }
    r.memory = map(t->guest_pages * PAGE_BYTES);
    r.staging = map(r.most * PAGE_BYTES);
    r.encoded = map(codec_bound(r.most));
    r.decoded = map(r.most * PAGE_BYTES);
    r.pfns = calloc(r.most, sizeof(*r.pfns));
    r.got = calloc(r.most, sizeof(*r.got));
    r.pages = calloc(r.most, sizeof(*r.pages));
    if (!r.memory || !r.staging || !r.encoded || !r.decoded || !r.pfns || !r.got || !r.pages) {
        fprintf(stderr, "remus-bench compress: not enough memory: %s\n", strerror(errno));
        goto out;
    }
    for (size_t i = 0; i < r.most; i++)
        r.pages[i] = r.staging + i * PAGE_BYTES;
    rc = 0;
    for (int round = 0; rc == 0 && round < rounds; round++)
        for (size_t c = 0; rc == 0 && c < CODECS; c++)
            if (wanted(codecs[c], only))
                rc = replay_round(&r, codecs[c], &results[c], round);
    for (size_t c = 0; rc == 0 && c < CODECS; c++)
        if (results[c].bytes)
            print(codecs[c], &results[c], t, rounds, json);
out:
    free(r.pfns);
    free(r.got);
    free(r.pages);
    return rc;
}

int bench_compress(int argc, char **argv)
{
    static const struct option options[] = {
        {"trace", required_argument, NULL, 't'},  {"json", no_argument, NULL, 'j'},
        {"cache", required_argument, NULL, 'c'},  {"rounds", required_argument, NULL, 'r'},
        {"codec", required_argument, NULL, 'o'},  {"no-base", no_argument, NULL, 'n'},
        {"random", required_argument, NULL, 'a'}, {0}};
    const char *path = NULL, *only = NULL;
    bool json = false, base = true;
    uint64_t cache_mib = 32;
    size_t random = 0;
    struct trace trace;
    struct error err;
    int c, rounds = 5, rc;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
        switch (c) {
        case 't':
            path = optarg;
            break;
        case 'j':
            json = true;
            break;
        case 'c':
            cache_mib = strtoull(optarg, NULL, 10);
            break;
        case 'r':
            rounds = atoi(optarg);
            break;
        case 'o':
            only = optarg;
            break;
        case 'a':
            random = strtoull(optarg, NULL, 10);
            break;
        case 'n':
            base = false;
            break;
        default:
            return 2;
        }
    if (!path == !random || random > 1 << 24 || optind != argc || rounds < 1 ||
        rounds > ROUNDS_MAX || cache_mib < 1 || cache_mib > 1 << 20) {
        fprintf(stderr,
                "usage: %s (--trace FILE | --random PAGES) [--json] [--cache MIB] [--rounds N] "
                "[--codec NAME[,NAME...]|all] [--no-base]\n",
                argv[0]);
        return 2;
    }
    if ((path ? trace_open(&trace, path, &err) : trace_random(&trace, random, &err)) < 0) {
        fprintf(stderr, "%s: %s\n", argv[0], err.text);
        return 1;
    }
    rc = replay_all(&trace, only, cache_mib << 20, base, rounds, json);
    trace_close(&trace);
    return rc == 0 ? 0 : 1;
}
