/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The order of a takeover: the guest runs, its network is announced, and only then comes what can wait (vm/vm.h, settle). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "backup/standby-impl.h"
#include "common/run-file.h"
#include "records.h"

#define PAGES 4u

static char done[64]; /* what was called, in order */
static bool fails;

static int note(const char *what)
{
    strncat(done, what, sizeof(done) - strlen(done) - 1);
    return 0;
}

static int activate(struct replica *r, const uint8_t *state, size_t len, struct error *err)
{
    (void)r;
    assert_int_equal(len, 5);
    assert_memory_equal(state, "state", 5);
    return fails ? error_set(err, "no") : note("runs ");
}

static void settle(struct replica *r)
{
    (void)r;
    note("settles ");
}

static void close_replica(struct replica *r)
{
    (void)r;
    note("closed ");
}

static int announce(struct port *p, const uint8_t *net, size_t len, struct error *err)
{
    (void)p;
    (void)err;
    assert_int_equal(len, 3);
    assert_memory_equal(net, "net", 3);
    return note("announced ");
}

static void close_port(struct port *p)
{
    (void)p;
}

static const struct replica_ops replica_ops = {.name = "noted", .activate = activate, .settle = settle, .close = close_replica};
static const struct port_ops port_ops = {.name = "noted", .activate = announce, .close = close_port};

/* A standby that holds checkpoint 1. */
static void take_over(struct standby *s, const struct vm_config *cfg)
{
    static uint8_t memory[PAGES * 4096], guest[PAGES * 4096];
    struct replica replica = {&replica_ops, memory, PAGES};
    struct port port = {&port_ops};
    struct records out = {0};
    struct error err;
    bool whole = false;

    *s = (struct standby){.cfg = cfg, .section = cfg, .replica = &replica, .port = &port, .session = 1};
    s->receiver = receiver_new(memory, PAGES, sizeof(memory));
    assert_non_null(s->receiver);
    receiver_start(s->receiver, START_ANEW);
    memset(guest, 7, sizeof(guest));
    records_init(&out, PAGES, PAGE_CODEC_LZ4);
    records_pages(&out, 1, guest, (uint64_t[]){0, 1, 2, 3}, PAGES);
    records_blob(&out, PROTO_STATE, 1, "state", 5);
    records_blob(&out, PROTO_NET, 1, "net", 3);
    records_end(&out, 1);
    for (size_t i = 0; i < out.count; i++)
        whole = receiver_record(s->receiver, &out.list[i], &err) == RECEIVER_WHOLE;
    assert_true(whole);
    receiver_apply(s->receiver);
    records_free(&out);
    detector_init(&s->detector, false, true, 0);
    done[0] = '\0';
    standby_take_over(s);
    receiver_free(s->receiver);
}

static void network_comes_before_what_can_wait(void **state)
{
    char folder[] = "/tmp/remus-takeover-XXXXXX", *run_dir = mkdtemp(folder);
    struct vm_config cfg = {.name = "v", .run_dir = run_dir, .vif = (char *)""};
    struct standby s;

    (void)state;
    assert_non_null(run_dir);
    take_over(&s, &cfg);
    assert_string_equal(done, "runs announced settles ");
    assert_int_equal(s.detector.state, DT_ACTIVE);
    fails = true;
    take_over(&s, &cfg);
    assert_string_equal(done, "closed "); /* what does not run announces nothing (R7) */
    run_file_remove(&cfg, ".active");
    run_file_remove(&cfg, ".net");
    assert_int_equal(rmdir(run_dir), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(network_comes_before_what_can_wait),
    };

    return cmocka_run_group_tests_name("takeover", tests, NULL, NULL);
}
