/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Makes what the tests keep in the tree, through the product's own code:
 *
 *     make-records golden DIR    captures of links, DIR/NAME.bin, as tests/golden has them
 *     make-records corpus DIR    seeds for fuzz-receiver, as tests/corpus/receiver has them
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/wire.h"
#include "records.h"

#define PAGES 16
#define STREAM_MAX 65536

static void must(bool ok, const char *what)
{
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static FILE *create(const char *dir, const char *name)
{
    char path[4096];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    f = fopen(path, "wb");
    must(f != NULL, path);
    return f;
}

/* The same in both: memory, which page numbers, machine state. */
static uint8_t memory[PAGES * PAGE_BYTES];
static const uint64_t all[PAGES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static const uint64_t some[] = {2, 3, 15};
static char state[300];

static void checkpoint_1(struct records *r)
{
    records_pages(r, 0, memory, all, PAGES);
    records_blob(r, PROTO_STATE, 1, state, sizeof(state));
    records_blob(r, PROTO_STATE, 1, "tail", 4);
    records_blob(r, PROTO_NET, 1, "flows", 5);
    records_end(r, 1);
}

static void checkpoint(struct records *r, uint64_t epoch)
{
    records_pages(r, epoch, memory, some, sizeof(some) / sizeof(*some));
    records_blob(r, PROTO_STATE, epoch, state, 20);
    records_end(r, epoch);
}

/* --- golden --- */

/* A link whose octets can be had from the other end of its channel. */
static struct link *start(struct chan *end[2])
{
    struct link *l;

    must(mem_chan_pair(end, STREAM_MAX) == 0, "mem_chan_pair");
    l = link_new(end[0]);
    must(l != NULL, "link_new");
    return l;
}

static void save(struct link *l, struct chan *end, const char *dir, const char *name)
{
    static uint8_t octets[STREAM_MAX];
    FILE *f = create(dir, name);
    ssize_t n;

    link_free(l);
    while ((n = end->ops->recv(end, octets, sizeof(octets), 0)) > 0)
        must(fwrite(octets, 1, (size_t)n, f) == (size_t)n, name);
    end->ops->close(end);
    must(fclose(f) == 0, name);
}

static void send_record(struct link *l, enum proto_type type, uint64_t epoch, const void *body,
                        size_t len)
{
    must(link_send(l, type, epoch, &(struct iovec){(void *)body, len}, 1) == 0, "link_send");
}

static void send_hello(struct link *l, uint32_t flags)
{
    const struct proto_hello hello = {
        .version_min = 1,
        .version_max = 1,
        .session = UINT64_C(0x0123456789abcdef),
        .flags = flags,
        .pages = PAGES,
        .page_size = PAGE_BYTES,
        .heartbeat_ms = 20,
        .timeout_ms = 200,
        .vm = "db1",
        .platform = "fake",
        .profile = "fake 1",
    };
    uint8_t body[PROTO_SMALL_MAX];

    send_record(l, PROTO_HELLO, 0, body, proto_put_hello(body, &hello));
}

static void send_welcome(struct link *l, uint64_t committed)
{
    const struct proto_welcome welcome = {.version = 1, .committed = committed};
    uint8_t body[PROTO_SMALL_MAX];

    send_record(l, PROTO_WELCOME, 0, body, proto_put_welcome(body, &welcome));
}

static void send_all(struct link *l, const struct records *r)
{
    for (size_t i = 0; i < r->count; i++)
        send_record(l, r->list[i].type, r->list[i].epoch, r->list[i].body, r->list[i].length);
}

/* All pages are zero, which the page codec writes the same way whatever else it learns. */
static void golden(const char *dir)
{
    struct records r;
    struct chan *end[2];
    struct link *l;

    records_init(&r, PAGES, PAGE_CODEC_OFF);
    l = start(end);
    send_hello(l, HELLO_RESYNC);
    checkpoint_1(&r);
    link_send_empty(l, PROTO_HEARTBEAT, 0);
    checkpoint(&r, 2);
    send_all(l, &r);
    link_send_empty(l, PROTO_HANDOVER, 2);
    save(l, end[1], dir, "primary.bin");

    l = start(end);
    send_welcome(l, 0);
    link_send_empty(l, PROTO_HEARTBEAT, 0);
    link_send_empty(l, PROTO_ACK, 1);
    link_send_empty(l, PROTO_ACK, 2);
    link_send_empty(l, PROTO_ACTIVATED, 2);
    save(l, end[1], dir, "backup.bin");

    /* a second link of the same session, a failed checkpoint's number left out */
    records_restart(&r);
    l = start(end);
    send_hello(l, 0);
    checkpoint(&r, 4);
    send_all(l, &r);
    link_send_notice(l, PROTO_GOODBYE, 0, "remusd stops");
    save(l, end[1], dir, "primary-again.bin");

    l = start(end);
    send_welcome(l, 2);
    link_send_empty(l, PROTO_ACK, 4);
    link_send_notice(l, PROTO_GOODBYE, 0, "goodbye");
    save(l, end[1], dir, "backup-again.bin");

    l = start(end);
    link_send_notice(l, PROTO_REFUSE, REFUSE_BUSY, "db1 is protected here by the primary at "
                     "10.78.0.1:4711");
    save(l, end[1], dir, "backup-refuses.bin");
    records_free(&r);
}

/* --- corpus --- */

/* As fuzz-receiver reads it: type, epoch, length of the body in two octets, body. */
static void save_seed(const struct records *r, const char *dir, const char *name)
{
    FILE *f = create(dir, name);

    for (size_t i = 0; i < r->count; i++) {
        const struct record *rec = &r->list[i];
        uint8_t head[4];
        struct wire_writer w = wire_writer(head, sizeof(head));

        must(rec->length <= UINT16_MAX, name);
        wire_put_uint(&w, rec->type, 1);
        wire_put_uint(&w, rec->epoch, 1);
        wire_put_uint(&w, rec->length, 2);
        must(fwrite(head, 1, 4, f) == 4 && fwrite(rec->body, 1, rec->length, f) == rec->length, name);
    }
    must(fclose(f) == 0, name);
}

static void corpus(const char *dir)
{
    static const char *const names[] = {"stored", "lz4", "zstd"};

    for (enum page_codec codec = PAGE_CODEC_OFF; codec <= PAGE_CODEC_ZSTD; codec++) {
        struct records r;

        memset(memory, 0, sizeof(memory));
        memset(memory + 2 * PAGE_BYTES + 100, 'x', 90);
        records_init(&r, PAGES, codec);
        checkpoint_1(&r);
        for (uint64_t epoch = 2; epoch < 5; epoch++) {
            memory[3 * PAGE_BYTES + epoch * 8] = (uint8_t)epoch; /* a delta, and an unchanged page */
            checkpoint(&r, epoch);
        }
        save_seed(&r, dir, names[codec]);
        records_free(&r);
    }
}

int main(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof(state); i++)
        state[i] = (char)(i * 7);
    if (argc == 3 && strcmp(argv[1], "golden") == 0)
        golden(argv[2]);
    else if (argc == 3 && strcmp(argv[1], "corpus") == 0)
        corpus(argv[2]);
    else
        return fprintf(stderr, "usage: make-records golden|corpus DIR\n"), 2;
    return 0;
}
