/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A takeover step by step, and a remus-backupd that starts when one before it has taken the VM over.
 *
 *   R3  no packet of the guest passes without the list of connections to reset
 *   R5  the guest runs from images that have all of the checkpoint, and are the valid ones
 *   R7  whoever comes after a crash knows of the guest before it can run; the primary hears how it ended
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "backup/standby-impl.h"
#include "common/clock.h"
#include "common/run-file.h"
#include "disk/image.h"
#include "disk/queue.h"
#include "disk/server.h"
#include "records.h"

#define PAGES 4u
#define DISK_SIZE (1u << 20)

static char folder[32], images[2][64], *image_list[] = {images[0], images[1]};
static struct vm_config cfg;
static struct {
    char done[64];  /* what was called, in order */
    bool fails;     /* the replica does not start */
    bool net_fails; /* the network state is of no use */
    bool vanished;  /* the primary */
    bool no_port, runs;
    struct vm_facts facts;
    bool facts_fail;
} host;
static struct queue disk_queue;
static struct link *primary; /* its end */

static int note(const char *what)
{
    strncat(host.done, what, sizeof(host.done) - strlen(host.done) - 1);
    return 0;
}

static const char *content(const char *suffix)
{
    static char text[64];
    char path[PATH_MAX];
    FILE *f;

    run_path(&cfg, suffix, path, sizeof(path));
    f = fopen(path, "re");
    if (!f)
        return "none";
    text[fread(text, 1, sizeof(text) - 1, f)] = '\0';
    fclose(f);
    return text;
}

static void write_content(const char *suffix, const char *text)
{
    assert_int_equal(run_file_write(&cfg, suffix, text, strlen(text), &(struct error){""}), 0);
}

static struct image_record record_of(unsigned disk)
{
    struct image_record rec;

    assert_int_equal(image_read(images[disk], &rec, &(struct error){""}), 1);
    return rec;
}

/* --- the replica --- */

static int activate(struct replica *r, const uint8_t *state, size_t len, struct error *err)
{
    (void)r;
    assert_int_equal(len, 5);
    assert_memory_equal(state, "state", 5);
    assert_string_equal(content(".active"), "000000000000004d runs\n");
    assert_string_equal(content(".net"), "net");
    assert_string_equal(content(".guest"), "none");
    for (unsigned i = 0; i < cfg.disk_count; i++) {
        uint8_t octets[2];
        int fd = open(images[i], O_RDONLY | O_CLOEXEC);

        assert_int_equal(pread(fd, octets, 2, 4096), 2);
        close(fd);
        assert_true(octets[0] == 0xd0 + i && octets[1] == 0xd0 + i);
        assert_int_equal(record_of(i).role, IMAGE_VALID);
        assert_int_equal(record_of(i).epoch, 1);
        assert_true(queue_writable(&disk_queue));
    }
    return host.fails ? error_set(err, "no") : note("runs ");
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

static const struct replica_ops replica_ops = {.name = "noted", .activate = activate, .settle = settle, .close = close_replica};

/* --- the port, in place of netbuf/null-port.c --- */

static int announce(struct port *p, const uint8_t *net, size_t len, struct error *err)
{
    (void)p;
    if (host.net_fails)
        return error_set(err, "no network");
    assert_int_equal(len, 3);
    assert_memory_equal(net, "net", 3);
    return note("announced ");
}

static void pass(struct port *p)
{
    (void)p;
    note("passes ");
}

static void close_port(struct port *p)
{
    (void)p;
}

static const struct port_ops port_ops = {.name = "noted", .activate = announce, .pass = pass, .close = close_port};
static struct port port = {&port_ops};

struct port *null_port_new(void)
{
    return host.no_port ? NULL : &port;
}

/* --- the platform, in place of vm/platform.c --- */

static bool runs(const struct vm_config *c)
{
    (void)c;
    return host.runs;
}

static int facts(const struct vm_config *section, struct vm_facts *f, struct error *err)
{
    (void)section;
    *f = host.facts;
    return host.facts_fail ? error_set(err, "no facts") : 0;
}

static const struct vm_ops vm_noted = {.name = "noted", .running = runs};
static const struct vm_ops vm_with_facts = {.name = "facts", .running = runs, .facts = facts};

const struct vm_ops *vm_platform(const char *name)
{
    return strcmp(name, "facts") == 0 ? &vm_with_facts : &vm_noted;
}

const struct replica_ops *replica_platform(const char *name)
{
    (void)name;
    return &replica_ops;
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

uint64_t vm_memory_available(void)
{
    return UINT64_MAX;
}

/* --- the rig --- */

static int set_up(void **state)
{
    (void)state;
    alarm(60);
    memset(&host, 0, sizeof(host));
    strcpy(folder, "/tmp/remus-takeover-XXXXXX");
    assert_non_null(mkdtemp(folder));
    cfg = (struct vm_config){.name = "v", .run_dir = folder, .platform = (char *)"noted", .arbiter = (char *)"",
                             .tap = (char *)"", .mac = (char *)"", .vif = (char *)"", .guest_bridge = (char *)"",
                             .services = (char *)""};
    for (unsigned i = 0; i < 2; i++)
        snprintf(images[i], sizeof(images[i]), "%s/%u.img", folder, i);
    return 0;
}

static int tear_down(void **state)
{
    char command[64];

    (void)state;
    link_free(primary);
    primary = NULL;
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    alarm(0);
    return system(command);
}

static const struct disk_info infos[] = {{DISK_SIZE, 0xa}, {DISK_SIZE, 0xb}};

/* Two disks whose checkpoint 1 is in the journal. */
static struct journal *prepare_disks(void)
{
    uint8_t entry[2 * (ENTRY_HEAD + 16)];
    struct journal *j;
    struct error err;

    cfg.disks = image_list;
    cfg.disk_count = 2;
    if (journal_open(&j, image_list, infos, 2, 4 << 20, &err) < 0 || journal_begin(j, infos, START_ANEW, &err) < 0)
        fail_msg("%s", err.text);
    for (unsigned i = 0; i < 2; i++) {
        struct entry e = {ENTRY_WRITE, i, 2, 4096, (uint8_t[]){(uint8_t)(0xd0 + i), (uint8_t)(0xd0 + i)}, 0};

        entry_put(entry + i * sizeof(entry) / 2, &e);
    }
    if (journal_write(j, 1, entry, sizeof(entry), &err) < 0 || journal_end(j, 1001, &err) < 0 ||
        journal_commit(j, 1, &err) < 0)
        fail_msg("%s", err.text);
    return j;
}

static void serve_disks(void)
{
    char path[108];

    assert_int_equal(disk_queue_path(&cfg, path), 0);
    assert_int_equal(queue_create(&disk_queue, path, 1 << 20, 0, 1, false, &(struct error){""}), 0);
    queue_set_server(&disk_queue, 0);
}

/* A standby that holds checkpoint 1 takes it over. */
static void take_over(struct standby *s, struct journal *journal)
{
    static uint8_t memory[PAGES * 4096], guest[PAGES * 4096];
    struct replica replica = {.ops = &replica_ops, .memory = memory, .pages = PAGES};
    struct records out = {0};
    struct chan *ends[2];
    struct error err;
    bool whole = false;

    *s = (struct standby){.cfg = &cfg, .section = &cfg, .replica = &replica, .port = &port, .session = 77, .journal = journal};
    if (!host.vanished) {
        assert_int_equal(mem_chan_pair(ends, 1 << 16), 0);
        s->link = link_new(ends[0]);
        primary = link_new(ends[1]);
    }
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
    host.done[0] = '\0';
    write_content(".guest", "an older one of that name");
    standby_take_over(s);
    assert_string_equal(content(".guest"), "none");
    receiver_free(s->receiver);
    s->receiver = NULL;
}

/* What the primary hears. */
static void expect(enum proto_type type, const char *words)
{
    struct proto_notice notice;
    struct record rec;
    struct error err;

    assert_int_equal(link_recv(primary, &rec, TIME_NEVER, &err), LINK_RECORD);
    assert_int_equal(rec.type, type);
    if (!words) {
        assert_int_equal(rec.epoch, 1);
        return;
    }
    assert_int_equal(proto_get_notice(&notice, rec.body, rec.length, &err), 0);
    assert_int_equal(notice.code, REFUSE_RESOURCES);
    assert_non_null(strstr(notice.text, words));
    assert_int_equal(link_recv(primary, &rec, TIME_NEVER, &err), LINK_CLOSED);
}

static void expect_failure(struct standby *s, const char *why)
{
    assert_string_equal(host.done, "closed "); /* what does not run announces nothing */
    if (!host.vanished)
        expect(PROTO_REFUSE, why);
    assert_non_null(strstr(s->view.last_error, why));
    assert_int_equal(s->detector.state, DT_FAILED);
    assert_string_equal(content(".active"), "none"); /* its primary is welcome again */
    assert_int_equal(s->spent, 0);
    assert_true(s->view.takeover.running == 0);
}

/* --- a takeover --- */

static void r7_network_comes_before_what_can_wait(void **state)
{
    struct standby s;

    (void)state;
    take_over(&s, NULL);
    assert_string_equal(host.done, "runs announced settles ");
    assert_int_equal(s.detector.state, DT_ACTIVE);
    assert_int_equal(s.spent, 77);
    expect(PROTO_ACTIVATED, NULL);
    assert_int_equal(s.view.takeover.epoch, 1);
    assert_true(s.view.takeover.decided && s.view.takeover.running >= s.view.takeover.decided);
    link_free(s.link);
}

static void r7_a_replica_that_does_not_start(void **state)
{
    struct standby s;

    (void)state;
    host.fails = true;
    take_over(&s, NULL);
    expect_failure(&s, "no");
    host.vanished = true;
    take_over(&s, NULL);
    expect_failure(&s, "no");
}

static void r3_network_state_of_no_use(void **state)
{
    struct standby s;

    (void)state;
    host.net_fails = true;
    take_over(&s, NULL);
    assert_string_equal(host.done, "runs settles ");
    assert_non_null(strstr(s.view.last_error, "stay held: no network"));
    expect(PROTO_ACTIVATED, NULL);
    link_free(s.link);
}

/* activate() looks at the images. */
static void r5_disks_come_before_the_guest(void **state)
{
    struct standby s;

    (void)state;
    s.journal = prepare_disks();
    serve_disks();
    assert_false(queue_writable(&disk_queue));
    take_over(&s, s.journal);
    assert_string_equal(host.done, "runs announced settles ");
    link_free(s.link);
    journal_close(s.journal);
    queue_close(&disk_queue);
}

static void r5_r7_no_guest_without_its_disks(void **state)
{
    struct standby s;
    char record[PATH_MAX];

    (void)state;
    s.journal = prepare_disks();
    take_over(&s, s.journal); /* no server: the queue is not there */
    expect_failure(&s, "disk-queue");
    tear_down(NULL);
    set_up(NULL);
    s.journal = prepare_disks();
    serve_disks();
    image_record_path(images[1], record);
    unlink(record);
    take_over(&s, s.journal);
    expect_failure(&s, "1.img");
    assert_false(queue_writable(&disk_queue));
    queue_close(&disk_queue);
}

/* --- a daemon that comes later --- */

static void find_active(struct standby *s)
{
    memset(s, 0, sizeof(*s));
    s->section = &cfg;
    vm_learned_init(&s->learned, &cfg);
    s->cfg = &s->learned.cfg;
    detector_init(&s->detector, false, true, 0);
    host.done[0] = '\0';
    standby_find_active(s);
}

static void age(const char *suffix, time_t seconds)
{
    struct timespec times[] = {{time(NULL) - seconds, 0}, {time(NULL) - seconds, 0}};
    char path[PATH_MAX];

    run_path(&cfg, suffix, path, sizeof(path));
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void r3_resets_go_on_for_a_while(void **state)
{
    struct standby s;
    char path[PATH_MAX];

    (void)state;
    host.runs = true;
    write_content(".active", "4d runs\n");
    write_content(".net", "net");
    find_active(&s);
    assert_int_equal(s.detector.state, DT_ACTIVE);
    assert_true(s.spent == 0x4d && s.port == &port);
    assert_string_equal(host.done, "announced ");
    assert_string_equal(s.view.last_error, "");
    age(".net", 880);
    find_active(&s);
    assert_string_equal(host.done, "announced ");
    host.net_fails = true;
    find_active(&s);
    assert_string_equal(host.done, ""); /* better no network than a wrong one */
    assert_non_null(strstr(s.view.last_error, "stay held: no network"));
    host.net_fails = false;
    age(".net", 910);
    find_active(&s);
    assert_string_equal(host.done, "passes ");
    run_file_remove(&cfg, ".net");
    find_active(&s);
    assert_string_equal(host.done, "passes ");
    run_path(&cfg, ".net", path, sizeof(path));
    assert_int_equal(mkdir(path, 0700), 0); /* it opens, but cannot be read */
    find_active(&s);
    assert_string_equal(host.done, "");
    assert_non_null(strstr(s.view.last_error, "stay held"));
    assert_int_equal(s.detector.state, DT_ACTIVE);
}

/* Only what says that it has ended, or that there was none, is believed; for all else the guest is looked for. */
static void r7_whatever_the_file_says(void **state)
{
    static const struct {
        const char *text; /* NULL: it cannot be opened, "none": there is none */
        bool runs, active, ended;
        uint64_t spent;
        const char *after;
    } cases[] = {
        {"none", true, false, false, 0, "none"},
        {"4d runs\n", true, true, false, 0x4d, "4d runs\n"},
        {"4d runs\n", false, false, true, 0x4d, "000000000000004d ended\n"},
        {"4d ended\n", true, false, false, 0x4d, "4d ended\n"},
        {"4d ended\n", false, false, false, 0x4d, "4d ended\n"},
        {"4d\n", true, true, false, 0x4d, "4d\n"},
        {"x ended\n", true, true, false, 0, "x ended\n"},
        {"", true, true, false, 0, ""},
        {"", false, false, true, 0, "0000000000000000 ended\n"},
        {NULL, true, true, false, 0, "none"},
    };
    char path[PATH_MAX];

    (void)state;
    run_path(&cfg, ".active", path, sizeof(path));
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct standby s;

        unlink(path);
        if (!cases[i].text)
            assert_int_equal(symlink("v.active", path), 0); /* to itself */
        else if (strcmp(cases[i].text, "none") != 0)
            write_content(".active", cases[i].text);
        host.runs = cases[i].runs;
        find_active(&s);
        assert_int_equal(s.detector.state, cases[i].active ? DT_ACTIVE : DT_WAITING);
        assert_int_equal(s.view.ended, cases[i].ended);
        assert_int_equal(s.spent, cases[i].spent);
        assert_string_equal(content(".active"), cases[i].after);
        assert_string_equal(host.done, cases[i].active ? "passes " : "");
    }
}

/* Its network needs to know its interfaces; it runs all the same. */
static void r7_active_without_network(void **state)
{
    struct standby s;

    (void)state;
    cfg.platform = (char *)"facts";
    host.runs = true;
    strcpy(host.facts.mac, "52:54:00:12:34:56");
    host.facts.memory_bytes = 5;
    write_content(".active", "4d runs\n");
    for (unsigned i = 0; i < 4; i++) {
        host.facts_fail = i == 0;
        cfg.mac = (char *)(i == 1 ? "52:54:00:12:34:57" : "");
        host.no_port = i == 2;
        find_active(&s);
        assert_int_equal(s.detector.state, DT_ACTIVE);
        assert_string_equal(host.done, i == 3 ? "passes " : "");
        assert_int_equal(strstr(s.view.last_error, "without network: ") != NULL, i < 3);
    }
    assert_string_equal(s.cfg->mac, host.facts.mac);
    assert_int_equal(s.cfg->memory_bytes, 5);
}

/* The daemon died when one image was valid: both are, once it is known that it was a takeover; else nothing is. */
static void r5_disks_of_a_takeover_that_was_cut_short(void **state)
{
    struct standby s;

    (void)state;
    journal_close(prepare_disks());
    find_active(&s);
    assert_string_equal(s.view.last_error, "");
    assert_int_equal(image_validate(images[1], 1, &(struct error){""}), 0);
    find_active(&s);
    assert_non_null(strstr(s.view.last_error, "1.img"));
    assert_int_equal(record_of(0).role, IMAGE_REPLICA);
    write_content(".active", "4d runs\n");
    find_active(&s);
    assert_int_equal(record_of(0).role, IMAGE_VALID);
    assert_int_equal(record_of(0).epoch, 1);
    assert_true(s.view.ended);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(r7_network_comes_before_what_can_wait),
        TEST(r7_a_replica_that_does_not_start),
        TEST(r3_network_state_of_no_use),
        TEST(r5_disks_come_before_the_guest),
        TEST(r5_r7_no_guest_without_its_disks),
        TEST(r3_resets_go_on_for_a_while),
        TEST(r7_whatever_the_file_says),
        TEST(r7_active_without_network),
        TEST(r5_disks_of_a_takeover_that_was_cut_short),
    };

    return cmocka_run_group_tests_name("takeover", tests, NULL, NULL);
}
