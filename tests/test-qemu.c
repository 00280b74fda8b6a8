/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The qemu platform with real guests.  Needs REMUS_TEST_KERNEL, a Linux kernel for x86 with a
 * serial console, such as the vmlinuz that scripts/guest-image makes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "qemu-guest.h"

static char top[] = "/tmp/test-qemu-XXXXXX", initrd[64], run_a[64], run_b[64];

static struct vm_config config(const char *run_dir)
{
    return guest_config(run_dir, initrd, "console=ttyS0 quiet");
}

static struct vm *open_vm(const struct vm_config *cfg)
{
    struct error err = {""};
    struct vm *vm;

    if (vm_platform("qemu")->open(&vm, cfg, &err) < 0)
        fail_msg("%s", err.text);
    return vm;
}

static pid_t pid_of(const struct vm_config *cfg)
{
    char path[128];
    int pid = 0;
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s.pid", cfg->run_dir, cfg->name);
    f = fopen(path, "r");
    if (f) {
        assert_int_equal(fscanf(f, "%d", &pid), 1);
        fclose(f);
    }
    return pid;
}

/* Files of a live guest: all in the folder but the logs. */
static int live_files(const char *run_dir)
{
    struct dirent *e;
    DIR *d = opendir(run_dir);
    int n = 0;

    while ((e = readdir(d)))
        n += e->d_name[0] != '.' && !strstr(e->d_name, ".console") && !strstr(e->d_name, ".log");
    closedir(d);
    return n;
}

static int ram_files(void)
{
    struct dirent *e;
    DIR *d = opendir("/dev/shm");
    char end[32];
    int n = 0;

    snprintf(end, sizeof(end), "-guest-%d.ram", (int)getpid());
    while ((e = readdir(d)))
        n += strncmp(e->d_name, "remusd-", 7) == 0 && strstr(e->d_name, end);
    closedir(d);
    return n;
}

static void copy_dirty(const struct bitmap *dirty, const struct vm *vm, struct replica *r)
{
    for (uint64_t p = bitmap_next(dirty, 0); p < dirty->bits; p = bitmap_next(dirty, p + 1))
        memcpy(r->memory + p * PAGE_SIZE, vm->memory + p * PAGE_SIZE, PAGE_SIZE);
}

/* One checkpoint into the replica, which must then be the guest, octet by octet. */
static void checkpoint(struct vm *vm, struct replica *r, struct bitmap *dirty, struct buffer *state)
{
    struct error err = {""};

    bitmap_clear_all(dirty);
    buffer_clear(state);
    if (vm->ops->suspend(vm, &err) < 0 || vm->ops->scan(vm, dirty, &err) < 0)
        fail_msg("%s", err.text);
    copy_dirty(dirty, vm, r);
    if (vm->ops->save_state(vm, state, &err) < 0)
        fail_msg("%s", err.text);
    for (uint64_t p = 0; p < vm->pages; p++)
        if (memcmp(r->memory + p * PAGE_SIZE, vm->memory + p * PAGE_SIZE, PAGE_SIZE) != 0)
            fail_msg("page %llu of the replica differs", (unsigned long long)p);
    if (vm->ops->resume(vm, &err) < 0)
        fail_msg("%s", err.text);
}

/* Boots, replicates for `epochs`, kills, takes over, checks that the guest goes on where it was. */
static void take_over(const char *machine_state, const char *tracker, int epochs)
{
    struct vm_config a = config(run_a), b = config(run_b);
    struct buffer state = {0};
    struct bitmap dirty;
    struct error err = {""};
    struct replica *r;
    struct vm *vm;
    uint64_t began;
    int count;

    a.machine_state = b.machine_state = (char *)machine_state;
    a.tracker = b.tracker = (char *)tracker;
    vm = open_vm(&a);
    assert_false(vm->attached);
    assert_string_equal(vm->accelerator, "tcg");
    assert_true(strcmp(tracker, "auto") == 0 || strcmp(vm->tracker, tracker) == 0);
    if (replica_platform("qemu")->open(&r, &b, vm->pages, vm->profile, NULL, &err) < 0)
        fail_msg("%s", err.text);
    assert_true(guest_wait_count(&a, 5) >= 5);
    for (uint64_t i = 0; i < r->pages * PAGE_SIZE; i++)
        if (r->memory[i])
            fail_msg("the waiting standby wrote to octet %llu of its memory",
                     (unsigned long long)i);

    bitmap_init(&dirty, vm->pages);
    assert_int_equal(vm->ops->scan(vm, &dirty, &err), 0);
    copy_dirty(&dirty, vm, r);
    for (int e = 0; e < epochs; e++) {
        uint64_t next = clock_ns() + 25 * NS_PER_MS;

        checkpoint(vm, r, &dirty, &state);
        assert_int_equal(vm->ops->health(vm), VM_ALIVE);
        clock_sleep_until(next);
    }
    count = guest_count(&a);
    kill(pid_of(&a), SIGKILL);
    while (vm->ops->health(vm) == VM_ALIVE)
        usleep(1000);
    assert_int_equal(vm->ops->health(vm), VM_DIED);
    vm->ops->close(vm);

    began = clock_ns();
    if (r->ops->activate(r, state.data, state.len, &err) < 0)
        fail_msg("%s", err.text);
    print_message("# activation took %.1f ms\n", (double)(clock_ns() - began) / NS_PER_MS);
    assert_int_equal(r->ops->health(r), VM_ALIVE);
    /* The last count may have been printed after the last checkpoint, and is then printed again. */
    assert_true(guest_wait_count(&b, count + 5) >= count + 5);
    assert_true(guest_count(&b) <= count + 300);
    r->ops->close(r);
    bitmap_free(&dirty);
    buffer_free(&state);
}

/* After take_over(): the guest runs at b and nobody holds it. */
static void destroy_b(void)
{
    struct vm_config b = config(run_b);
    struct vm *vm = open_vm(&b);

    vm->ops->destroy(vm);
    assert_int_equal(ram_files(), 0);
    assert_int_equal(live_files(run_a), 0);
    assert_int_equal(live_files(run_b), 0);
}

static void r2_r4_takeover_devices(void **state)
{
    (void)state;
    take_over("devices", "auto", 100);
}

/*
 * The activated replica is a guest like any other; a daemon that dies in mid-epoch leaves it
 * stopped.
 */
static void attach_again(void **state)
{
    struct vm_config b = config(run_b);
    struct error err = {""};
    struct bitmap dirty;
    struct buffer buffer = {0};
    struct replica *r;
    struct vm *vm;
    char profile[VM_PROFILE_MAX + 1];
    int count;

    (void)state;
    assert_true(vm_platform("qemu")->running(&b));
    vm = open_vm(&b);
    strcpy(profile, vm->profile);
    assert_true(vm->attached);
    assert_string_equal(vm->accelerator, "tcg");
    bitmap_init(&dirty, vm->pages);
    assert_int_equal(vm->ops->scan(vm, &dirty, &err), 0);
    assert_int_equal(vm->ops->suspend(vm, &err), 0);
    assert_int_equal(vm->ops->save_state(vm, &buffer, &err), 0);
    vm->ops->close(vm);

    vm = open_vm(&b);
    assert_true(vm->attached);
    count = guest_count(&b);
    assert_true(guest_wait_count(&b, count + 5) >= count + 5);

    /* A suspend whose machine state nobody fetches. */
    assert_int_equal(vm->ops->suspend(vm, &err), 0);
    assert_int_equal(vm->ops->resume(vm, &err), 0);
    buffer_clear(&buffer);
    assert_int_equal(vm->ops->suspend(vm, &err), 0);
    assert_int_equal(vm->ops->save_state(vm, &buffer, &err), 0);
    assert_true(buffer.len > 1000);
    assert_int_equal(vm->ops->resume(vm, &err), 0);

    b.memory_bytes *= 2;
    vm->ops->close(vm);
    assert_int_equal(vm_platform("qemu")->open(&vm, &b, &err), -1);
    assert_non_null(strstr(err.text, "memory = 268435456"));
    assert_true(vm_platform("qemu")->running(&b));

    b = config(run_b);
    assert_int_equal(replica_platform("qemu")->open(&r, &b, dirty.bits, profile, NULL, &err), -1);
    assert_non_null(strstr(err.text, "itself runs on this host"));
    destroy_b();
    assert_false(vm_platform("qemu")->running(&b));

    /* A replica whose process somebody ends while it waits. */
    assert_int_equal(replica_platform("qemu")->open(&r, &b, dirty.bits, profile, NULL, &err), 0);
    assert_int_equal(r->ops->health(r), VM_ALIVE);
    kill(pid_of(&b), SIGKILL);
    while (r->ops->health(r) == VM_ALIVE)
        usleep(1000);
    r->ops->close(r);
    assert_int_equal(live_files(run_b), 0);
    bitmap_free(&dirty);
    buffer_free(&buffer);
}

static void r2_r4_takeover_full_compare(void **state)
{
    (void)state;
    take_over("full", "compare", 20);
    destroy_b();
}

static void r7_shutdown_is_no_failure(void **state)
{
    struct vm_config a = guest_config(run_a, initrd, "console=ttyS0 quiet then=poweroff");
    struct vm *vm = open_vm(&a);

    (void)state;
    for (int i = 0; vm->ops->health(vm) == VM_ALIVE && i < 3000; i++)
        usleep(10000);
    assert_int_equal(vm->ops->health(vm), VM_SHUT_DOWN);
    vm->ops->close(vm);
    assert_int_equal(live_files(run_a), 0);
    assert_int_equal(ram_files(), 0);
}

static void refuse(const struct vm_config *cfg, const char *text)
{
    struct error err = {""};
    struct vm *vm;

    assert_int_equal(vm_platform("qemu")->open(&vm, cfg, &err), -1);
    if (!strstr(err.text, text))
        fail_msg("\"%s\" is not in \"%s\"", text, err.text);
    assert_int_equal(live_files(cfg->run_dir), 0);
    assert_int_equal(ram_files(), 0);
}

static void r10_bad_configuration(void **state)
{
    char *args[] = {(char *)"-device", (char *)"nonsense", NULL};
    struct vm_config cfg;

    (void)state;
    cfg = config(run_a);
    cfg.kernel = (char *)"/no/kernel";
    refuse(&cfg, "kernel = \"/no/kernel\": No such file");
    cfg = config(run_a);
    cfg.initrd = (char *)"/no/initrd";
    refuse(&cfg, "initrd = \"/no/initrd\": No such file");
    cfg = config(run_a);
    cfg.memory_bytes = UINT64_C(1) << 50;
    refuse(&cfg, "not enough");
    cfg = config(run_a);
    cfg.memory_bytes += PAGE_SIZE;
    refuse(&cfg, "multiple of 1 MiB");
    cfg = config(run_a);
    cfg.qemu = (char *)"/no/qemu";
    refuse(&cfg, "qemu = \"/no/qemu\": No such file");
    cfg = config(run_a);
    cfg.qemu_args = args;
    refuse(&cfg, "'nonsense' is not a valid device model name");
    cfg = config(run_a);
    cfg.kernel = initrd; /* no kernel: QEMU says so */
    refuse(&cfg, "QEMU ended at once: qemu: linux kernel too old");
}

static void refuse_replica(const struct vm_config *cfg, uint64_t pages, const char *profile,
                           const char *text)
{
    struct error err = {""};
    struct replica *r;

    assert_int_equal(replica_platform("qemu")->open(&r, cfg, pages, profile, NULL, &err), -1);
    if (!strstr(err.text, text))
        fail_msg("\"%s\" is not in \"%s\"", text, err.text);
    assert_int_equal(live_files(cfg->run_dir), 0);
    assert_int_equal(ram_files(), 0);
}

static void r10_backup_refuses(void **state)
{
    struct vm_config b = config(run_b);
    uint64_t pages = b.memory_bytes / PAGE_SIZE;

    (void)state;
    refuse_replica(&b, pages + 1, "", "octets of memory");
    refuse_replica(&b, pages, "", "version is unknown there and");
    refuse_replica(&b, pages, "platform=qemu cpus=3 accelerator=tcg", "cpus is 3 there and 1 here");
    refuse_replica(&b, pages, "platform=qemu accelerator=kvm",
                   "accelerator is kvm there and tcg here");
    b.memory_bytes = UINT64_C(1) << 50;
    refuse_replica(&b, b.memory_bytes / PAGE_SIZE, "", "here");
}

/* Machine state that is no machine state: an error, and the replica is discarded. */
static void r10_bad_machine_state(void **state)
{
    struct vm_config a = config(run_a), b = config(run_b);
    struct vm *vm = open_vm(&a);
    static uint8_t junk[5000];
    struct error err = {""};
    struct replica *r;

    (void)state;
    assert_int_equal(replica_platform("qemu")->open(&r, &b, vm->pages, vm->profile, NULL, &err), 0);
    assert_int_equal(r->ops->activate(r, junk, sizeof(junk), &err), -1);
    if (!strstr(err.text, "load of migration failed"))
        fail_msg("%s", err.text);
    r->ops->close(r);
    vm->ops->destroy(vm);
    assert_int_equal(live_files(run_b), 0);
    assert_int_equal(ram_files(), 0);
}

static int make_folders(void **state)
{
    const char *build = getenv("top_builddir");
    char program[256];

    (void)state;
    snprintf(program, sizeof(program), "%s/tests/qemu-guest", build ? build : "..");
    if (!mkdtemp(top))
        return -1;
    snprintf(initrd, sizeof(initrd), "%s/initrd", top);
    snprintf(run_a, sizeof(run_a), "%s/a", top);
    snprintf(run_b, sizeof(run_b), "%s/b", top);
    snprintf(program, sizeof(program), "%s/tests/qemu-guest", build ? build : "..");
    config(run_a);
    config(run_b);
    return guest_write_initramfs(initrd, program);
}

/* Whatever a failed test left. */
static int remove_folders(void **state)
{
    struct vm_config cfg[] = {config(run_a), config(run_b)};
    char command[128];

    (void)state;
    for (int i = 0; i < 2; i++)
        if (vm_platform("qemu")->running(&cfg[i]))
            kill(pid_of(&cfg[i]), SIGKILL);
    if (ram_files() > 0)
        print_message("# RAM files of guests are left in /dev/shm\n");
    snprintf(command, sizeof(command), "rm -rf '%s'", top);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(r10_bad_configuration),
        cmocka_unit_test(r10_backup_refuses),
        cmocka_unit_test(r10_bad_machine_state),
        cmocka_unit_test(r2_r4_takeover_devices),
        cmocka_unit_test(attach_again),
        cmocka_unit_test(r2_r4_takeover_full_compare),
        cmocka_unit_test(r7_shutdown_is_no_failure),
    };

    if (!getenv("REMUS_TEST_KERNEL")) {
        printf("1..0 # SKIP REMUS_TEST_KERNEL is not set: a Linux kernel for the guest\n");
        return 0;
    }
    if (getenv("top_builddir")) {
        char libexec[256];

        snprintf(libexec, sizeof(libexec), "%s/vm", getenv("top_builddir"));
        setenv("REMUS_LIBEXEC", libexec, 0);
    }
    return cmocka_run_group_tests(tests, make_folders, remove_folders);
}
