/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/bitmap.h"
#include "common/buffer.h"
#include "common/fault.h"
#include "common/hash.h"
#include "common/wire.h"
#include "compress/pagecodec.h"
#include "netbuf/port.h"
#include "receiver.h"
#include "vm/vm.h"

#define STAGE_KEEP 4096u /* pages of the stage that stay in memory between checkpoints */

struct blobs {
    uint64_t epoch;
    struct buffer state, net;
};

struct receiver {
    uint8_t *memory;
    uint64_t pages;
    struct page_decoder *decoder;
    struct journal *journal; /* NULL: no disks */
    struct bitmap *written;  /* NULL: nobody asks */

    /* the checkpoint that is coming in */
    uint64_t epoch;       /* 0: none begun */
    uint8_t *stage;       /* one block more than stage_max, for the decoder */
    uint64_t *pfns;
    uint64_t stage_max, staged;
    uint64_t digest_pages;
    XXH3_state_t *digest;
    uint64_t disk_digest, disk_length; /* as DISK_END has them */
    struct blobs incoming;
    bool whole;

    struct blobs applied;
    uint64_t received;

    /* synchronising over an old checkpoint, whose state is still in `applied` */
    uint64_t kept;       /* its number; 0: none */
    struct bitmap saved; /* pages that are not that checkpoint's any more */
    uint8_t *undo;       /* their old content */
    uint64_t *undo_pfns;
    uint64_t undo_count, undo_max;
};

static size_t stage_octets(const struct receiver *r)
{
    return (r->stage_max + PAGE_BLOCK_MAX) * PAGE_SIZE;
}

static void *reserve(size_t octets)
{
    void *p = mmap(NULL, octets, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

struct receiver *receiver_new(uint8_t *memory, uint64_t pages, size_t stage_bytes)
{
    struct receiver *r = calloc(1, sizeof(*r));

    if (!r)
        return NULL;
    r->memory = memory;
    r->pages = pages;
    r->stage_max = stage_bytes / PAGE_SIZE < pages ? stage_bytes / PAGE_SIZE : pages;
    r->decoder = page_decoder_new();
    r->digest = XXH3_createState();
    r->stage = reserve(stage_octets(r));
    r->pfns = reserve((r->stage_max + PAGE_BLOCK_MAX) * sizeof(*r->pfns));
    r->undo_max = r->stage_max / 4 + 1;
    r->undo = reserve(r->undo_max * PAGE_SIZE);
    r->undo_pfns = reserve(r->undo_max * sizeof(*r->undo_pfns));
    if (!r->decoder || !r->digest || !r->stage || !r->pfns || !r->undo || !r->undo_pfns || bitmap_init(&r->saved, pages) < 0) {
        receiver_free(r);
        errno = ENOMEM;
        return NULL;
    }
    receiver_start(r, START_ANEW);
    return r;
}

void receiver_set_journal(struct receiver *r, struct journal *journal)
{
    r->journal = journal;
}

void receiver_set_written(struct receiver *r, struct bitmap *written)
{
    r->written = written;
}

void receiver_free(struct receiver *r)
{
    if (!r)
        return;
    if (r->stage)
        munmap(r->stage, stage_octets(r));
    if (r->pfns)
        munmap(r->pfns, (r->stage_max + PAGE_BLOCK_MAX) * sizeof(*r->pfns));
    if (r->undo)
        munmap(r->undo, r->undo_max * PAGE_SIZE);
    if (r->undo_pfns)
        munmap(r->undo_pfns, r->undo_max * sizeof(*r->undo_pfns));
    bitmap_free(&r->saved);
    page_decoder_free(r->decoder);
    XXH3_freeState(r->digest);
    buffer_free(&r->incoming.state);
    buffer_free(&r->incoming.net);
    buffer_free(&r->applied.state);
    buffer_free(&r->applied.net);
    free(r);
}

static void expect_next(struct receiver *r)
{
    r->epoch = 0;
    r->staged = 0;
    r->digest_pages = r->disk_digest = r->disk_length = 0;
    r->whole = false;
    XXH3_64bits_reset(r->digest);
    buffer_clear(&r->incoming.state);
    buffer_clear(&r->incoming.net);
}

static void forget_kept(struct receiver *r)
{
    if (!r->kept)
        return;
    r->kept = r->undo_count = 0;
    bitmap_clear_all(&r->saved);
    madvise(r->undo, r->undo_max * PAGE_SIZE, MADV_DONTNEED);
}

static void write_page(struct receiver *r, uint64_t pfn, const uint8_t *page)
{
    memcpy(r->memory + pfn * PAGE_SIZE, page, PAGE_SIZE);
    if (r->written)
        bitmap_set(r->written, pfn);
}

/* Before a page of no checkpoint is written. */
static void keep_page(struct receiver *r, uint64_t pfn, const uint8_t *new)
{
    const uint8_t *old = r->memory + pfn * PAGE_SIZE;

    if (!r->kept || bitmap_test(&r->saved, pfn) || memcmp(old, new, PAGE_SIZE) == 0)
        return;
    if (r->undo_count == r->undo_max) {
        forget_kept(r);
        return;
    }
    memcpy(r->undo + r->undo_count * PAGE_SIZE, old, PAGE_SIZE);
    r->undo_pfns[r->undo_count++] = pfn;
    bitmap_set(&r->saved, pfn);
}

bool receiver_keeps(const struct receiver *r)
{
    return r->kept;
}

void receiver_restore(struct receiver *r)
{
    if (!r->kept)
        return;
    for (uint64_t i = 0; i < r->undo_count; i++)
        write_page(r, r->undo_pfns[i], r->undo + i * PAGE_SIZE);
    r->applied.epoch = r->kept;
    forget_kept(r);
}

void receiver_start(struct receiver *r, enum link_start start)
{
    page_decoder_reset(r->decoder);
    if (start == START_ANEW)
        forget_kept(r);
    else if (start == START_KEEP && r->applied.epoch)
        r->kept = r->applied.epoch;
    if (start != START_RESUME)
        r->applied.epoch = 0;
    expect_next(r);
}

/* Every record names its epoch; a checkpoint's records come together, and numbers only go up. */
static int check_epoch(struct receiver *r, const struct record *rec, struct error *err)
{
    if (r->epoch == 0) {
        if (rec->epoch <= r->applied.epoch)
            return error_set(err, "%s of checkpoint %" PRIu64 " after checkpoint %" PRIu64,
                             proto_type_name(rec->type), rec->epoch, r->applied.epoch);
        r->epoch = rec->epoch;
        page_decoder_begin(r->decoder);
    }
    if (rec->epoch != r->epoch)
        return error_set(err, "%s of checkpoint %" PRIu64 " inside checkpoint %" PRIu64,
                         proto_type_name(rec->type), rec->epoch, r->epoch);
    return 0;
}

/* A page of the checkpoint that is coming in, which is at its place in the stage. */
static void add_to_digest(struct receiver *r, uint64_t at)
{
    uint8_t pfn[8];
    struct wire_writer w = wire_writer(pfn, sizeof(pfn));

    wire_put_uint(&w, r->pfns[at], 8);
    XXH3_64bits_update(r->digest, pfn, sizeof(pfn));
    XXH3_64bits_update(r->digest, r->stage + at * PAGE_SIZE, PAGE_SIZE);
    r->digest_pages++;
    r->received++;
}

static int check_stage(const struct receiver *r, struct error *err)
{
    if (r->staged > r->stage_max)
        return error_set(err, "checkpoint %" PRIu64 " has more than the %" PRIu64
                         " pages that may be staged here", r->epoch, r->stage_max);
    return 0;
}

static int take_pages(struct receiver *r, const struct record *rec, struct error *err)
{
    bool sync = rec->epoch == 0;
    uint64_t at = sync ? 0 : r->staged;
    uint8_t *stage;
    int n;

    if (sync && (r->epoch || r->applied.epoch))
        return error_set(err, "pages of no checkpoint after synchronising has ended");
    if (!sync && check_epoch(r, rec, err) < 0)
        return -1;
    if (sync) /* each block is applied at once */
        page_decoder_begin(r->decoder);
    stage = r->stage + at * PAGE_SIZE;
    n = page_decode(r->decoder, rec->body, rec->length, r->pages, r->memory, r->pfns + at, stage,
                    err);
    if (n < 0)
        return error_prefix(err, "checkpoint %" PRIu64, rec->epoch);
    for (int i = 0; i < n; i++) {
        add_to_digest(r, at + (uint64_t)i);
        if (sync) {
            keep_page(r, r->pfns[i], stage + (size_t)i * PAGE_SIZE);
            write_page(r, r->pfns[i], stage + (size_t)i * PAGE_SIZE);
        }
    }
    if (sync)
        return 0;
    r->staged += (uint64_t)n;
    return check_stage(r, err);
}

/* Pages that are blocks of disks, which are here already. */
static int take_blocks(struct receiver *r, const struct record *rec, struct error *err)
{
    if (!r->journal || rec->epoch == 0 || rec->length % PROTO_BLOCK_LEN)
        return error_set(err, "BLOCKS of %zu octets%s%s", rec->length, rec->epoch ? "" : ", of no checkpoint",
                         r->journal ? "" : ", of a VM without disks");
    if (check_epoch(r, rec, err) < 0)
        return -1;
    for (size_t at = 0; at < rec->length; at += PROTO_BLOCK_LEN) {
        struct proto_block block;

        proto_get_block(&block, rec->body + at);
        if (block.pfn >= r->pages)
            return error_set(err, "checkpoint %" PRIu64 ": page %" PRIu64 " of a guest of %" PRIu64, rec->epoch,
                             block.pfn, r->pages);
        if (journal_read(r->journal, &block, r->stage + r->staged * PAGE_SIZE, err) < 0)
            return error_prefix(err, "checkpoint %" PRIu64, rec->epoch);
        r->pfns[r->staged] = block.pfn;
        add_to_digest(r, r->staged++);
        if (check_stage(r, err) < 0)
            return -1;
    }
    return 0;
}

static int take_blob(struct receiver *r, const struct record *rec, struct buffer *into,
                     size_t max, struct error *err)
{
    if (check_epoch(r, rec, err) < 0)
        return -1;
    if (rec->length > max - into->len)
        return error_set(err, "%s of checkpoint %" PRIu64 " is longer than %zu octets",
                         proto_type_name(rec->type), r->epoch, max);
    if (buffer_append(into, rec->body, rec->length) < 0)
        return error_set(err, "no memory for %s", proto_type_name(rec->type));
    return 0;
}

/* Direct changes of images obey the same rules as pages of no checkpoint. */
static int take_disk(struct receiver *r, const struct record *rec, struct error *err)
{
    if (!r->journal)
        return error_set(err, "DISK of a VM without disks");
    if (rec->epoch == 0 && (r->epoch || r->applied.epoch))
        return error_set(err, "disk changes of no checkpoint after synchronising has ended");
    if (rec->epoch && check_epoch(r, rec, err) < 0)
        return -1;
    if (journal_write(r->journal, rec->epoch, rec->body, rec->length, err) < 0)
        return -1;
    r->disk_digest = proto_disk_digest(r->disk_digest, rec->checksum);
    r->disk_length += rec->length;
    if (r->kept && !journal_whole(r->journal))
        forget_kept(r);
    return 0;
}

static int take_disk_end(struct receiver *r, const struct record *rec, struct error *err)
{
    struct proto_disk_end end;

    if (!r->journal)
        return error_set(err, "DISK_END of a VM without disks");
    if (check_epoch(r, rec, err) < 0 || proto_get_disk_end(&end, rec->body, rec->length, err) < 0)
        return -1;
    if (end.length != r->disk_length || end.digest != r->disk_digest)
        return error_set(err, "checkpoint %" PRIu64 ": disk changes are not whole: %" PRIu64 " of %" PRIu64
                         " octets, digest %016" PRIx64 ", should be %016" PRIx64, r->epoch, r->disk_length, end.length,
                         r->disk_digest, end.digest);
    return journal_end(r->journal, end.generation, err);
}

static int take_end(struct receiver *r, const struct record *rec, struct error *err)
{
    struct proto_end end;
    uint64_t digest;

    if (check_epoch(r, rec, err) < 0 || proto_get_end(&end, rec->body, rec->length, err) < 0)
        return -1;
    if (end.pages != r->digest_pages || end.state_length != r->incoming.state.len ||
        end.net_length != r->incoming.net.len)
        return error_set(err, "checkpoint %" PRIu64 " is not whole: %" PRIu64 " of %" PRIu64
                         " pages, %zu of %u octets of state, %zu of %u of network state",
                         r->epoch, r->digest_pages, end.pages, r->incoming.state.len,
                         end.state_length, r->incoming.net.len, end.net_length);
    XXH3_64bits_update(r->digest, r->incoming.state.data, r->incoming.state.len);
    XXH3_64bits_update(r->digest, r->incoming.net.data, r->incoming.net.len);
    digest = XXH3_64bits_digest(r->digest);
    if (digest != end.digest)
        return error_set(err, "checkpoint %" PRIu64 ": digest %016" PRIx64 ", should be %016"
                         PRIx64, r->epoch, digest, end.digest);
    /* Last: from here on the images may move on, so nothing may fail any more (R4). */
    if (r->journal && journal_commit(r->journal, r->epoch, err) < 0)
        return -1;
    r->whole = true;
    return 0;
}

enum receiver_result receiver_record(struct receiver *r, const struct record *rec,
                                     struct error *err)
{
    int rc;

    switch (rec->type) {
    case PROTO_PAGES:
        rc = take_pages(r, rec, err);
        break;
    case PROTO_BLOCKS:
        rc = take_blocks(r, rec, err);
        break;
    case PROTO_STATE:
        rc = take_blob(r, rec, &r->incoming.state, VM_STATE_MAX, err);
        break;
    case PROTO_NET:
        rc = take_blob(r, rec, &r->incoming.net, NET_STATE_MAX, err);
        break;
    case PROTO_DISK:
        rc = take_disk(r, rec, err);
        break;
    case PROTO_DISK_END:
        rc = take_disk_end(r, rec, err);
        break;
    case PROTO_END:
        rc = take_end(r, rec, err);
        break;
    default:
        rc = error_set(err, "%s record from a primary", proto_type_name(rec->type));
    }
    if (rc < 0) {
        page_decoder_reset(r->decoder);
        return RECEIVER_ERROR;
    }
    return r->whole ? RECEIVER_WHOLE : RECEIVER_MORE;
}

static void copy_staged(struct receiver *r, uint64_t from, uint64_t to)
{
    for (uint64_t i = from; i < to; i++)
        write_page(r, r->pfns[i], r->stage + i * PAGE_SIZE);
}

void receiver_apply(struct receiver *r)
{
    struct blobs swap = r->applied;

    if (!r->whole)
        return;
    forget_kept(r);
    copy_staged(r, 0, r->staged / 2);
    fault_crash("backup-amid-apply", r->epoch);
    copy_staged(r, r->staged / 2, r->staged);
    r->applied = r->incoming;
    r->applied.epoch = r->epoch;
    r->incoming = swap;
    if (r->staged > STAGE_KEEP)
        madvise(r->stage + STAGE_KEEP * PAGE_SIZE, stage_octets(r) - STAGE_KEEP * PAGE_SIZE,
                MADV_DONTNEED);
    expect_next(r);
}

uint64_t receiver_staged(const struct receiver *r)
{
    return r->whole ? r->epoch : 0;
}

void receiver_checkpoint(const struct receiver *r, struct receiver_checkpoint *ck)
{
    *ck = (struct receiver_checkpoint){
        .epoch = r->kept ? r->kept : r->applied.epoch,
        .state = r->applied.state.data,
        .net = r->applied.net.data,
        .state_length = r->applied.state.len,
        .net_length = r->applied.net.len,
    };
}

uint64_t receiver_pages(const struct receiver *r)
{
    return r->received;
}
