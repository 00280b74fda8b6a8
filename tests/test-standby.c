/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a backup lets a primary do, record by record: the test speaks for the primary, the replica only notes what
 * becomes of it.
 *
 *   R2, R4  which checkpoint is held, through reconnects and what is sent anew
 *   R7      only a checkpoint that is held is handed over or taken over; once it runs here, no primary's word counts
 *   R10     what makes no sense is refused, and changes nothing
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "backup/standby-impl.h"
#include "common/clock.h"
#include "common/run-file.h"
#include "records.h"

#define PAGES 8u
#define HANG_S 60
#define SESSION 77
#define OTHER 78

static struct noted {
    struct replica replica;
    uint8_t memory[PAGES * PAGE_SIZE];
    _Atomic unsigned opened, closed, activated;
    _Atomic enum vm_health health;
    _Atomic bool runs; /* a guest that a daemon before this one activated */
    char state[8];
    uint8_t committed; /* of the checkpoint that it was told of last */
    char committed_state[8];
} noted;

static struct vm_config cfg;
static char folder[32];
static struct standby *standby;
static struct link *primary;
static struct records records;
static const char *profile; /* of the primary's machine */
static size_t made; /* where the last checkpoint begins in them */
static uint8_t guest[PAGES * PAGE_SIZE];

/* --- the platform, in place of vm/platform.c --- */

static int replica_open(struct replica **r, const struct vm_config *c, uint64_t pages, const char *machine,
                        const struct buffer *description, struct error *err)
{
    (void)c;
    (void)description;
    if (strcmp(machine, "noted") != 0)
        return error_set(err, "profile %s", machine);
    memset(noted.memory, 0, sizeof(noted.memory));
    *r = &noted.replica;
    assert_int_equal(pages, PAGES);
    noted.opened++;
    return 0;
}

static int replica_activate(struct replica *r, const uint8_t *state, size_t len, struct error *err)
{
    (void)r;
    (void)err;
    memcpy(noted.state, state, len < sizeof(noted.state) ? len : sizeof(noted.state) - 1);
    noted.activated++;
    return 0;
}

static enum vm_health replica_health(struct replica *r)
{
    (void)r;
    return noted.health;
}

static void replica_committed(struct replica *r, const uint8_t *state, size_t len)
{
    (void)len;
    noted.committed = r->memory[PAGE_SIZE];
    noted.committed_state[0] = (char)state[0];
}

static void replica_close(struct replica *r)
{
    (void)r;
    noted.closed++;
}

static bool runs(const struct vm_config *c)
{
    (void)c;
    return noted.runs;
}

static const struct replica_ops noted_ops = {.name = "noted", .open = replica_open, .committed = replica_committed,
                                             .activate = replica_activate, .health = replica_health, .close = replica_close};
static const struct vm_ops vm_noted = {.name = "noted", .running = runs};

const struct vm_ops *vm_platform(const char *name)
{
    return strcmp(name, "noted") == 0 ? &vm_noted : NULL;
}

const struct replica_ops *replica_platform(const char *name)
{
    return strcmp(name, "noted") == 0 ? &noted_ops : NULL;
}

int vm_adopt(const char *run_dir, const char *name, const char **platform, uint64_t *memory_bytes, struct error *err)
{
    (void)run_dir;
    (void)name;
    (void)platform;
    (void)memory_bytes;
    return error_set(err, "no");
}

int vm_net_paths(const struct vm_config *c, char net_guest[108], char net_port[108])
{
    (void)c;
    *net_guest = *net_port = '\0';
    return 0;
}

int vm_disk_path(const struct vm_config *c, char path[108])
{
    (void)c;
    *path = '\0';
    return 0;
}

/* --- the primary --- */

static void start(void)
{
    struct error err;

    standby = standby_start(&cfg, &err);
    assert_non_null(standby);
}

static int setup(void **state)
{
    (void)state;
    alarm(HANG_S);
    noted = (struct noted){.replica = {.ops = &noted_ops, .memory = noted.memory, .pages = PAGES}};
    strcpy(folder, "/tmp/remus-standby-XXXXXX");
    assert_non_null(mkdtemp(folder));
    cfg = (struct vm_config){.name = "v", .run_dir = folder, .platform = (char *)"noted", .memory_bytes = PAGES * PAGE_SIZE,
                             .arbiter = (char *)"", .tap = (char *)"", .mac = (char *)"", .vif = (char *)"",
                             .guest_bridge = (char *)"", .services = (char *)"",
                             .takeover = TAKEOVER_AUTOMATIC};
    records_init(&records, PAGES, PAGE_CODEC_LZ4);
    profile = "noted";
    start();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    link_free(primary);
    primary = NULL;
    standby_stop(standby);
    records_free(&records);
    run_file_remove(&cfg, ".active");
    run_file_remove(&cfg, ".net");
    assert_int_equal(rmdir(folder), 0);
    alarm(0);
    return 0;
}

static struct view view(void)
{
    struct view v;

    pthread_mutex_lock(&standby->lock);
    v = standby->published;
    pthread_mutex_unlock(&standby->lock);
    return v;
}

static void wait_for(enum detector_state state)
{
    while (view().state != state)
        usleep(500);
}

static void hang_up(void)
{
    link_free(primary);
    primary = NULL;
}

/* Not heartbeats. */
static enum proto_type hear(struct record *rec)
{
    struct error err;

    do
        if (link_recv(primary, rec, TIME_NEVER, &err) != LINK_RECORD)
            return 0;
    while (rec->type == PROTO_HEARTBEAT);
    return rec->type;
}

/* HELLO.  0 and *committed, or the refusal's code. */
static int dial(uint64_t session, uint32_t flags, uint64_t *committed)
{
    struct proto_hello hello = {.version_min = PROTO_VERSION_MIN, .version_max = PROTO_VERSION_MAX, .session = session,
                                .flags = flags, .pages = PAGES, .page_size = PAGE_SIZE, .heartbeat_ms = 20,
                                .timeout_ms = 30000, .vm = "v", .platform = "noted"};
    struct proto_welcome welcome;
    struct proto_notice notice;
    struct chan *ends[2];
    struct record rec;
    struct error err;

    strcpy(hello.profile, profile);
    assert_int_equal(mem_chan_pair(ends, 1 << 20), 0);
    hang_up();
    primary = link_new(ends[0]);
    assert_non_null(primary);
    standby_offer(standby, link_new(ends[1]), &hello);
    records_restart(&records);
    if (hear(&rec) == PROTO_WELCOME) {
        assert_int_equal(proto_get_welcome(&welcome, rec.body, rec.length, &err), 0);
        *committed = welcome.committed;
        return 0;
    }
    assert_int_equal(rec.type, PROTO_REFUSE);
    assert_int_equal(proto_get_notice(&notice, rec.body, rec.length, &err), 0);
    return notice.code;
}

/* That it is welcome, and seen in the status; what is held. */
static uint64_t connect_primary(uint32_t flags)
{
    uint64_t committed = UINT64_MAX;

    assert_int_equal(dial(SESSION, flags, &committed), 0);
    while (view().state != DT_SYNCING && view().state != DT_READY)
        usleep(500);
    return committed;
}

/* Of what was made last, all but so many records. */
static void send_but(size_t left_out)
{
    for (size_t i = made; i < records.count - left_out; i++) {
        struct iovec iov = {(void *)records.list[i].body, records.list[i].length};

        assert_int_equal(link_send(primary, records.list[i].type, records.list[i].epoch, &iov, 1), 0);
    }
}

/* One page, whose content is the checkpoint's number, and a state that says it too.  epoch 0: the page alone. */
static void make_checkpoint(uint64_t epoch, uint8_t content)
{
    char state[] = {(char)('0' + content), '\0'};

    memset(guest, content, sizeof(guest));
    made = records.count;
    records_pages(&records, epoch, guest, (uint64_t[]){1}, 1);
    if (!epoch)
        return;
    records_blob(&records, PROTO_STATE, epoch, state, sizeof(state));
    records_blob(&records, PROTO_NET, epoch, "net", 3);
    records_end(&records, epoch);
}

static void commit(uint64_t epoch)
{
    struct record rec;

    make_checkpoint(epoch, (uint8_t)epoch);
    send_but(0);
    assert_int_equal(hear(&rec), PROTO_ACK);
    assert_int_equal(rec.epoch, epoch);
    while (view().epoch != epoch)
        usleep(500);
    assert_int_equal(noted.committed, epoch);
    assert_int_equal(noted.committed_state[0], '0' + (char)epoch);
}

/* On the first link of a test. */
static void wait_until_heard(void)
{
    while (view().bytes < link_bytes_sent(primary))
        usleep(500);
}

/* The link ends with a REFUSE of this kind. */
static void expect_refusal(enum proto_type with, int code)
{
    struct proto_notice notice;
    struct record rec;
    struct error err;

    assert_int_equal(hear(&rec), with);
    assert_int_equal(proto_get_notice(&notice, rec.body, rec.length, &err), 0);
    assert_int_equal(notice.code, code);
    assert_int_equal(hear(&rec), 0);
}

static void expect_takeover(char checkpoint)
{
    wait_for(DT_ACTIVE);
    assert_int_equal(noted.activated, 1);
    assert_int_equal(noted.state[0], checkpoint);
    assert_int_equal(noted.memory[PAGE_SIZE], checkpoint - '0');
    assert_int_equal(view().takeover.epoch, checkpoint - '0');
}

/* Until the operator says so. */
static void without_takeover(void)
{
    standby_stop(standby);
    cfg.takeover = TAKEOVER_MANUAL;
    start();
}

/* --- tests --- */

static void r4_r7_a_link_that_breaks(void **state)
{
    (void)state;
    assert_int_equal(connect_primary(0), 0);
    wait_for(DT_SYNCING);
    hang_up();
    wait_for(DT_WAITING); /* nothing whole: nothing to take over */
    assert_int_equal(noted.opened, noted.closed);
    assert_int_equal(connect_primary(0), 0);
    commit(1);
    commit(2);
    make_checkpoint(3, 3);
    send_but(1); /* all but its END */
    hang_up();
    expect_takeover('2');
}

static void r7_a_goodbye_is_no_failure(void **state)
{
    struct record rec;

    (void)state;
    connect_primary(0);
    commit(1);
    assert_int_equal(link_send_notice(primary, PROTO_GOODBYE, 0, "bye"), 0);
    assert_int_equal(hear(&rec), PROTO_GOODBYE);
    assert_int_equal(hear(&rec), 0);
    wait_for(DT_WAITING);
    assert_int_equal(noted.closed, 1);
    assert_int_equal(noted.activated, 0);
}

/* Whoever waits for a takeover must be able to run: else the guest counts as protected, and is lost. */
static void r7_a_replica_that_dies_while_it_waits(void **state)
{
    (void)state;
    connect_primary(0);
    commit(1);
    noted.health = VM_DIED;
    expect_refusal(PROTO_REFUSE, REFUSE_RESOURCES);
    wait_for(DT_WAITING);
    assert_non_null(strstr(view().last_error, "died"));
    assert_int_equal(noted.closed, 1);
    noted.health = VM_ALIVE;
    assert_int_equal(connect_primary(0), 0); /* all anew */
    commit(2);
    hang_up();
    expect_takeover('2');
    assert_int_equal(noted.opened, 2);
}

static void r7_handover_of_what_is_held(void **state)
{
    struct record rec;

    (void)state;
    connect_primary(0);
    commit(1);
    commit(2);
    assert_int_equal(link_send_empty(primary, PROTO_HANDOVER, 2), 0);
    assert_int_equal(hear(&rec), PROTO_ACTIVATED);
    assert_int_equal(rec.epoch, 2);
    expect_takeover('2');
    /* From here on it runs here, whatever the old primary says. */
    make_checkpoint(3, 3);
    send_but(0);
    wait_until_heard();
    assert_int_equal(noted.memory[PAGE_SIZE], 2);
    assert_int_equal(link_send_notice(primary, PROTO_GOODBYE, 0, "bye"), 0);
    assert_int_equal(link_send_empty(primary, PROTO_HANDOVER, 9), 0);
    wait_until_heard();
    hang_up();
    for (uint64_t session = SESSION; session <= OTHER; session++)
        assert_int_equal(dial(session, 0, &(uint64_t){0}), REFUSE_ACTIVE);
    assert_int_equal(view().state, DT_ACTIVE);
    assert_int_equal(noted.activated, 1);
    assert_int_equal(noted.closed, 0);
    assert_int_equal(noted.memory[PAGE_SIZE], 2);
}

static void r7_handover_of_what_is_not_held(void **state)
{
    static const uint64_t wrong[] = {0, 3, UINT64_MAX};

    (void)state;
    without_takeover();
    connect_primary(0);
    assert_int_equal(link_send_empty(primary, PROTO_HANDOVER, 1), 0);
    expect_refusal(PROTO_REFUSE, REFUSE_PROTOCOL); /* there is nothing at all */
    wait_for(DT_WAITING);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
        uint64_t held = connect_primary(0);

        if (!held)
            commit(1);
        commit(2 * (i + 1));
        assert_int_equal(link_send_empty(primary, PROTO_HANDOVER, wrong[i] == 3 ? 2 * (i + 1) + 1 : wrong[i]), 0);
        expect_refusal(PROTO_REFUSE, REFUSE_PROTOCOL);
        wait_for(DT_SUSPECT); /* that primary has lost its mind, but may still run the guest */
    }
    connect_primary(HELLO_RESYNC | HELLO_HELD);
    assert_int_equal(link_send_empty(primary, PROTO_HANDOVER, 2), 0); /* while memory is another */
    expect_refusal(PROTO_REFUSE, REFUSE_PROTOCOL);
    wait_for(DT_SUSPECT);
    assert_int_equal(noted.activated, 0);
}

static void r2_r4_the_same_session_comes_back(void **state)
{
    (void)state;
    without_takeover();
    connect_primary(0);
    commit(1);
    make_checkpoint(2, 2);
    send_but(3);
    assert_int_equal(connect_primary(0), 1); /* on a new link, before the old one is missed */
    commit(3);
    assert_int_equal(noted.opened, 1);

    /* All is sent anew, over a checkpoint that still counts: a page of it comes, and the link breaks. */
    assert_int_equal(connect_primary(HELLO_RESYNC | HELLO_HELD), 0);
    while (!view().keeps)
        usleep(500);
    make_checkpoint(0, 7);
    send_but(0);
    hang_up();
    wait_for(DT_SUSPECT);
    assert_int_equal(view().epoch, 3);
    assert_true(view().keeps);
    assert_int_equal(connect_primary(HELLO_HELD), 0); /* memory is not checkpoint 3: no going on from there */
    make_checkpoint(0, 8);
    send_but(0);
    hang_up();
    wait_for(DT_SUSPECT);
    assert_int_equal(standby_takeover(standby, &(struct error){""}), 0);
    expect_takeover('3');
}

/* Of the pages that are overwritten only so many can be kept: when there are more, there is nothing to take over (R9). */
static void r4_r7_more_than_can_be_kept(void **state)
{
    (void)state;
    without_takeover();
    connect_primary(0);
    commit(1);
    assert_int_equal(connect_primary(HELLO_RESYNC | HELLO_HELD), 0);
    wait_for(DT_READY);
    memset(guest, 7, sizeof(guest));
    made = records.count;
    records_pages(&records, 0, guest, (uint64_t[]){0, 1, 2, 3}, PAGES / 2);
    send_but(0);
    wait_for(DT_SYNCING);
    assert_int_equal(view().epoch, 0);
    assert_int_equal(standby_takeover(standby, &(struct error){""}), -1);
    assert_int_equal(link_send_empty(primary, PROTO_HANDOVER, 1), 0);
    expect_refusal(PROTO_REFUSE, REFUSE_PROTOCOL);
    wait_for(DT_WAITING);
    assert_int_equal(noted.closed, noted.opened);
    assert_int_equal(noted.activated, 0);
}

/* What was prepared for it goes, and the next one is welcome. */
static void r10_a_machine_that_cannot_be_here(void **state)
{
    uint64_t committed;

    (void)state;
    profile = "another";
    assert_int_equal(dial(SESSION, 0, &committed), REFUSE_RESOURCES);
    assert_int_equal(view().state, DT_WAITING);
    profile = "noted";
    assert_int_equal(dial(OTHER, 0, &committed), 0);
    assert_int_equal(committed, 0);
}

static void r1_r7_a_checkpoint_that_counts_no_more(void **state)
{
    (void)state;
    without_takeover();
    connect_primary(0);
    commit(1);
    assert_int_equal(connect_primary(HELLO_RESYNC), 0); /* output has left since: it is void */
    wait_for(DT_SYNCING);
    assert_int_equal(noted.opened, 2);
    assert_int_equal(noted.closed, 1);
    hang_up();
    wait_for(DT_WAITING);
    assert_int_equal(standby_takeover(standby, &(struct error){""}), -1);
}

static void r7_another_session(void **state)
{
    struct link *first;
    uint64_t committed;

    (void)state;
    without_takeover();
    connect_primary(0);
    commit(1);
    first = primary;
    primary = NULL;
    assert_int_equal(dial(OTHER, 0, &committed), REFUSE_BUSY);
    assert_int_equal(view().state, DT_READY);
    hang_up();
    primary = first;
    commit(2);
    hang_up();
    wait_for(DT_SUSPECT);
    assert_int_equal(dial(OTHER, 0, &committed), REFUSE_BUSY);
    assert_int_equal(view().state, DT_SUSPECT);
    assert_int_equal(standby_discard(standby, &(struct error){""}), 0);
    wait_for(DT_WAITING);
    assert_int_equal(noted.closed, 1);
    assert_int_equal(dial(OTHER, 0, &committed), 0);
    assert_int_equal(committed, 0);
}

/* What a daemon that comes later knows of a guest that was activated here, and of the one that the primary still has. */
static void r7_a_guest_that_ran_here(void **state)
{
    uint64_t committed;
    char path[64];
    FILE *f;

    (void)state;
    connect_primary(0);
    commit(1);
    hang_up();
    expect_takeover('1');
    assert_int_equal(dial(OTHER, 0, &committed), REFUSE_ACTIVE);
    standby_stop(standby);
    noted.runs = true;
    start();
    wait_for(DT_ACTIVE);
    assert_int_equal(dial(SESSION, 0, &committed), REFUSE_ACTIVE);
    standby_stop(standby);
    noted.runs = false; /* its host was started anew, say */
    for (int i = 0; i < 2; i++) {
        start();
        assert_int_equal(dial(SESSION, 0, &committed), REFUSE_ACTIVE);
        assert_int_equal(view().state, DT_WAITING);
        standby_stop(standby);
    }
    run_path(&cfg, ".active", path, sizeof(path));
    f = fopen(path, "we");
    assert_non_null(f);
    fclose(f); /* whatever it said */
    noted.runs = true;
    start();
    wait_for(DT_ACTIVE);
    assert_int_equal(dial(OTHER, 0, &committed), REFUSE_ACTIVE);
}

static void r7_a_guest_that_ends_here(void **state)
{
    uint64_t committed;

    (void)state;
    connect_primary(0);
    commit(1);
    hang_up();
    expect_takeover('1');
    noted.health = VM_SHUT_DOWN;
    wait_for(DT_WAITING);
    assert_int_equal(dial(SESSION, 0, &committed), REFUSE_ACTIVE); /* what the primary holds is out of date for ever */
    assert_int_equal(dial(OTHER, 0, &committed), 0);
    noted.health = VM_ALIVE;
    assert_int_equal(noted.activated, 1);
}

static void r10_a_primary_that_makes_no_sense(void **state)
{
    (void)state;
    without_takeover();
    connect_primary(0);
    commit(1);
    assert_int_equal(link_send_empty(primary, PROTO_WELCOME, 0), 0);
    expect_refusal(PROTO_REFUSE, REFUSE_PROTOCOL);
    wait_for(DT_SUSPECT);
    assert_int_equal(connect_primary(0), 1);
    assert_int_equal(link_send_empty(primary, PROTO_GOODBYE, 0), 0); /* without its words: is it one? */
    expect_refusal(PROTO_REFUSE, REFUSE_PROTOCOL);
    wait_for(DT_SUSPECT);
    assert_int_equal(connect_primary(0), 1);
    commit(2);
    make_checkpoint(2, 9); /* a number that was there */
    send_but(3);
    expect_refusal(PROTO_REFUSE, REFUSE_PROTOCOL);
    wait_for(DT_SUSPECT);
    assert_int_equal(connect_primary(0), 2);
    assert_int_equal(noted.memory[PAGE_SIZE], 2);
}

static void r10_hellos_at_their_limits(void **state)
{
    static const struct proto_hello good = {.session = 1, .pages = PAGES, .page_size = PAGE_SIZE, .heartbeat_ms = 20,
                                            .timeout_ms = 200, .platform = "noted"};
    static const struct {
        uint64_t session, pages;
        uint32_t page_size, heartbeat_ms, timeout_ms;
        bool ok;
    } cases[] = {
        {1, 1, PAGE_SIZE, 1, 2, true},
        {1, UINT64_MAX / 2 / PAGE_SIZE, PAGE_SIZE, 10000, 600000, true},
        {0, 1, PAGE_SIZE, 20, 200, false},
        {1, 0, PAGE_SIZE, 20, 200, false},
        {1, UINT64_MAX / 2 / PAGE_SIZE + 1, PAGE_SIZE, 20, 200, false},
        {1, 1, PAGE_SIZE / 2, 20, 200, false},
        {1, 1, PAGE_SIZE * 2, 20, 200, false},
        {1, 1, PAGE_SIZE, 0, 200, false},
        {1, 1, PAGE_SIZE, 10001, 20000, false},
        {1, 1, PAGE_SIZE, 20, 20, false},
        {1, 1, PAGE_SIZE, 20, 600001, false},
    };
    struct proto_hello h = good;
    struct error err;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        h.session = cases[i].session;
        h.pages = cases[i].pages;
        h.page_size = cases[i].page_size;
        h.heartbeat_ms = cases[i].heartbeat_ms;
        h.timeout_ms = cases[i].timeout_ms;
        assert_int_equal(standby_check_hello(&h, &err), cases[i].ok ? 0 : REFUSE_PROTOCOL);
    }
    h = good;
    h.required = UINT64_C(1) << 40;
    assert_int_equal(standby_check_hello(&h, &err), REFUSE_FEATURE);
    h.required = FEATURES_KNOWN;
    assert_int_equal(standby_check_hello(&h, &err), 0);
    assert_int_equal(standby_check_machine(&cfg, &h, &err), 0);
    h.pages++;
    assert_int_equal(standby_check_machine(&cfg, &h, &err), REFUSE_PROFILE);
    h.features = FEATURE_MACHINE; /* its description tells */
    assert_int_equal(standby_check_machine(&cfg, &h, &err), 0);
    strcpy(h.platform, "other");
    assert_int_equal(standby_check_machine(&cfg, &h, &err), REFUSE_PROFILE);
    h.disk_count = 1;
    assert_int_equal(standby_check_disk_count(&cfg, &h, &err), REFUSE_PROFILE);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(r4_r7_a_link_that_breaks),
        TEST(r7_a_goodbye_is_no_failure),
        TEST(r7_a_replica_that_dies_while_it_waits),
        TEST(r7_handover_of_what_is_held),
        TEST(r7_handover_of_what_is_not_held),
        TEST(r2_r4_the_same_session_comes_back),
        TEST(r4_r7_more_than_can_be_kept),
        TEST(r10_a_machine_that_cannot_be_here),
        TEST(r1_r7_a_checkpoint_that_counts_no_more),
        TEST(r7_another_session),
        TEST(r7_a_guest_that_ran_here),
        TEST(r7_a_guest_that_ends_here),
        TEST(r10_a_primary_that_makes_no_sense),
        TEST(r10_hellos_at_their_limits),
    };

    return cmocka_run_group_tests_name("standby", tests, NULL, NULL);
}
