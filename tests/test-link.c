/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Framing, heartbeats and the end of a link, over memory and over TCP.  What comes out is what went in, or nothing
 * (R10); a peer that is busy is heard (R7).  Nothing here asserts a time: a hang ends by alarm().
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/link.h"
#include "common/wire.h"

#define HANG_S 60
#define MEM_CAPACITY 4096

/* A port that nobody uses, held by a socket; HOST:PORT in `address`. */
static int hold_port(char address[32])
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(sa);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&sa, len), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&sa, &len), 0);
    snprintf(address, 32, "127.0.0.1:%u", ntohs(sa.sin_port));
    return fd;
}

static void tcp_pair(struct chan *pair[2])
{
    struct error err = {""};
    char address[32];
    int fd = hold_port(address), one;

    pair[0] = tcp_connect(address, 10 * NS_PER_S, &err);
    assert_non_null(pair[0]);
    assert_string_equal(pair[0]->peer, address);
    one = accept(fd, NULL, NULL);
    assert_true(one >= 0);
    pair[1] = tcp_accepted(one, &err);
    assert_non_null(pair[1]);
    assert_string_equal(pair[1]->peer, "127.0.0.1"); /* no two messages about it differ */
    close(fd);
}

static void mem_pair(struct chan *pair[2])
{
    assert_int_equal(mem_chan_pair(pair, MEM_CAPACITY), 0);
}

/* Tests of both channels get one of these as their state. */
typedef void pair_maker(struct chan *pair[2]);
static pair_maker *const over_mem = mem_pair, *const over_tcp = tcp_pair;

static void make_links(void **state, struct link *l[2])
{
    struct chan *pair[2];

    alarm(HANG_S);
    (*(pair_maker **)state[0])(pair);
    l[0] = link_new(pair[0]);
    l[1] = link_new(pair[1]);
    assert_true(l[0] && l[1]);
}

static void free_links(struct link *l[2])
{
    link_free(l[0]);
    link_free(l[1]);
    alarm(0);
}

/* --- framing --- */

static const size_t sizes[] = {0, 1, 23, 24, 1024, 4095, 4096, 4097, 100000, PROTO_BODY_MAX};
#define SIZES (sizeof(sizes) / sizeof(*sizes))

static uint8_t content(size_t record, size_t at)
{
    return (uint8_t)(at * 31 + at / 251 + record);
}

static void *send_sizes(void *link)
{
    uint8_t *body = malloc(PROTO_BODY_MAX);

    for (size_t i = 0; i < SIZES; i++) {
        size_t n = sizes[i];
        struct iovec iov[3] = {{body, n / 3}, {body + n / 3, 0}, {body + n / 3, n - n / 3}};

        for (size_t j = 0; j < n; j++)
            body[j] = content(i, j);
        if (link_send(link, PROTO_PAGES, i, iov, i % 2 ? 3 : 0) < 0)
            break;
        if (i % 2 == 0 && link_send(link, PROTO_STATE, i, &(struct iovec){body, n}, 1) < 0)
            break;
    }
    free(body);
    return NULL;
}

static void records_arrive_as_sent(void **state)
{
    struct link *l[2];
    struct record rec;
    pthread_t sender;
    uint64_t sent = 0;

    make_links(state, l);
    assert_int_equal(pthread_create(&sender, NULL, send_sizes, l[0]), 0);
    for (size_t i = 0; i < SIZES; i++)
        for (int empty = i % 2 == 0; empty >= 0; empty--) {
            size_t n = empty ? 0 : sizes[i];

            assert_int_equal(link_recv(l[1], &rec, TIME_NEVER, NULL), LINK_RECORD);
            assert_int_equal(rec.type, i % 2 == 0 && !empty ? PROTO_STATE : PROTO_PAGES);
            assert_int_equal(rec.epoch, i);
            assert_int_equal(rec.length, n);
            for (size_t j = 0; j < n; j++)
                if (rec.body[j] != content(i, j))
                    fail_msg("record %zu differs at octet %zu", i, j);
            sent += PROTO_HEADER_LEN + n;
        }
    pthread_join(sender, NULL);
    assert_int_equal(link_bytes_sent(l[0]), sent);
    assert_int_equal(link_bytes_received(l[1]), sent);
    free_links(l);
}

/* DISK_END's digest on one side is made of the one, on the other of the other. */
static void both_sides_know_the_same_checksum(void **state)
{
    struct link *l[2];
    uint64_t sums[2];

    make_links(state, l);
    for (unsigned i = 0; i < 2; i++) {
        struct iovec body[2] = {{(void *)"cha", 3}, {(void *)"nges", 4}};
        struct record rec;

        assert_int_equal(link_send_summed(l[0], PROTO_DISK, 7 + i, body, 2, &sums[i]), 0);
        assert_int_equal(link_recv(l[1], &rec, TIME_NEVER, NULL), LINK_RECORD);
        assert_true(rec.checksum == sums[i]);
    }
    assert_true(sums[0] != sums[1]); /* of two epochs */
    free_links(l);
}

/* --- heartbeats --- */

static void expect_heartbeats(struct link *l, int count)
{
    struct record rec;

    while (count--) {
        assert_int_equal(link_recv(l, &rec, TIME_NEVER, NULL), LINK_RECORD);
        assert_int_equal(rec.type, PROTO_HEARTBEAT);
        assert_int_equal(rec.length, 0);
    }
}

static void r7_heartbeats_while_idle(void **state)
{
    struct link *l[2];
    uint64_t before;

    make_links(state, l);
    before = link_last_heard(l[1]);
    assert_int_equal(link_start_heartbeats(l[0], NS_PER_MS), 0);
    expect_heartbeats(l[1], 10);
    assert_true(link_last_heard(l[1]) > before);
    free_links(l);
}

struct busy {
    struct link *link;
    _Atomic bool stop;
};

/* A daemon that does anything but send: it computes, and it waits in recv. */
static void *compute(void *arg)
{
    struct busy *b = arg;
    struct record rec;

    while (!b->stop)
        link_recv(b->link, &rec, clock_ns() + NS_PER_MS, NULL);
    return NULL;
}

static void r7_heartbeats_while_busy(void **state)
{
    struct link *l[2];
    struct busy b = {.stop = false};
    pthread_t thread;

    make_links(state, l);
    b.link = l[0];
    assert_int_equal(link_start_heartbeats(l[0], NS_PER_MS), 0);
    assert_int_equal(pthread_create(&thread, NULL, compute, &b), 0);
    expect_heartbeats(l[1], 10);
    b.stop = true;
    pthread_join(thread, NULL);
    free_links(l);
}

#define STREAMED 400

static void *stream(void *link)
{
    uint8_t body[3000];

    for (uint64_t i = 1; i <= STREAMED; i++) {
        struct iovec iov = {body, i * 7 % sizeof(body)};

        memset(body, (int)i, iov.iov_len);
        if (link_send(link, PROTO_PAGES, i, &iov, 1) < 0)
            break;
        if (i % 100 == 0)
            clock_sleep_until(clock_ns() + 3 * NS_PER_MS);
    }
    return NULL;
}

/* Two senders and the heartbeats share one stream: records stay whole and each sender's stay in order. */
static void heartbeats_and_senders_do_not_mix(void **state)
{
    struct link *l[2];
    pthread_t sender[2];
    uint64_t next[2] = {1, 1}, seen = 0;

    make_links(state, l);
    assert_int_equal(link_start_heartbeats(l[0], NS_PER_MS / 10), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&sender[i], NULL, stream, l[0]), 0);
    while (seen < 2 * STREAMED) {
        struct record rec;

        assert_int_equal(link_recv(l[1], &rec, TIME_NEVER, NULL), LINK_RECORD);
        if (rec.type == PROTO_HEARTBEAT)
            continue;
        assert_int_equal(rec.length, rec.epoch * 7 % 3000);
        for (size_t i = 0; i < rec.length; i++)
            if (rec.body[i] != (uint8_t)rec.epoch)
                fail_msg("record %u is mixed with another", (unsigned)rec.epoch);
        if (rec.epoch == next[0])
            next[0]++;
        else if (rec.epoch == next[1])
            next[1]++;
        else
            fail_msg("record %u out of order", (unsigned)rec.epoch);
        seen++;
    }
    for (int i = 0; i < 2; i++)
        pthread_join(sender[i], NULL);
    free_links(l);
}

/* --- silence --- */

static void r7_silence_is_a_timeout(void **state)
{
    struct link *l[2];
    struct record rec;
    uint64_t heard, began;

    make_links(state, l);
    heard = link_last_heard(l[1]);
    assert_int_equal(link_recv(l[1], &rec, 0, NULL), LINK_TIMEOUT);
    began = clock_ns();
    assert_int_equal(link_recv(l[1], &rec, began + 5 * NS_PER_MS, NULL), LINK_TIMEOUT);
    assert_true(clock_ns() >= began + 5 * NS_PER_MS);
    assert_int_equal(link_last_heard(l[1]), heard);
    free_links(l);
}

/* The octets of a few records as a link puts them on the channel. */
static size_t capture(uint8_t *out, size_t room)
{
    struct chan *pair[2];
    struct link *l;
    struct iovec iov[2] = {{(char[]){"pages"}, 5}, {(char[]){"more"}, 4}};
    size_t len = 0;

    assert_int_equal(mem_chan_pair(pair, room), 0);
    l = link_new(pair[0]);
    assert_int_equal(link_send(l, PROTO_PAGES, 7, iov, 2), 0);
    assert_int_equal(link_send_empty(l, PROTO_HEARTBEAT, 0), 0);
    assert_int_equal(link_send_notice(l, PROTO_GOODBYE, 0, "end"), 0);
    link_free(l);
    for (ssize_t n; (n = pair[1]->ops->recv(pair[1], out + len, room - len, 0)) > 0;)
        len += (size_t)n;
    pair[1]->ops->close(pair[1]);
    return len;
}

static const size_t starts[] = {0, 33, 57, 87}; /* of the records above, and the end */

static bool is_record(const struct record *rec, size_t i)
{
    static const struct record as_sent[] = {{PROTO_PAGES, 7, (const uint8_t *)"pagesmore", 9, 0},
                                            {PROTO_HEARTBEAT, 0, NULL, 0, 0},
                                            {PROTO_GOODBYE, 0, (const uint8_t *)"\0\0\3end", 6, 0}};

    return i < 3 && rec->type == as_sent[i].type && rec->epoch == as_sent[i].epoch &&
           rec->length == as_sent[i].length &&
           (rec->length == 0 || memcmp(rec->body, as_sent[i].body, rec->length) == 0);
}

static void put_raw(struct chan *c, const void *data, size_t len)
{
    struct iovec iov = {(void *)data, len};

    assert_int_equal(c->ops->send(c, &iov, 1), 0);
}

/* What is there of a record is a sign of life; the record itself comes when it is whole. */
static void r7_part_of_a_record_is_heard(void **state)
{
    uint8_t raw[256];
    struct chan *pair[2];
    struct record rec;
    struct link *l;
    size_t len = capture(raw, sizeof(raw));

    alarm(HANG_S);
    (*(pair_maker **)state[0])(pair);
    l = link_new(pair[1]);
    assert_int_equal(len, starts[3]);
    for (size_t i = 0; i < len; i++) {
        uint64_t before = link_last_heard(l);
        enum link_result r;

        put_raw(pair[0], raw + i, 1);
        while (link_bytes_received(l) <= i) /* TCP may take a moment */
            r = link_recv(l, &rec, clock_ns() + NS_PER_MS, NULL);
        assert_true(link_last_heard(l) > before);
        if (i + 1 == starts[1] || i + 1 == starts[2] || i + 1 == starts[3]) {
            assert_int_equal(r, LINK_RECORD);
            assert_true(is_record(&rec, i + 1 == starts[1] ? 0 : i + 1 == starts[2] ? 1 : 2));
        } else {
            assert_int_equal(r, LINK_TIMEOUT);
        }
    }
    pair[0]->ops->close(pair[0]);
    assert_int_equal(link_recv(l, &rec, TIME_NEVER, NULL), LINK_CLOSED);
    link_free(l);
    alarm(0);
}

/* --- hostile streams --- */

/* Feeds a stream that then ends; the number of records that came, each the right one, and how it ended. */
static size_t feed(const uint8_t *raw, size_t len, enum link_result *end, struct error *err)
{
    struct chan *pair[2];
    struct record rec;
    struct link *l;
    size_t n = 0;

    assert_int_equal(mem_chan_pair(pair, MEM_CAPACITY), 0);
    put_raw(pair[0], raw, len);
    pair[0]->ops->close(pair[0]);
    l = link_new(pair[1]);
    while ((*end = link_recv(l, &rec, TIME_NEVER, err)) == LINK_RECORD)
        assert_true(is_record(&rec, n++));
    for (int again = 0; again < 3; again++) /* the stream is lost for good */
        assert_int_equal(link_recv(l, &rec, TIME_NEVER, err), LINK_CLOSED);
    link_free(l);
    return n;
}

static size_t record_of(size_t octet)
{
    return octet < starts[1] ? 0 : octet < starts[2] ? 1 : 2;
}

static void r10_any_octet_corrupted(void **state)
{
    uint8_t raw[256];
    size_t len = capture(raw, sizeof(raw));
    enum link_result end;
    struct error err;

    (void)state;
    alarm(HANG_S);
    assert_int_equal(feed(raw, len, &end, &err), 3);
    assert_int_equal(end, LINK_CLOSED);
    for (size_t i = 0; i < len; i++)
        for (unsigned flip = 1; flip < 256; flip++) {
            raw[i] ^= (uint8_t)flip;
            err.text[0] = '\0';
            assert_int_equal(feed(raw, len, &end, &err), record_of(i));
            /* a length that grew waits for octets that never come; all else is found out */
            if (end == LINK_CORRUPT)
                assert_true(err.text[0]);
            else
                assert_true(i - starts[record_of(i)] >= 4 && i - starts[record_of(i)] < 8);
            raw[i] ^= (uint8_t)flip;
        }
    alarm(0);
}

static void r10_stream_cut_anywhere(void **state)
{
    uint8_t raw[256];
    size_t len = capture(raw, sizeof(raw));
    enum link_result end;

    (void)state;
    alarm(HANG_S);
    for (size_t cut = 0; cut < len; cut++) {
        assert_int_equal(feed(raw, cut, &end, NULL), record_of(cut));
        assert_int_equal(end, LINK_CLOSED);
    }
    alarm(0);
}

static void r10_records_swapped_or_repeated_are_whole_records(void **state)
{
    uint8_t raw[256], swapped[256];
    size_t len = capture(raw, sizeof(raw));
    enum link_result end;

    (void)state;
    /* a body under another record's header */
    memcpy(swapped, raw, len);
    memcpy(swapped + PROTO_HEADER_LEN, raw + starts[2] + PROTO_HEADER_LEN, 6);
    assert_int_equal(feed(swapped, len, &end, NULL), 0);
    assert_int_equal(end, LINK_CORRUPT);
    /* an octet missing, an octet too many */
    memmove(swapped, raw + 1, len - 1);
    assert_int_equal(feed(swapped, len - 1, &end, NULL), 0);
    assert_int_equal(end, LINK_CORRUPT);
}

/* Found in the header: nobody waits for, or makes room for, a body that may not be. */
static void r10_bad_headers_need_no_body(void **state)
{
    static const struct proto_header good = {.type = PROTO_PAGES, .length = 5000, .epoch = 7}, bad[] = {
        {.type = PROTO_PAGES, .length = PROTO_BODY_MAX + 1},
        {.type = PROTO_PAGES, .length = UINT32_MAX},
        {.type = PROTO_ACK, .length = PROTO_SMALL_MAX + 1},
        {.type = 0},
        {.type = PROTO_TYPE_MAX + 1},
    };
    const size_t count = sizeof(bad) / sizeof(*bad);
    uint8_t raw[PROTO_HEADER_LEN];

    (void)state;
    for (size_t i = 0; i < count + 8 * PROTO_CHECKED; i++) {
        struct chan *pair[2];
        struct record rec;
        struct error err = {""};
        struct link *l;

        alarm(HANG_S);
        proto_put_header(raw, i < count ? &bad[i] : &good);
        if (i >= count) /* any bit of it: heartbeats would fill a body that is too long */
            raw[(i - count) / 8] ^= (uint8_t)(1 << (i - count) % 8);
        assert_int_equal(mem_chan_pair(pair, MEM_CAPACITY), 0);
        put_raw(pair[0], raw, sizeof(raw));
        l = link_new(pair[1]);
        assert_int_equal(link_recv(l, &rec, TIME_NEVER, &err), LINK_CORRUPT);
        assert_true(err.text[0]);
        put_raw(pair[0], raw, sizeof(raw));
        assert_int_equal(link_recv(l, &rec, TIME_NEVER, &err), LINK_CLOSED);
        link_free(l);
        pair[0]->ops->close(pair[0]);
    }
    alarm(0);
}

/* --- the end --- */

static void *shut_down(void *link)
{
    clock_sleep_until(clock_ns() + 20 * NS_PER_MS);
    link_shutdown(link);
    return NULL;
}

static void shutdown_wakes_the_receiver(void **state)
{
    struct link *l[2];
    struct record rec;
    pthread_t third;

    make_links(state, l);
    assert_int_equal(pthread_create(&third, NULL, shut_down, l[1]), 0);
    assert_int_equal(link_recv(l[1], &rec, TIME_NEVER, NULL), LINK_CLOSED);
    pthread_join(third, NULL);
    assert_int_equal(link_recv(l[0], &rec, TIME_NEVER, NULL), LINK_CLOSED); /* and the peer's */
    free_links(l);
}

static void shutdown_wakes_the_sender(void **state)
{
    static uint8_t body[1 << 20];
    struct iovec iov = {body, sizeof(body)};
    struct link *l[2];
    pthread_t third;

    make_links(state, l);
    assert_int_equal(link_start_heartbeats(l[0], NS_PER_MS), 0); /* they wait behind the sender */
    assert_int_equal(pthread_create(&third, NULL, shut_down, l[0]), 0);
    while (link_send(l[0], PROTO_PAGES, 1, &iov, 1) == 0) /* nobody reads */
        ;
    pthread_join(third, NULL);
    free_links(l);
}

static void peer_gone_is_closed(void **state)
{
    struct link *l[2];
    struct record rec;

    make_links(state, l);
    assert_int_equal(link_send_notice(l[0], PROTO_GOODBYE, 0, "bye"), 0);
    link_free(l[0]);
    l[0] = NULL;
    assert_int_equal(link_recv(l[1], &rec, TIME_NEVER, NULL), LINK_RECORD); /* the last word arrives */
    assert_int_equal(rec.type, PROTO_GOODBYE);
    assert_int_equal(link_recv(l[1], &rec, TIME_NEVER, NULL), LINK_CLOSED);
    free_links(l);
}

static void freeing_with_heartbeats_under_way(void **state)
{
    for (int i = 0; i < 50; i++) {
        struct link *l[2];

        make_links(state, l);
        assert_int_equal(link_start_heartbeats(l[0], 1), 0);
        assert_int_equal(link_start_heartbeats(l[1], 1), 0);
        free_links(l);
    }
}

static void tcp_errors_name_the_address(void **state)
{
    struct error err;
    char address[32];
    int fd = hold_port(address), listener;

    (void)state;
    alarm(HANG_S);
    assert_int_equal(tcp_listen(address, &err), -1);
    assert_non_null(strstr(err.text, address));
    assert_non_null(strstr(err.text, "another remus-backupd"));
    close(fd);
    listener = tcp_listen(address, &err);
    assert_true(listener >= 0);
    close(listener);
    assert_null(tcp_connect(address, 10 * NS_PER_S, &err));
    assert_non_null(strstr(err.text, address));
    assert_non_null(strstr(err.text, strerror(ECONNREFUSED)));
    assert_non_null(strstr(err.text, "does remus-backupd run there?"));
    assert_int_equal(tcp_listen("192.0.2.1:7910", &err), -1);
    assert_non_null(strstr(err.text, "no interface of this host"));
    assert_null(tcp_connect("[fe80::1%nosuch]:7910", NS_PER_S, &err));
    assert_non_null(strstr(err.text, "[fe80::1%nosuch]:7910: "));
    assert_non_null(strstr(err.text, "mend the name"));
    assert_null(tcp_connect("no port", NS_PER_S, &err));
    alarm(0);
}

#define OVER_BOTH(f)                                                                               \
    {#f " (mem)", f, NULL, NULL, (void *)&over_mem},                                               \
    {#f " (tcp)", f, NULL, NULL, (void *)&over_tcp}

/* A peer that reads nothing holds a sender up until then, and no longer. */
static void limited_sends_end(void **state)
{
    const size_t large = 16 << 20; /* more than any socket takes */
    struct iovec body = {calloc(1, PROTO_BODY_MAX), PROTO_BODY_MAX};
    struct link *l[2];
    size_t sent = 0;
    uint64_t limit;
    int rc;

    make_links(state, l);
    limit = clock_ns() + 50 * NS_PER_MS;
    link_limit_sends(l[0], limit);
    do
        rc = link_send(l[0], PROTO_PAGES, 0, &body, 1);
    while (rc == 0 && (sent += body.iov_len) < large);
    assert_int_equal(rc, -1);
    assert_int_equal(errno, ETIMEDOUT);
    assert_true(clock_ns() >= limit);
    free(body.iov_base);
    free_links(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        OVER_BOTH(records_arrive_as_sent),
        OVER_BOTH(both_sides_know_the_same_checksum),
        OVER_BOTH(r7_heartbeats_while_idle),
        OVER_BOTH(r7_heartbeats_while_busy),
        OVER_BOTH(heartbeats_and_senders_do_not_mix),
        OVER_BOTH(r7_silence_is_a_timeout),
        OVER_BOTH(r7_part_of_a_record_is_heard),
        cmocka_unit_test(r10_any_octet_corrupted),
        cmocka_unit_test(r10_stream_cut_anywhere),
        cmocka_unit_test(r10_records_swapped_or_repeated_are_whole_records),
        cmocka_unit_test(r10_bad_headers_need_no_body),
        OVER_BOTH(shutdown_wakes_the_receiver),
        OVER_BOTH(shutdown_wakes_the_sender),
        OVER_BOTH(limited_sends_end),
        OVER_BOTH(peer_gone_is_closed),
        OVER_BOTH(freeing_with_heartbeats_under_way),
        cmocka_unit_test(tcp_errors_name_the_address),
    };

    return cmocka_run_group_tests_name("link", tests, NULL, NULL);
}
