/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The checkpoint path, step by step: a guest that fails where the test says, and a backup that says what the test wants.
 *
 *   R1   only an acknowledgement of what is in flight releases anything, and only that
 *   R2   what a lost checkpoint, or one that failed half way, would have carried comes with the next one
 *   R4   of a checkpoint that failed nothing is ever whole on the backup, and its number is not used again
 *   R8   the order inside the pause; the guest runs again, however it ends
 *   R10  whatever else the backup says ends the link and releases nothing
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "backup/receiver.h"
#include "common/clock.h"
#include "remusd/engine.h"

#define PAGES 2048u
#define STATE (PROTO_BODY_MAX * 2 + 7) /* three records */
#define HANG_S 60

static const char *const steps[] = {"suspend", "barrier", "state", "scan", "resume"};
#define STEPS (sizeof(steps) / sizeof(*steps))

static struct guest {
    struct vm vm;
    uint8_t memory[PAGES * PAGE_SIZE];
    struct bitmap written;
    bool suspended;
    char calls[128];
    const char *fails;
    unsigned scans;
    unsigned busy; /* pages that it writes from one scan to the next ... */
    bool calms;    /* ... one fewer each time */
} guest;

static struct noted_port {
    struct port port;
    _Atomic uint64_t released;
    _Atomic unsigned releases;
} port;

static struct engine engine;
static struct link *backup;
static struct receiver *receiver;
static uint8_t replica[PAGES * PAGE_SIZE];
static unsigned coding; /* of the last block: how it is compressed (pagecodec.h) */
static uint64_t rate; /* that the link says it carries */
static uint64_t received[2]; /* as struct engine_stats counts what is sent */

static int call(const char *step, struct error *err)
{
    size_t len = strlen(guest.calls);

    snprintf(guest.calls + len, sizeof(guest.calls) - len, "%s ", step);
    return guest.fails && strcmp(guest.fails, step) == 0 ? error_set(err, "%s: no", step) : 0;
}

static int guest_suspend(struct vm *vm, struct error *err)
{
    (void)vm;
    assert_false(guest.suspended);
    if (call("suspend", err) < 0)
        return -1;
    guest.suspended = true;
    return 0;
}

static int guest_resume(struct vm *vm, struct error *err)
{
    (void)vm;
    assert_true(guest.suspended);
    guest.suspended = false;
    return call("resume", err);
}

static int guest_state(struct vm *vm, struct buffer *state, struct error *err)
{
    static uint8_t octets[STATE];

    (void)vm;
    assert_true(guest.suspended);
    if (call("state", err) < 0)
        return -1;
    for (size_t i = 0; i < STATE; i++)
        octets[i] = (uint8_t)(i * 7 + i / 4099);
    return buffer_append(state, octets, STATE);
}

static void write_page(uint64_t pfn)
{
    static uint32_t what;

    what++;
    memcpy(guest.memory + pfn * PAGE_SIZE + pfn % 64, &what, sizeof(what));
    bitmap_set(&guest.written, pfn);
}

static int guest_scan(struct vm *vm, struct bitmap *dirty, struct error *err)
{
    (void)vm;
    if (call("scan", err) < 0)
        return -1;
    guest.scans++;
    for (unsigned i = 0; i < guest.busy; i++)
        write_page(i);
    guest.busy -= guest.calms;
    bitmap_or(dirty, &guest.written);
    bitmap_clear_all(&guest.written);
    return 0;
}

static const struct vm_ops guest_ops = {.name = "steps", .suspend = guest_suspend, .resume = guest_resume,
                                        .save_state = guest_state, .scan = guest_scan};

static int port_barrier(struct port *p, uint64_t epoch, struct buffer *net)
{
    struct error err;

    (void)p;
    (void)epoch;
    assert_true(guest.suspended);
    if (call("barrier", &err) < 0) {
        errno = ENOMEM;
        return -1;
    }
    return buffer_append(net, "net", 3);
}

static void port_hold(struct port *p)
{
    (void)p;
    call("hold", NULL); /* cannot fail */
}

static void port_release(struct port *p, uint64_t epoch)
{
    (void)p;
    port.released = epoch;
    port.releases++;
}

static const struct port_ops noted_ops = {.name = "noted", .barrier = port_barrier, .hold = port_hold, .release = port_release};

static uint64_t link_carries(struct chan *c)
{
    (void)c;
    return rate;
}

/* committed: as WELCOME says it, 0 to send everything. */
static void connect_pair(uint64_t committed)
{
    static struct chan_ops ops;
    struct chan *ends[2];
    struct error err = {""};

    assert_int_equal(mem_chan_pair(ends, 1 << 20), 0);
    ops = *ends[0]->ops;
    ops.rate = link_carries;
    ends[0]->ops = &ops;
    receiver_start(receiver, committed ? START_RESUME : START_ANEW);
    backup = link_new(ends[1]);
    assert_non_null(backup);
    assert_int_equal(engine_attach(&engine, link_new(ends[0]), committed, &err), 0);
}

static void disconnect_pair(void)
{
    engine_detach(&engine);
    link_free(backup);
}

static int setup(void **state)
{
    static struct vm_config cfg = {.name = "steps", .interval_ms = 5, .timeout_ms = 30000, .compression = (char *)"lz4",
                                   .compression_threads = 3, .staging_bytes = PAGES * PAGE_SIZE};
    struct error err = {""};

    (void)state;
    alarm(HANG_S);
    memset(&guest, 0, sizeof(guest));
    guest.vm = (struct vm){.ops = &guest_ops, .memory = guest.memory, .pages = PAGES};
    assert_int_equal(bitmap_init(&guest.written, PAGES), 0);
    memset(&port, 0, sizeof(port));
    port.port.ops = &noted_ops;
    memset(replica, 0, sizeof(replica));
    memset(received, 0, sizeof(received));
    receiver = receiver_new(replica, PAGES, sizeof(replica));
    assert_non_null(receiver);
    engine_init(&engine, &cfg);
    assert_int_equal(engine_open(&engine, &guest.vm, &port.port, &err), 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    engine_free(&engine);
    receiver_free(receiver);
    bitmap_free(&guest.written);
    alarm(0);
    return 0;
}

/* The backup takes what is sent up to the end of a checkpoint.  Its number; *pages, which may be NULL: that it carries. */
static uint64_t take_checkpoint(uint64_t *pages)
{
    uint64_t before = receiver_pages(receiver), epoch;
    enum receiver_result result;
    struct record rec;
    struct error err;

    do {
        if (link_recv(backup, &rec, TIME_NEVER, &err) != LINK_RECORD)
            return 0;
        result = receiver_record(receiver, &rec, &err);
        if (result == RECEIVER_ERROR)
            fail_msg("%s", err.text);
        if (rec.type == PROTO_PAGES)
            coding = rec.body[1];
        if (rec.type == PROTO_PAGES)
            received[rec.epoch == 0] += rec.length + PROTO_HEADER_LEN;
        else if (rec.type == PROTO_STATE || rec.type == PROTO_NET)
            received[0] += rec.length;
    } while (result != RECEIVER_WHOLE);
    epoch = receiver_staged(receiver);
    receiver_apply(receiver);
    if (pages)
        *pages = receiver_pages(receiver) - before;
    return epoch;
}

static void checkpoint(void)
{
    struct error err = {""};

    if (engine_checkpoint(&engine, true, &err) < 0)
        fail_msg("%s", err.text);
}

static void acknowledge(uint64_t epoch)
{
    assert_int_equal(link_send_empty(backup, PROTO_ACK, epoch), 0);
    pthread_mutex_lock(&engine.lock);
    while (engine.link_end == LINK_UP && engine.pacer.acked < epoch)
        engine_wait(&engine, TIME_NEVER);
    assert_int_equal(engine.link_end, LINK_UP);
    pthread_mutex_unlock(&engine.lock);
    while (port.released != epoch) /* it follows at once */
        usleep(100);
}

/* How the link ended; what it says. */
static enum link_end ended(const char *says)
{
    struct error why;
    enum link_end end;

    pthread_mutex_lock(&engine.lock);
    while (engine.link_end == LINK_UP)
        engine_wait(&engine, TIME_NEVER);
    pthread_mutex_unlock(&engine.lock);
    end = engine_link_state(&engine, &why);
    if (!strstr(why.text, says))
        fail_msg("\"%s\" does not say \"%s\"", why.text, says);
    return end;
}

static void expect_calls(const char *calls)
{
    assert_string_equal(guest.calls, calls);
    guest.calls[0] = '\0';
}

static void r8_what_happens_in_the_pause(void **state)
{
    struct error err;

    (void)state;
    connect_pair(0);
    checkpoint();
    expect_calls("suspend hold barrier state scan resume ");
    checkpoint();
    expect_calls("suspend barrier state scan resume "); /* held since, by the same port */
    assert_int_equal(take_checkpoint(NULL), 1);
    assert_int_equal(take_checkpoint(NULL), 2);
    acknowledge(2);
    assert_int_equal(engine_checkpoint(&engine, false, &err), 0);
    expect_calls("suspend barrier state scan ");
    assert_true(guest.suspended); /* for a switchover */
    disconnect_pair();
}

/* Checkpoint 1 is there, 2 fails, 3 comes over the next link. */
static void r2_r4_r8_a_checkpoint_that_fails_half_way(void **state)
{
    struct error err;
    uint64_t pages;

    (void)state;
    connect_pair(0);
    write_page(3);
    checkpoint();
    assert_int_equal(take_checkpoint(&pages), 1);
    assert_int_equal(pages, 1);
    acknowledge(1);
    for (size_t i = 0; i < STEPS; i++) {
        uint64_t number = engine.pacer.taken + 1;

        guest.calls[0] = '\0';
        write_page(10 + i);
        guest.fails = steps[i];
        assert_int_equal(engine_checkpoint(&engine, true, &err), -1);
        assert_non_null(strstr(err.text, i == 1 ? "close epoch" : steps[i]));
        assert_false(guest.suspended);
        assert_true(i == 0 || strstr(guest.calls, "resume "));
        assert_int_equal(engine.pacer.taken, number);
        guest.fails = NULL;
        disconnect_pair();
        assert_int_equal(port.released, number - 1);

        connect_pair(number - 1);
        write_page(100);
        checkpoint();
        assert_int_equal(take_checkpoint(&pages), number + 1);
        assert_int_equal(pages, 2);
        assert_memory_equal(replica, guest.memory, sizeof(replica));
        acknowledge(number + 1);
    }
    disconnect_pair();
}

/* It fails with others on their way: those are acknowledged and released, that one never. */
static void r1_r4_a_checkpoint_that_fails_behind_another(void **state)
{
    struct error err;

    (void)state;
    connect_pair(0);
    checkpoint();
    guest.fails = "state";
    assert_int_equal(engine_checkpoint(&engine, true, &err), -1);
    assert_int_equal(take_checkpoint(NULL), 1);
    acknowledge(1);
    assert_int_equal(engine.pacer.taken, 2);
    engine_end_link(&engine, LINK_LOST, "done");
    assert_int_equal(take_checkpoint(NULL), 0);
    disconnect_pair();
    assert_int_equal(port.released, 1);
}

/* Several are encoded at a time; what the status says of them is what came. */
static void r2_pages_in_many_blocks(void **state)
{
    static const unsigned counts[] = {1, PAGE_BLOCK_MAX - 1, PAGE_BLOCK_MAX, PAGE_BLOCK_MAX + 1, 3 * PAGE_BLOCK_MAX,
                                      3 * PAGE_BLOCK_MAX + 1, PAGES};
    const struct engine_stats *s = &engine.stats;
    uint64_t pages, all = 0;

    (void)state;
    connect_pair(0);
    for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); i++) {
        for (unsigned pfn = 0; pfn < counts[i]; pfn++)
            write_page(pfn);
        checkpoint();
        assert_int_equal(take_checkpoint(&pages), i + 1);
        assert_int_equal(pages, counts[i]);
        assert_memory_equal(replica, guest.memory, sizeof(replica));
        acknowledge(i + 1);
        all += pages;
    }
    disconnect_pair();
    assert_true(s->raw[0] == all * PAGE_SIZE && s->raw[1] == 0);
    assert_true(s->sent[0] == received[0] && s->sent[1] == 0);
    assert_int_equal(s->codec.bytes_in, s->raw[0]);
    assert_true(s->encode_ns > 0);
}

/* The operator's choice stays; auto takes what makes less of it when the link is slow. */
static void codec_that_was_configured(void **state)
{
    static const struct {
        const char *compression;
        unsigned first, last;
    } cases[] = {{"off", 0, 0}, {"lz4", 1, 1}, {"zstd", 2, 2}, {"auto", 1, 2}};
    static struct vm_config cfg;
    struct error err;

    (void)state;
    cfg = *engine.cfg;
    rate = 1; /* so slow that however busy the processors are it is the link that is waited for */
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        cfg.compression = (char *)cases[i].compression;
        engine_free(&engine);
        engine_init(&engine, &cfg);
        assert_int_equal(engine_open(&engine, &guest.vm, &port.port, &err), 0);
        connect_pair(0);
        for (uint64_t n = 1; n <= 30; n++) {
            for (unsigned pfn = 0; pfn < 16; pfn++) {
                for (unsigned at = 0; at < PAGE_SIZE; at++)
                    guest.memory[pfn * PAGE_SIZE + at] = "checkpoint"[(at * n + at / 100) % 11];
                write_page(pfn);
            }
            checkpoint();
            assert_int_equal(take_checkpoint(NULL), n);
            assert_true(n > 1 || coding == cases[i].first);
            acknowledge(n);
        }
        assert_int_equal(coding, cases[i].last);
        disconnect_pair();
    }
    rate = 0;
}

static void r2_what_was_in_flight_comes_again(void **state)
{
    uint64_t pages;

    (void)state;
    connect_pair(0);
    write_page(1);
    checkpoint();
    assert_int_equal(take_checkpoint(NULL), 1);
    acknowledge(1);
    write_page(2);
    checkpoint();
    write_page(3);
    checkpoint();
    disconnect_pair();

    connect_pair(1);
    write_page(4);
    checkpoint();
    assert_int_equal(take_checkpoint(&pages), 4);
    assert_int_equal(pages, 3);
    acknowledge(4);
    disconnect_pair();

    connect_pair(0); /* a backup that has nothing: all that was ever written */
    memset(replica, 0, sizeof(replica));
    checkpoint();
    assert_int_equal(take_checkpoint(&pages), 5);
    assert_int_equal(pages, 4);
    assert_memory_equal(replica, guest.memory, sizeof(replica));
    disconnect_pair();
}

static void r1_acknowledgements_of_what_is_not_in_flight(void **state)
{
    static const struct {
        unsigned taken;
        uint64_t acked, wrong;
    } cases[] = {{0, 0, 0}, {0, 0, 1}, {1, 0, 2}, {1, 1, 1}, {2, 1, 1}, {2, 2, 1}, {2, 1, 3}, {2, 0, UINT64_MAX}, {2, 2, 0}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        uint64_t base = engine.pacer.taken;

        connect_pair(0);
        port.releases = 0;
        for (unsigned j = 0; j < cases[i].taken; j++) {
            checkpoint();
            assert_int_equal(take_checkpoint(NULL), base + j + 1);
        }
        if (cases[i].acked)
            acknowledge(base + cases[i].acked);
        assert_int_equal(link_send_empty(backup, PROTO_ACK, base + cases[i].wrong), 0);
        assert_int_equal(ended("in flight"), LINK_LOST);
        disconnect_pair();
        assert_int_equal(port.releases, cases[i].acked != 0);
    }
}

static void send_notice(enum proto_type type)
{
    assert_int_equal(link_send_notice(backup, type, 0, "words"), 0);
}

static void r10_what_else_a_backup_says(void **state)
{
    static const struct {
        enum proto_type type;
        bool notice;
        enum link_end end;
        const char *says;
    } cases[] = {
        {PROTO_ACTIVATED, false, LINK_PEER_ACTIVE, "runs the VM since checkpoint 7"},
        {PROTO_GOODBYE, true, LINK_GOODBYE, "backup memory: words"},
        {PROTO_REFUSE, true, LINK_LOST, "backup memory: words"},
        {PROTO_GOODBYE, false, LINK_LOST, "malformed"}, /* no confirmation (R7) */
        {PROTO_COMPARED, false, LINK_LOST, "without disks"},
        {PROTO_HANDOVER, false, LINK_LOST, "HANDOVER record from a backup"},
        {PROTO_WELCOME, false, LINK_LOST, "WELCOME record from a backup"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        connect_pair(0);
        checkpoint();
        assert_int_equal(link_send_empty(backup, PROTO_HEARTBEAT, 0), 0); /* means nothing */
        if (cases[i].notice)
            send_notice(cases[i].type);
        else
            assert_int_equal(link_send_empty(backup, cases[i].type, 7), 0);
        assert_int_equal(ended(cases[i].says), cases[i].end);
        engine_end_link(&engine, LINK_GOODBYE, "the first reason counts");
        assert_int_equal(ended(cases[i].says), cases[i].end);
        disconnect_pair();
        assert_int_equal(port.releases, 0);
    }
}

static void r7_a_backup_that_closes_or_says_nothing(void **state)
{
    struct vm_config cfg = *engine.cfg;

    (void)state;
    connect_pair(0);
    link_shutdown(backup);
    assert_int_equal(ended("closed the connection"), LINK_LOST);
    disconnect_pair();
    cfg.timeout_ms = 50;
    engine.cfg = &cfg;
    connect_pair(0);
    assert_int_equal(ended("silent for 50 ms"), LINK_LOST);
    disconnect_pair();
}

/* It is sent ahead as long as that helps; the pause finds the rest. */
static void precopy_ends_where_it_is_of_no_use(void **state)
{
    static const struct {
        unsigned busy, scans;
        bool calms;
    } cases[] = {
        {1024, 1, true},   /* few enough at once */
        {1025, 2, true},   /* or then */
        {PAGES, 2, false}, /* it gets no better */
        {PAGES, 12, true}, /* it does, too slowly */
    };
    struct error err;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        uint64_t next = engine.pacer.taken + 1;

        connect_pair(0);
        guest.busy = cases[i].busy;
        guest.calms = cases[i].calms;
        guest.scans = 0;
        assert_int_equal(engine_precopy(&engine, &err), 0);
        assert_int_equal(guest.scans, cases[i].scans);
        guest.busy = guest.calms = 0;
        checkpoint();
        assert_int_equal(take_checkpoint(NULL), next);
        assert_memory_equal(replica, guest.memory, sizeof(replica));
        acknowledge(next);
        disconnect_pair();
        connect_pair(0); /* what only went ahead comes again for a backup that has nothing (R2) */
        memset(replica, 0, sizeof(replica));
        checkpoint();
        assert_int_equal(take_checkpoint(NULL), next + 1);
        assert_memory_equal(replica, guest.memory, sizeof(replica));
        disconnect_pair();
    }
    assert_true(engine.stats.sent[0] == received[0] && engine.stats.sent[1] == received[1]);
    assert_true(engine.stats.raw[1] > engine.stats.sent[1] && engine.stats.raw[1] % PAGE_SIZE == 0);
    connect_pair(0);
    guest.fails = "scan";
    assert_int_equal(engine_precopy(&engine, &err), -1);
    assert_non_null(strstr(err.text, "scan: no"));
    guest.fails = NULL;
    engine_end_link(&engine, LINK_LOST, "for the test");
    bitmap_set_range(&guest.written, 0, PAGES);
    assert_int_equal(engine_precopy(&engine, &err), -1);
    assert_non_null(strstr(err.text, "link ended"));
    disconnect_pair();
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(r8_what_happens_in_the_pause),
        TEST(r2_r4_r8_a_checkpoint_that_fails_half_way),
        TEST(r1_r4_a_checkpoint_that_fails_behind_another),
        TEST(r2_pages_in_many_blocks),
        TEST(codec_that_was_configured),
        TEST(r2_what_was_in_flight_comes_again),
        TEST(r1_acknowledgements_of_what_is_not_in_flight),
        TEST(r10_what_else_a_backup_says),
        TEST(r7_a_backup_that_closes_or_says_nothing),
        TEST(precopy_ends_where_it_is_of_no_use),
    };

    return cmocka_run_group_tests_name("checkpoint", tests, NULL, NULL);
}
