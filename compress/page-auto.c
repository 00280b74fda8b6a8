/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <string.h>

#include "compress/page-auto.h"

/*
 * The other must be better by this much, for so many checkpoints in a row (half a second at 25
 * ms).
 */
#define GAIN 1.15
#define LASTING 20
/* zstd against LZ4 on the same pages: PostgreSQL traces, pgbench and TPC-C-like. */
#define ZSTD_BYTES 0.72
#define ZSTD_NS 1.6

void page_auto_init(struct page_auto *a)
{
    memset(a, 0, sizeof(*a));
    a->codec = PAGE_CODEC_LZ4;
}

static void smooth(double *mean, double value)
{
    *mean = *mean == 0 ? value : *mean + (value - *mean) / 8;
}

/* How long a page takes: encoding and sending go on side by side. */
static double page_time(double bytes, double ns, const struct page_auto_sample *s)
{
    double encode = ns / s->cpu_share, send = bytes * 1e9 / (double)s->link_bps;

    return encode > send ? encode : send;
}

enum page_codec page_auto_choose(struct page_auto *a, const struct page_auto_sample *s)
{
    bool lz4 = a->codec == PAGE_CODEC_LZ4;
    double bytes = lz4 ? ZSTD_BYTES : 1 / ZSTD_BYTES, ns = lz4 ? ZSTD_NS : 1 / ZSTD_NS;

    if (s->pages == 0 || s->link_bps == 0 || s->cpu_share <= 0)
        return a->codec;
    smooth(&a->bytes, (double)s->bytes_out / (double)s->pages);
    smooth(&a->ns, (double)s->encode_ns / (double)s->pages);
    if (page_time(a->bytes, a->ns, s) <= GAIN * page_time(a->bytes * bytes, a->ns * ns, s)) {
        a->better = 0;
    } else if (++a->better == LASTING) {
        a->better = 0;
        a->bytes *= bytes;
        a->ns *= ns;
        a->codec = lz4 ? PAGE_CODEC_ZSTD : PAGE_CODEC_LZ4;
    }
    return a->codec;
}
