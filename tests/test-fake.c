/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The fake platform: what it promises as vm_ops and replica_ops, and that its self-check can fail. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"
#include "vm/fake/fake.h"

#define MIB (UINT64_C(1) << 20)

/* A host with its run-dir, and a VM on it; pri and bak play the two hosts. */
struct host {
    char run_dir[64];
    struct vm_config cfg;
    struct vm *vm;
    struct replica *replica;
    struct bitmap dirty;
    struct buffer state;
    int port;
};

static struct host pri, bak;

static void host_open(struct host *h, const char *what)
{
    *h = (struct host){.port = -1};
    snprintf(h->run_dir, sizeof(h->run_dir), "/tmp/remus-test-fake-%s.XXXXXX", what);
    assert_non_null(mkdtemp(h->run_dir));
    h->cfg = (struct vm_config){
        .name = "db1",
        .run_dir = h->run_dir,
        .memory_bytes = 16 * MIB,
        .tracker = (char *)"auto",
        .mac = (char *)"52:54:00:12:34:56",
        .fake_rate = 50000,
        .fake_pattern = (char *)"random",
    };
}

static void host_close(struct host *h)
{
    struct dirent *e;
    DIR *d;

    if (h->replica)
        h->replica->ops->close(h->replica);
    if (h->vm)
        h->vm->ops->destroy(h->vm);
    if (h->port >= 0)
        close(h->port);
    bitmap_free(&h->dirty);
    buffer_free(&h->state);
    d = opendir(h->run_dir);
    while (d && (e = readdir(d)))
        if (e->d_name[0] != '.')
            unlinkat(dirfd(d), e->d_name, 0);
    if (d)
        closedir(d);
    rmdir(h->run_dir);
}

static int setup(void **state)
{
    (void)state;
    host_open(&pri, "pri");
    host_open(&bak, "bak");
    return 0;
}

static struct fake_guest_stats stats(struct host *h)
{
    struct fake_guest_stats st;
    struct error err = {""};

    if (fake_guest_stats(h->run_dir, "db1", &st, &err))
        fail_msg("%s", err.text);
    return st;
}

/* Ends the guests that no vm stands for any more: the replica's after its takeover. */
static int teardown(void **state)
{
    struct fake_guest_stats st;

    (void)state;
    if (!bak.vm && fake_guest_stats(bak.run_dir, "db1", &st, NULL) == 0)
        kill(st.pid, SIGKILL);
    if (!pri.vm && fake_guest_stats(pri.run_dir, "db1", &st, NULL) == 0)
        kill(st.pid, SIGKILL);
    host_close(&pri);
    host_close(&bak);
    return 0;
}

#define OK(call, err)                                                                              \
    do {                                                                                           \
        if (call)                                                                                  \
            fail_msg("%s: %s", #call, (err).text);                                                 \
    } while (0)

static void start(struct host *h)
{
    struct error err = {""};

    OK(fake_vm_ops.open(&h->vm, &h->cfg, &err), err);
    if (!h->dirty.words)
        assert_int_equal(bitmap_init(&h->dirty, h->vm->pages), 0);
}

static void suspend(struct host *h)
{
    struct error err = {""};

    OK(h->vm->ops->suspend(h->vm, &err), err);
}

static void resume(struct host *h)
{
    struct error err = {""};

    OK(h->vm->ops->resume(h->vm, &err), err);
}

static uint64_t scan(struct host *h)
{
    struct error err = {""};

    bitmap_clear_all(&h->dirty);
    OK(h->vm->ops->scan(h->vm, &h->dirty, &err), err);
    return bitmap_count(&h->dirty);
}

static void save_state(struct host *h)
{
    struct error err = {""};

    buffer_clear(&h->state);
    OK(h->vm->ops->save_state(h->vm, &h->state, &err), err);
}

static void open_replica(void)
{
    struct error err = {""};

    OK(fake_replica_ops.open(&bak.replica, &bak.cfg, pri.vm->pages, pri.vm->profile, NULL, &err), err);
}

/* A checkpoint: the dirty pages go straight to the replica's memory.  The guest stays suspended. */
static void checkpoint(void)
{
    suspend(&pri);
    scan(&pri);
    save_state(&pri);
    for (uint64_t i = 0; (i = bitmap_next(&pri.dirty, i)) < pri.vm->pages; i++)
        memcpy(bak.replica->memory + i * PAGE_SIZE, pri.vm->memory + i * PAGE_SIZE, PAGE_SIZE);
}

static void epochs(int count)
{
    for (int i = 0; i < count; i++) {
        checkpoint();
        resume(&pri);
        usleep(2000);
    }
}

static int activate(struct error *err)
{
    return bak.replica->ops->activate(bak.replica, pri.state.data, pri.state.len, err);
}

/* Waits until the guest has worked on. */
static void expect_progress(struct host *h)
{
    uint64_t seq = stats(h).seq;

    for (int i = 0; stats(h).seq == seq; i++) {
        assert_true(i < 10000);
        usleep(1000);
    }
}

static void r8_nothing_changes_while_suspended(void **state)
{
    uint8_t *before = malloc(16 * MIB);
    uint8_t regs[256];

    (void)state;
    pri.cfg.fake_rate = 1000000;
    start(&pri);
    for (int i = 0; i < 300; i++) {
        suspend(&pri);
        save_state(&pri);
        assert_true(pri.state.len <= sizeof(regs));
        memcpy(regs, pri.state.data, pri.state.len);
        if (i % 50 == 0) {
            scan(&pri);
            memcpy(before, pri.vm->memory, 16 * MIB);
            usleep(20000);
            assert_memory_equal(before, pri.vm->memory, 16 * MIB);
            assert_int_equal(scan(&pri), 0);
        }
        save_state(&pri);
        assert_memory_equal(regs, pri.state.data, pri.state.len);
        resume(&pri);
        if (i % 3 == 0) /* else at once again */
            expect_progress(&pri);
    }
    assert_int_equal(stats(&pri).bad, 0);
    free(before);
}

static void replica_equals_guest(const char *tracker, const char *pattern)
{
    pri.cfg.tracker = (char *)tracker;
    pri.cfg.fake_pattern = (char *)pattern;
    start(&pri);
    open_replica();
    for (int i = 0; i < 10; i++) {
        epochs(9);
        checkpoint();
        assert_memory_equal(pri.vm->memory, bak.replica->memory, 16 * MIB);
        resume(&pri);
    }
    assert_int_equal(stats(&pri).bad, 0);
}

static void r2_replica_equals_guest(void **state)
{
    (void)state;
    replica_equals_guest("auto", "random");
}

static void r2_replica_equals_guest_compare(void **state)
{
    (void)state;
    replica_equals_guest("compare", "sequential");
}

static void r2_replica_equals_guest_hot(void **state)
{
    (void)state;
    replica_equals_guest("auto", "hot");
}

static void r2_takeover_passes_the_self_check(void **state)
{
    struct error err = {""};
    uint64_t seq;

    (void)state;
    start(&pri);
    open_replica();
    epochs(20);
    checkpoint();
    seq = stats(&pri).seq;
    resume(&pri);
    expect_progress(&pri); /* lost with its host */
    kill(stats(&pri).pid, SIGKILL);
    OK(activate(&err), err);
    assert_true(stats(&bak).verified > 500);
    assert_true(stats(&bak).seq >= seq);
    assert_true(stats(&bak).seq < seq + 40000);
    expect_progress(&bak);
    assert_int_equal(stats(&bak).bad, 0);
    assert_int_equal(bak.replica->ops->health(bak.replica), VM_ALIVE);

    /* The replica's daemon can protect it in turn. */
    bak.replica->ops->close(bak.replica);
    bak.replica = NULL;
    start(&bak);
    assert_true(bak.vm->attached);
    assert_true(scan(&bak) > 500);
}

/* Activates; it must fail, say `words`, and leave no guest. */
static void expect_refusal(const char *words)
{
    struct fake_guest_stats st;
    struct error err = {""};

    assert_int_equal(activate(&err), -1);
    if (!strstr(err.text, words))
        fail_msg("\"%s\" does not say \"%s\"", err.text, words);
    assert_int_equal(fake_guest_stats(bak.run_dir, "db1", &st, NULL), -1);
}

static void two_epochs(void)
{
    start(&pri);
    open_replica();
    epochs(5);
    checkpoint();
}

static void r4_page_of_another_epoch_is_found(void **state)
{
    uint64_t page;
    uint8_t old[PAGE_SIZE];

    (void)state;
    two_epochs();
    resume(&pri);
    expect_progress(&pri);
    suspend(&pri);
    scan(&pri);
    save_state(&pri);
    page = bitmap_next(&pri.dirty, 1);
    assert_true(page < pri.vm->pages);
    memcpy(old, bak.replica->memory + page * PAGE_SIZE, PAGE_SIZE);
    memcpy(bak.replica->memory, pri.vm->memory, 16 * MIB);
    memcpy(bak.replica->memory + page * PAGE_SIZE, old, PAGE_SIZE);
    expect_refusal("not all of one epoch");
}

static void r4_state_of_another_epoch_is_found(void **state)
{
    (void)state;
    two_epochs();
    resume(&pri);
    expect_progress(&pri);
    suspend(&pri);
    save_state(&pri);
    expect_refusal("of different epochs");
}

static void r4_damaged_page_is_found(void **state)
{
    (void)state;
    two_epochs();
    bak.replica->memory[777 * PAGE_SIZE + 2000] ^= 4;
    expect_refusal("page 777 is damaged");
}

static void r10_damaged_state_is_refused(void **state)
{
    (void)state;
    two_epochs();
    pri.state.data[20] ^= 1;
    expect_refusal("damaged");
    pri.state.data[20] ^= 1;
    pri.state.len--;
    expect_refusal("is not a fake guest's");
    pri.state.len++;
    pri.state.data[7] = 9;
    expect_refusal("version 9");
    pri.state.data[7] = 1;
    assert_int_equal(activate(NULL), 0);
}

/* The daemon dies between suspend and resume; the next one finds the guest and lets it run. */
static void r7_a_restarted_daemon_finds_its_guest(void **state)
{
    struct error err = {""};
    pid_t daemon = fork(), pid;
    int status;

    (void)state;
    if (daemon == 0) {
        if (fake_vm_ops.open(&pri.vm, &pri.cfg, NULL) || pri.vm->attached ||
            pri.vm->ops->suspend(pri.vm, NULL))
            _exit(1);
        raise(SIGKILL);
    }
    assert_int_equal(waitpid(daemon, &status, 0), daemon);
    assert_true(WIFSIGNALED(status));
    assert_true(fake_vm_ops.running(&pri.cfg));
    pid = stats(&pri).pid;

    pri.cfg.memory_bytes *= 2;
    assert_int_equal(fake_vm_ops.open(&pri.vm, &pri.cfg, &err), -1);
    assert_non_null(strstr(err.text, "already runs with 16 MiB"));
    pri.cfg.memory_bytes /= 2;

    start(&pri);
    assert_true(pri.vm->attached);
    assert_int_equal(stats(&pri).pid, pid);
    expect_progress(&pri);
    open_replica();
    epochs(5);
    checkpoint();
    assert_memory_equal(pri.vm->memory, bak.replica->memory, 16 * MIB);
    resume(&pri);

    /* Let go of, it goes on. */
    pri.vm->ops->close(pri.vm);
    pri.vm = NULL;
    expect_progress(&pri);
    start(&pri);
    assert_int_equal(stats(&pri).pid, pid);
}

static void await_end(struct host *h)
{
    for (int i = 0; h->vm->ops->health(h->vm) == VM_ALIVE && i < 10000; i++)
        usleep(1000);
}

static void r7_shutdown_is_no_failure(void **state)
{
    struct error err = {""};

    (void)state;
    start(&pri);
    assert_int_equal(pri.vm->ops->health(pri.vm), VM_ALIVE);
    kill(stats(&pri).pid, SIGTERM);
    await_end(&pri);
    assert_int_equal(pri.vm->ops->health(pri.vm), VM_SHUT_DOWN);
    assert_false(fake_vm_ops.running(&pri.cfg));
    assert_int_equal(pri.vm->ops->suspend(pri.vm, &err), -1);
    assert_non_null(strstr(err.text, "has died"));
    pri.vm->ops->close(pri.vm);

    start(&pri);
    assert_false(pri.vm->attached);
    kill(stats(&pri).pid, SIGKILL);
    await_end(&pri);
    assert_int_equal(pri.vm->ops->health(pri.vm), VM_DIED);
}

static void r7_destroy_ends_the_guest(void **state)
{
    char path[128];
    pid_t pid;

    (void)state;
    start(&pri);
    suspend(&pri);
    pid = stats(&pri).pid;
    pri.vm->ops->destroy(pri.vm);
    pri.vm = NULL;
    assert_int_equal(kill(pid, 0), -1);
    assert_false(fake_vm_ops.running(&pri.cfg));
    snprintf(path, sizeof(path), "%s/db1.fake.pid", pri.run_dir);
    assert_int_equal(access(path, F_OK), -1);

    /* Nobody could find a guest without its pid file, so it ends. */
    start(&pri);
    unlink(path);
    await_end(&pri);
    assert_int_equal(pri.vm->ops->health(pri.vm), VM_DIED);
}

/* R7: a process that merely has the number in the pid file is not taken for the guest, nor harmed. */
static void r7_stranger_with_the_guests_number(void **state)
{
    char path[128];
    FILE *f;

    (void)state;
    snprintf(path, sizeof(path), "%s/db1.fake.pid", pri.run_dir);
    f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "%d\n", (int)getpid());
    fclose(f);
    assert_false(fake_vm_ops.running(&pri.cfg));
    start(&pri);
    assert_false(pri.vm->attached);
}

static void r10_refusals(void **state)
{
    struct error err = {""};
    struct vm *vm;
    char *libexec = strdup(getenv("REMUS_LIBEXEC"));

    (void)state;
    start(&pri);
    assert_int_equal(fake_replica_ops.open(&bak.replica, &bak.cfg, 77, pri.vm->profile, NULL, &err), -1);
    assert_int_equal(
        fake_replica_ops.open(&bak.replica, &bak.cfg, pri.vm->pages, "qemu 7.2 microvm", NULL, &err), -1);
    assert_non_null(strstr(err.text, "qemu 7.2 microvm"));
    assert_int_equal(
        fake_replica_ops.open(&bak.replica, &pri.cfg, pri.vm->pages, pri.vm->profile, NULL, &err), -1);
    assert_non_null(strstr(err.text, "already runs"));
    bak.cfg.memory_bytes = UINT64_C(1) << 50;
    assert_int_equal(fake_replica_ops.open(&bak.replica, &bak.cfg, UINT64_C(1) << 38,
                                           "fake 1 pages=274877906944", NULL, &err), -1);
    assert_non_null(strstr(err.text, "this host has"));
    bak.cfg.memory_bytes = PAGE_SIZE;
    assert_int_equal(fake_vm_ops.open(&vm, &bak.cfg, &err), -1);
    assert_non_null(strstr(err.text, "at least two pages"));
    bak.cfg.memory_bytes = 16 * MIB;
    bak.cfg.fake_pattern = (char *)"zigzag";
    assert_int_equal(fake_vm_ops.open(&vm, &bak.cfg, &err), -1);
    assert_non_null(strstr(err.text, "zigzag"));
    bak.cfg.fake_pattern = (char *)"hot";
    setenv("REMUS_LIBEXEC", "/nonexistent", 1);
    assert_int_equal(fake_vm_ops.open(&vm, &bak.cfg, &err), -1);
    assert_non_null(strstr(err.text, "/nonexistent/remus-fake-guest"));
    setenv("REMUS_LIBEXEC", libexec, 1);
    free(libexec);
    assert_false(fake_vm_ops.running(&bak.cfg));
    expect_progress(&pri);
}

static void r8_an_idle_guest_dirties_nothing(void **state)
{
    (void)state;
    pri.cfg.memory_bytes = 8192 * MIB;
    pri.cfg.fake_rate = 0;
    start(&pri);
    assert_int_equal(scan(&pri), 1);
    usleep(50000);
    assert_int_equal(scan(&pri), 0);
    suspend(&pri);
    assert_int_equal(scan(&pri), 0);
    resume(&pri);
    usleep(50000);
    assert_int_equal(scan(&pri), 0);
    assert_int_equal(fake_guest_set_rate(pri.run_dir, "db1", 1000, NULL), 0);
    expect_progress(&pri);
    assert_true(scan(&pri) > 1);
}

/* The workload itself notices when memory is not what it wrote. */
static void r2_workload_finds_damage(void **state)
{
    struct fake_guest_stats st;
    char path[64];
    uint8_t *memory;
    int fd;

    (void)state;
    pri.cfg.memory_bytes = 8 * PAGE_SIZE;
    start(&pri);
    expect_progress(&pri);
    st = stats(&pri);
    assert_int_equal(st.bad, 0);
    snprintf(path, sizeof(path), "/proc/%d/fd/3", (int)st.pid);
    fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    memory = mmap(NULL, 8 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(memory != MAP_FAILED);
    for (int i = 0; stats(&pri).bad == 0; i++) {
        assert_true(i < 10000);
        if (i % 100 == 0) { /* a page that is rewritten whole is not looked at before: try again */
            suspend(&pri);
            memory[5 * PAGE_SIZE + 8]++;
            resume(&pri);
        }
        usleep(1000);
    }
    munmap(memory, 8 * PAGE_SIZE);
    close(fd);
}

static void open_port(struct host *h)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    struct timeval patience = {.tv_sec = 10};
    char guest[108];

    assert_int_equal(vm_net_paths(&h->cfg, guest, sa.sun_path), 0);
    h->port = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    setsockopt(h->port, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    assert_int_equal(bind(h->port, (struct sockaddr *)&sa, sizeof(sa)), 0);
}

static struct fake_frame next_frame(struct host *h)
{
    uint8_t octets[2000];
    struct fake_frame f;
    ssize_t n = recv(h->port, octets, sizeof(octets), 0);

    assert_int_equal(n, FAKE_FRAME_LEN);
    assert_true(fake_frame_decode(&f, octets, (size_t)n));
    assert_memory_equal(f.from, "\x52\x54\x00\x12\x34\x56", 6);
    return f;
}

/* Drains the port; the frames must follow `last` without a gap.  Returns the last one. */
static uint64_t drain(struct host *h, uint64_t last)
{
    uint8_t octets[FAKE_FRAME_LEN];
    struct fake_frame f;

    while (recv(h->port, octets, sizeof(octets), MSG_DONTWAIT) == FAKE_FRAME_LEN) {
        assert_true(fake_frame_decode(&f, octets, sizeof(octets)));
        assert_int_equal(f.number, ++last);
    }
    return last;
}

static void r6_frames_follow_each_other(void **state)
{
    struct error err = {""};
    uint64_t last = 0, committed;

    (void)state;
    pri.cfg.fake_frames = 20000;
    start(&pri);
    usleep(50000);
    assert_int_equal(stats(&pri).frames, 0); /* nobody listens: it waits */
    open_port(&pri);
    open_replica();
    assert_int_equal(next_frame(&pri).number, ++last);
    for (int i = 0; i < 30; i++) {
        usleep(i % 10 == 0 ? 50000 : 2000); /* long enough for the socket to fill, and short */
        checkpoint();
        last = drain(&pri, last);
        assert_int_equal(stats(&pri).frames, last); /* all it sent was in the socket */
        resume(&pri);
    }
    checkpoint();
    committed = drain(&pri, last);
    resume(&pri);
    assert_int_equal(next_frame(&pri).number, committed + 1); /* never released */
    kill(stats(&pri).pid, SIGKILL);

    open_port(&bak);
    bak.cfg.fake_frames = 1000;
    OK(activate(&err), err);
    assert_int_equal(next_frame(&bak).number, committed + 1);
    assert_int_equal(next_frame(&bak).number, committed + 2);
}

static void request(struct host *h, uint64_t number)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    struct fake_frame f = {.to = {0x52, 0x54, 0, 0x12, 0x34, 0x56}, .from = {2, 0, 0, 0, 0, 7},
                           .kind = FAKE_REQUEST, .number = number};
    uint8_t octets[FAKE_FRAME_LEN];
    char port[108];

    fake_frame_encode(&f, octets);
    assert_int_equal(vm_net_paths(&h->cfg, sa.sun_path, port), 0);
    assert_int_equal(sendto(h->port, octets, sizeof(octets), 0, (struct sockaddr *)&sa, sizeof(sa)),
                     sizeof(octets));
}

static void requests_are_answered(void **state)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    struct fake_frame f;
    char port[108];

    (void)state;
    pri.cfg.fake_rate = 100;
    start(&pri);
    open_port(&pri);
    for (uint64_t i = 1; i <= 200; i++) {
        request(&pri, 1000 + i);
        f = next_frame(&pri);
        assert_int_equal(f.kind, FAKE_REPLY);
        assert_int_equal(f.number, 1000 + i);
        assert_int_equal(f.requests, i);
        assert_memory_equal(f.to, "\x02\x00\x00\x00\x00\x07", 6);
        assert_true(f.seq <= stats(&pri).seq);
    }
    assert_int_equal(vm_net_paths(&pri.cfg, sa.sun_path, port), 0);
    sendto(pri.port, "nonsense", 8, 0, (struct sockaddr *)&sa, sizeof(sa)); /* R10 */
    request(&pri, 5);
    assert_int_equal(next_frame(&pri).requests, 201);

    /* While it is suspended a request waits. */
    suspend(&pri);
    request(&pri, 6);
    usleep(20000);
    assert_int_equal(drain(&pri, 0), 0);
    resume(&pri);
    assert_int_equal(next_frame(&pri).number, 6);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(r8_nothing_changes_while_suspended),
        TEST(r2_replica_equals_guest),
        TEST(r2_replica_equals_guest_compare),
        TEST(r2_replica_equals_guest_hot),
        TEST(r2_takeover_passes_the_self_check),
        TEST(r4_page_of_another_epoch_is_found),
        TEST(r4_state_of_another_epoch_is_found),
        TEST(r4_damaged_page_is_found),
        TEST(r10_damaged_state_is_refused),
        TEST(r7_a_restarted_daemon_finds_its_guest),
        TEST(r7_shutdown_is_no_failure),
        TEST(r7_destroy_ends_the_guest),
        TEST(r7_stranger_with_the_guests_number),
        TEST(r10_refusals),
        TEST(r8_an_idle_guest_dirties_nothing),
        TEST(r2_workload_finds_damage),
        TEST(r6_frames_follow_each_other),
        TEST(requests_are_answered),
    };
    const char *build = getenv("top_builddir");
    char libexec[512];

    if (build) {
        snprintf(libexec, sizeof(libexec), "%s/vm", build);
        setenv("REMUS_LIBEXEC", libexec, 0);
    }
    return cmocka_run_group_tests_name("fake", tests, NULL, NULL);
}
