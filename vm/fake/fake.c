/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "common/clock.h"
#include "control.h"
#include "fake.h"
#include "vm/preflight.h"
#include "vm/tracker.h"

#define PROGRAM "remus-fake-guest"
#define PARK_NS (2 * NS_PER_S)
#define START_NS (120 * NS_PER_S) /* a replica checks all of its memory first */
#define KILL_MS 5000

/* A guest's process as seen from here. */
struct process {
    pid_t pid;
    int pidfd, ram, control;
    struct fake_control *ctl;
    char pid_file[sizeof((struct fake_control){0}.pid_file)];
};

static const struct process no_process = {.pidfd = -1, .ram = -1, .control = -1};
static const struct timespec slice = {.tv_nsec = 10 * NS_PER_MS};

static void process_close(struct process *p)
{
    if (p->ctl)
        munmap(p->ctl, FAKE_CONTROL_SIZE);
    if (p->pidfd >= 0) {
        waitid(P_PIDFD, (id_t)p->pidfd, &(siginfo_t){0}, WEXITED | WNOHANG); /* when it was our child */
        close(p->pidfd);
    }
    if (p->ram >= 0)
        close(p->ram);
    if (p->control >= 0)
        close(p->control);
    *p = no_process;
}

static bool process_dead(const struct process *p, int timeout_ms)
{
    struct pollfd pfd = {.fd = p->pidfd, .events = POLLIN};

    return poll(&pfd, 1, timeout_ms) > 0;
}

static enum vm_health process_health(const struct process *p)
{
    if (!process_dead(p, 0))
        return VM_ALIVE;
    return p->ctl->state == FAKE_SHUT_DOWN ? VM_SHUT_DOWN : VM_DIED;
}

/* Makes the guest look at its control page now. */
static void process_wake(const struct process *p)
{
    pidfd_send_signal(p->pidfd, SIGUSR1, NULL, 0);
}

static void process_kill(struct process *p)
{
    pidfd_send_signal(p->pidfd, SIGKILL, NULL, 0);
    process_dead(p, KILL_MS);
    unlink(p->ctl->net_guest);
    unlink(p->pid_file);
}

static int set_pid_file(struct process *p, const char *run_dir, const char *name, struct error *err)
{
    int n = snprintf(p->pid_file, sizeof(p->pid_file), "%s/%s.fake.pid", run_dir, name);

    if (n < 0 || (size_t)n >= sizeof(p->pid_file))
        return error_set(err, "run-dir %s: the path is too long", run_dir);
    return 0;
}

static pid_t read_pid(const char *path)
{
    FILE *f = fopen(path, "re");
    int pid = 0;

    if (!f)
        return 0;
    if (fscanf(f, "%d", &pid) != 1)
        pid = 0;
    fclose(f);
    return pid;
}

/* Opens descriptor `fd` of the process when it is the memfd of this guest. */
static int open_memfd(pid_t pid, int fd, const char *name)
{
    char path[64], want[CONFIG_NAME_MAX + 32], target[CONFIG_NAME_MAX + 64];
    int want_len = snprintf(want, sizeof(want), "/memfd:remus-%s ", name);
    ssize_t n;

    snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, fd);
    n = readlink(path, target, sizeof(target));
    if (n < 0)
        return -1;
    if (n < want_len || memcmp(target, want, (size_t)want_len) != 0) {
        errno = ENOENT;
        return -1;
    }
    return open(path, O_RDWR | O_CLOEXEC);
}

static int map_control(struct process *p)
{
    struct stat st;
    void *page;

    if (fstat(p->control, &st) || st.st_size != FAKE_CONTROL_SIZE)
        return -1;
    page = mmap(NULL, FAKE_CONTROL_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, p->control, 0);
    if (page == MAP_FAILED)
        return -1;
    p->ctl = page;
    return 0;
}

enum found { FOUND, FOUND_NOT, FOUND_NO_ACCESS };

/* Looks for a running guest by its pid file; whatever else has that process id by now is not taken for it. */
static enum found process_find(struct process *p, const char *run_dir, const char *name,
                               struct error *err)
{
    enum found result = FOUND_NOT;

    *p = no_process;
    if (set_pid_file(p, run_dir, name, err))
        return FOUND_NO_ACCESS;
    p->pid = read_pid(p->pid_file);
    error_set(err, "no fake guest %s runs here (%s)", name, p->pid_file);
    if (p->pid > 0)
        p->pidfd = pidfd_open(p->pid, 0);
    if (p->pidfd < 0 || process_dead(p, 0))
        goto out;
    p->ram = open_memfd(p->pid, FAKE_RAM_FD, name);
    p->control = open_memfd(p->pid, FAKE_CONTROL_FD, name);
    if ((p->ram < 0 || p->control < 0) && errno != ENOENT && errno != ESRCH) {
        error_set(err, "fake guest %s, process %d: %s (run as its user)", name, (int)p->pid,
                  strerror(errno));
        result = FOUND_NO_ACCESS;
        goto out;
    }
    if (p->ram >= 0 && p->control >= 0 && map_control(p) == 0 &&
        p->ctl->magic == FAKE_CONTROL_MAGIC && p->ctl->pid == p->pid && !process_dead(p, 0))
        return FOUND;
out:
    process_close(p);
    return result;
}

static int new_memfd(const char *name, const char *what, uint64_t len, struct error *err)
{
    char label[CONFIG_NAME_MAX + 32];
    int fd, high;

    /* Above 9, so that moving one to FAKE_RAM_FD cannot overwrite the other. */
    snprintf(label, sizeof(label), "remus-%s %s", name, what);
    fd = memfd_create(label, MFD_CLOEXEC);
    high = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 10);
    if (fd >= 0)
        close(fd);
    if (high < 0 || ftruncate(high, (off_t)len)) {
        error_set(err, "%s of fake guest %s: %s", what, name, strerror(errno));
        if (high >= 0)
            close(high);
        return -1;
    }
    return high;
}

static int parse_mac(uint8_t mac[6], const char *text, struct error *err)
{
    char more;

    if (!*text)
        text = "52:54:00:00:00:01";
    if (sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx%c", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4],
               &mac[5], &more) != 6)
        return error_set(err, "mac \"%s\" is not like 52:54:00:12:34:56", text);
    return 0;
}

static int set_workload(struct fake_control *ctl, const struct vm_config *cfg, struct error *err)
{
    static const char *const patterns[] = {
        [MODEL_RANDOM] = "random", [MODEL_SEQUENTIAL] = "sequential", [MODEL_HOT] = "hot"};

    for (uint32_t i = 0; i < sizeof(patterns) / sizeof(*patterns); i++) {
        if (strcmp(cfg->fake_pattern, patterns[i]) == 0) {
            ctl->pattern = i;
            ctl->rate = cfg->fake_rate;
            ctl->frame_rate = cfg->fake_frames;
            return 0;
        }
    }
    return error_set(err, "fake-pattern \"%s\" is none of random, sequential, hot",
                     cfg->fake_pattern);
}

static int make_control(struct process *p, const struct vm_config *cfg, uint64_t pages,
                        const struct model_regs *regs, struct error *err)
{
    struct fake_control *ctl;

    p->control = new_memfd(cfg->name, "control", FAKE_CONTROL_SIZE, err);
    if (p->control < 0)
        return -1;
    if (map_control(p))
        return error_set(err, "control page: %s", strerror(errno));
    ctl = p->ctl;
    ctl->magic = FAKE_CONTROL_MAGIC;
    ctl->pages = pages;
    ctl->arm = strcmp(cfg->tracker, "compare") != 0;
    ctl->restore = regs != NULL;
    if (regs)
        ctl->regs = *regs;
    snprintf(ctl->name, sizeof(ctl->name), "%s", cfg->name);
    if (set_pid_file(p, cfg->run_dir, cfg->name, err))
        return -1;
    memcpy(ctl->pid_file, p->pid_file, sizeof(ctl->pid_file));
    if (vm_net_paths(cfg, ctl->net_guest, ctl->net_port))
        return error_set(err, "run-dir %s: the path is too long for sockets", cfg->run_dir);
    if (parse_mac(ctl->mac, cfg->mac, err))
        return -1;
    return set_workload(ctl, cfg, err);
}

/* In a session of its own, with no signal blocked or ignored and nothing open but its two descriptors. */
static int spawn(struct process *p, const char *name, struct error *err)
{
    const char *libexec = getenv("REMUS_LIBEXEC");
    char path[512], guest[] = "guest", label[CONFIG_NAME_MAX + 1];
    char *argv[] = {path, guest, label, NULL};
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none, all;
    int rc;

    snprintf(path, sizeof(path), "%s/%s", libexec ? libexec : PKGLIBEXECDIR, PROGRAM);
    snprintf(label, sizeof(label), "%s", name);
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attr);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDWR, 0);
    posix_spawn_file_actions_adddup2(&files, 0, 1);
    posix_spawn_file_actions_adddup2(&files, 0, 2);
    posix_spawn_file_actions_adddup2(&files, p->ram, FAKE_RAM_FD);
    posix_spawn_file_actions_adddup2(&files, p->control, FAKE_CONTROL_FD);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &all);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK |
                                        POSIX_SPAWN_SETSIGDEF);
    rc = posix_spawn(&p->pid, path, &files, &attr, argv, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attr);
    if (rc)
        return error_set(err, "%s: %s (REMUS_LIBEXEC names its folder)", path, strerror(rc));
    p->pidfd = pidfd_open(p->pid, 0);
    if (p->pidfd < 0)
        return error_set(err, "process %d: %s", (int)p->pid, strerror(errno));
    return 0;
}

/* Starts a guest on p->ram: a new one, or (regs) one from a checkpoint.  It runs when this returns 0. */
static int process_start(struct process *p, const struct vm_config *cfg, uint64_t pages,
                         const struct model_regs *regs, struct error *err)
{
    uint64_t deadline = clock_ns() + START_NS;

    if (make_control(p, cfg, pages, regs, err) || spawn(p, cfg->name, err))
        return -1;
    while (p->ctl->state == FAKE_STARTING && !process_dead(p, 0) && clock_ns() < deadline)
        futex_wait(&p->ctl->state, FAKE_STARTING, &slice);
    if (p->ctl->state == FAKE_RUNNING)
        return 0;
    if (p->ctl->state == FAKE_FAILED)
        error_set(err, "%s%.*s", regs ? "the replica fails its self-check: " : "",
                  (int)sizeof(p->ctl->error), p->ctl->error);
    else
        error_set(err, "process %d %s", (int)p->pid,
                  process_dead(p, 0) ? "died at its start" : "does not start");
    process_kill(p);
    return -1;
}

static void fake_profile(char out[VM_PROFILE_MAX + 1], uint64_t pages)
{
    snprintf(out, VM_PROFILE_MAX + 1, "fake 1 pages=%" PRIu64, pages);
}

/* --- primary --- */

struct fake_vm {
    struct vm vm;
    struct process process;
    uint8_t *memory;
    struct tracker *tracker;
};

static struct fake_vm *of(struct vm *vm)
{
    return (struct fake_vm *)vm;
}

static bool fake_running(const struct vm_config *cfg)
{
    struct process p;
    enum found found = process_find(&p, cfg->run_dir, cfg->name, NULL);

    process_close(&p);
    return found != FOUND_NOT;
}

static int fake_adopt(const struct vm_config *section, uint64_t *memory_bytes, struct error *err)
{
    struct process p;

    if (process_find(&p, section->run_dir, section->name, err) != FOUND)
        return -1;
    *memory_bytes = p.ctl->pages * PAGE_SIZE;
    process_close(&p);
    return 0;
}

static void fake_close(struct vm *vm)
{
    struct fake_vm *f = of(vm);

    tracker_free(f->tracker);
    if (f->memory)
        munmap(f->memory, vm->pages * PAGE_SIZE);
    process_close(&f->process);
    free(f);
}

static void fake_destroy(struct vm *vm)
{
    process_kill(&of(vm)->process);
    fake_close(vm);
}

static int fake_resume(struct vm *vm, struct error *err)
{
    struct fake_control *ctl = of(vm)->process.ctl;

    (void)err;
    if (ctl->want & 1) {
        ctl->want++;
        futex_wake(&ctl->want);
    }
    return 0;
}

static int attach(struct fake_vm *f, const struct vm_config *cfg, struct error *err)
{
    if (f->process.ctl->pages != f->vm.pages)
        return error_set(err, "process %d already runs with %" PRIu64 " MiB, configured are %" PRIu64
                         ": end it first", (int)f->process.pid,
                         f->process.ctl->pages * PAGE_SIZE >> 20, cfg->memory_bytes >> 20);
    f->vm.attached = true;
    if (set_workload(f->process.ctl, cfg, err))
        return -1;
    process_wake(&f->process);
    return fake_resume(&f->vm, err);
}

static int start(struct fake_vm *f, const struct vm_config *cfg, struct error *err)
{
    f->process.ram = new_memfd(cfg->name, "memory", cfg->memory_bytes, err);
    return f->process.ram < 0 ? -1 : process_start(&f->process, cfg, f->vm.pages, NULL, err);
}

/* Maps the memory of the guest, which runs, and finds a tracker for it. */
static int watch(struct fake_vm *f, const struct vm_config *cfg, struct error *err)
{
    struct tracker_target target = {
        .pid = f->process.pid,
        .address = f->process.ctl->address,
        .pages = f->vm.pages,
        .fd = f->process.ram,
    };
    struct stat st;
    void *memory;

    if (fstat(f->process.ram, &st) || (uint64_t)st.st_size != cfg->memory_bytes)
        return error_set(err, "process %d: its memory is not %" PRIu64 " MiB", (int)f->process.pid,
                         cfg->memory_bytes >> 20);
    memory = mmap(NULL, cfg->memory_bytes, PROT_READ, MAP_SHARED, f->process.ram, 0);
    if (memory == MAP_FAILED)
        return error_set(err, "memory of process %d: %s", (int)f->process.pid, strerror(errno));
    target.memory = f->memory = memory;
    f->tracker = tracker_new(cfg->tracker, &target, err);
    if (!f->tracker)
        return -1;
    f->vm.memory = tracker_memory(f->tracker);
    snprintf(f->vm.tracker, sizeof(f->vm.tracker), "%s", tracker_name(f->tracker));
    return 0;
}

static int fake_open(struct vm **vm, const struct vm_config *cfg, struct error *err)
{
    struct fake_vm *f = calloc(1, sizeof(*f));
    enum found found;
    int rc = -1;

    if (!f)
        return error_set(err, "no memory");
    f->vm.ops = &fake_vm_ops;
    f->vm.pages = cfg->memory_bytes / PAGE_SIZE;
    snprintf(f->vm.accelerator, sizeof(f->vm.accelerator), "native");
    fake_profile(f->vm.profile, f->vm.pages);
    found = process_find(&f->process, cfg->run_dir, cfg->name, err);
    if (f->vm.pages < 2)
        error_set(err, "memory = %" PRIu64 ": a fake guest has at least two pages", cfg->memory_bytes);
    else if (found == FOUND)
        rc = attach(f, cfg, err);
    else if (found == FOUND_NOT)
        rc = start(f, cfg, err);
    if (rc == 0 && watch(f, cfg, err)) {
        if (!f->vm.attached)
            process_kill(&f->process);
        rc = -1;
    }
    if (rc)
        fake_close(&f->vm);
    else
        *vm = &f->vm;
    return rc;
}

static int fake_suspend(struct vm *vm, struct error *err)
{
    struct process *p = &of(vm)->process;
    uint32_t want = p->ctl->want | 1, parked;
    uint64_t deadline = clock_ns() + PARK_NS;

    p->ctl->want = want;
    process_wake(p);
    while ((parked = p->ctl->parked) != want) {
        futex_wait(&p->ctl->parked, parked, &slice);
        if (p->ctl->parked == want)
            break;
        if (process_dead(p, 0))
            return error_set(err, "the guest (process %d) has died", (int)p->pid);
        if (clock_ns() >= deadline) {
            fake_resume(vm, NULL);
            return error_set(err, "the guest (process %d) did not stop within %d s", (int)p->pid,
                             (int)(PARK_NS / NS_PER_S));
        }
    }
    return 0;
}

static int fake_scan(struct vm *vm, struct bitmap *dirty, struct error *err)
{
    return tracker_scan(of(vm)->tracker, dirty, err);
}

static int fake_save_state(struct vm *vm, struct buffer *state, struct error *err)
{
    uint8_t octets[MODEL_STATE_LEN];

    model_encode(&of(vm)->process.ctl->regs, octets);
    if (buffer_append(state, octets, sizeof(octets)))
        return error_set(err, "no memory for the machine state");
    return 0;
}

static enum vm_health fake_health(struct vm *vm)
{
    return process_health(&of(vm)->process);
}

static int fake_describe(const struct vm_config *cfg, uint64_t *pages, char profile[VM_PROFILE_MAX + 1],
                         struct buffer *description, struct error *err)
{
    (void)description;
    (void)err;
    *pages = cfg->memory_bytes / PAGE_SIZE;
    fake_profile(profile, *pages);
    return 0;
}

const struct vm_ops fake_vm_ops = {
    .name = "fake",
    .running = fake_running,
    .adopt = fake_adopt,
    .describe = fake_describe,
    .open = fake_open,
    .suspend = fake_suspend,
    .resume = fake_resume,
    .scan = fake_scan,
    .save_state = fake_save_state,
    .health = fake_health,
    .destroy = fake_destroy,
    .close = fake_close,
};

/* --- backup --- */

struct fake_replica {
    struct replica replica;
    const struct vm_config *cfg;
    struct process process; /* until activate() its memory only */
};

static struct fake_replica *replica_of(struct replica *r)
{
    return (struct fake_replica *)r;
}

static void fake_replica_close(struct replica *r)
{
    struct fake_replica *f = replica_of(r);

    if (r->memory)
        munmap(r->memory, r->pages * PAGE_SIZE);
    process_close(&f->process);
    free(f);
}

static int check_profile(const struct vm_config *cfg, uint64_t pages, const char *profile, struct error *err)
{
    char ours[VM_PROFILE_MAX + 1];

    fake_profile(ours, cfg->memory_bytes / PAGE_SIZE);
    if (strcmp(ours, profile) != 0 || pages != cfg->memory_bytes / PAGE_SIZE)
        return error_set(err, "the guest is \"%.200s\", here it is configured as \"%.200s\"", profile,
                         ours);
    return fake_running(cfg) ? error_set(err, "the guest %s already runs on this host", cfg->name) : 0;
}

static int check_room(const struct vm_config *cfg, struct error *err)
{
    uint64_t room = vm_memory_available();

    if (room < cfg->memory_bytes)
        return error_set(err, "the replica needs %" PRIu64 " MiB, this host has %" PRIu64
                         " MiB available", cfg->memory_bytes >> 20, room >> 20);
    return 0;
}

static void fake_check(const struct vm_config *cfg, uint64_t pages, const char *profile,
                       const struct buffer *description, bool here, json_t *lacks)
{
    struct error err;

    (void)description;
    if (check_profile(cfg, pages, profile, &err))
        preflight_lacks(lacks, "make the sections equal", "%s", err.text);
    if (!here && check_room(cfg, &err))
        preflight_lacks(lacks, "give this host more memory, or end something", "%s", err.text);
}

static int fake_replica_open(struct replica **r, const struct vm_config *cfg, uint64_t pages,
                             const char *profile, const struct buffer *description, struct error *err)
{
    struct fake_replica *f;
    void *memory;

    (void)description;
    if (check_profile(cfg, pages, profile, err) || check_room(cfg, err))
        return -1;
    f = calloc(1, sizeof(*f));
    if (!f)
        return error_set(err, "no memory");
    f->replica = (struct replica){.ops = &fake_replica_ops, .pages = pages};
    f->cfg = cfg;
    f->process = no_process;
    f->process.ram = new_memfd(cfg->name, "memory", pages * PAGE_SIZE, err);
    if (f->process.ram >= 0) {
        memory = mmap(NULL, pages * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, f->process.ram, 0);
        if (memory != MAP_FAILED) {
            f->replica.memory = memory;
            *r = &f->replica;
            return 0;
        }
        error_set(err, "replica's memory: %s", strerror(errno));
    }
    fake_replica_close(&f->replica);
    return -1;
}

static int fake_activate(struct replica *r, const uint8_t *state, size_t len, struct error *err)
{
    struct fake_replica *f = replica_of(r);
    struct model_regs regs;

    if (model_decode(&regs, state, len, err))
        return -1;
    return process_start(&f->process, f->cfg, r->pages, &regs, err);
}

static enum vm_health fake_replica_health(struct replica *r)
{
    return process_health(&replica_of(r)->process);
}

const struct replica_ops fake_replica_ops = {
    .name = "fake",
    .open = fake_replica_open,
    .check = fake_check,
    .activate = fake_activate,
    .health = fake_replica_health,
    .close = fake_replica_close,
};

/* --- tests and benches --- */

int fake_guest_stats(const char *run_dir, const char *name, struct fake_guest_stats *st,
                     struct error *err)
{
    struct process p;

    if (process_find(&p, run_dir, name, err) != FOUND)
        return -1;
    *st = (struct fake_guest_stats){
        .pid = p.pid,
        .seq = p.ctl->seq,
        .writes = p.ctl->writes,
        .bad = p.ctl->bad,
        .frames = p.ctl->frames,
        .requests = p.ctl->requests,
        .verified = p.ctl->verified,
    };
    process_close(&p);
    return 0;
}

int fake_guest_set_rate(const char *run_dir, const char *name, unsigned rate, struct error *err)
{
    struct process p;

    if (process_find(&p, run_dir, name, err) != FOUND)
        return -1;
    p.ctl->rate = rate;
    process_wake(&p);
    process_close(&p);
    return 0;
}
