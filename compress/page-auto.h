/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * compression = auto: which codec ships a checkpoint soonest.
 *
 * The ship stage encodes and sends at the same time, so a checkpoint takes about as long as the
 * slower of the two. zstd's blocks are smaller and cost more time: it pays where the link is what
 * is waited for.  The choice compares what the caller measured with what the other codec would make
 * of it, and changes only for a clear gain that lasts: codecs that alternate would cost more than
 * either.
 *
 * Pure: the caller measures, passes the figures of each checkpoint, and hands the answer to
 * page_encoder_set_codec().
 */
#ifndef REMUS_PAGE_AUTO_H
#define REMUS_PAGE_AUTO_H

#include <stdbool.h>
#include <stdint.h>

#include "compress/pagecodec.h"

/* One checkpoint as it was shipped with the codec that was answered last. */
struct page_auto_sample {
    uint64_t pages;
    uint64_t bytes_out;   /* of the encoder */
    uint64_t encode_ns;   /* processor time of encoding, over all threads */
    uint64_t link_bps;    /* bytes a second that the link carries; 0: not known */
    double cpu_share;     /* of one processor that encoding may have: 0.25 means each ns costs 4 */
};

struct page_auto {
    enum page_codec codec;
    double bytes, ns; /* a page, smoothed */
    unsigned better;  /* checkpoints in a row for which the other was better */
};

void page_auto_init(struct page_auto *a); /* begins with LZ4 */
enum page_codec page_auto_choose(struct page_auto *a, const struct page_auto_sample *sample);

#endif
