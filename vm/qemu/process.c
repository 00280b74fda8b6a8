/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/run-file.h"
#include "machine.h"
#include "process.h"
#include "spawn.h"

#define RAM_DIR "/dev/shm"
#define REPLY_MS 5000      /* for each QMP reply */
#define START_MS 20000     /* from exec until QMP greets */
#define EXIT_MS 1000       /* from a QEMU's last word to the end of its process */
#define KILL_MS 5000
#define QEMU_OVERHEAD (UINT64_C(64) << 20) /* of a QEMU beside the guest's RAM */
#define MIB (UINT64_C(1) << 20)

uint64_t qemu_hash(const char *text)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325);

    while (*text)
        h = (h ^ (uint8_t)*text++) * UINT64_C(0x100000001b3);
    return h;
}

static int init(struct qemu *qemu, const struct vm_config *cfg, struct error *err)
{
    cleanup_free char *dir = NULL;
    char port_path[108];

    *qemu = (struct qemu){.pidfd = -1, .memory_fd = -1, .memory_bytes = cfg->memory_bytes};
    dir = realpath(cfg->run_dir, NULL);
    if (!dir)
        return error_set(err, "run-dir = \"%s\": %s", cfg->run_dir, strerror(errno));
    snprintf(qemu->ram_path, sizeof(qemu->ram_path), RAM_DIR "/remusd-%016llx-%s.ram",
             (unsigned long long)qemu_hash(dir), cfg->name);
    if (run_path(cfg, ".ram-info", qemu->info_path, sizeof(qemu->info_path)) < 0 ||
        run_path(cfg, ".console", qemu->console_path, sizeof(qemu->console_path)) < 0 ||
        run_path(cfg, ".qemu.log", qemu->log_path, sizeof(qemu->log_path)) < 0 ||
        run_path(cfg, ".pid", qemu->pid_path, sizeof(qemu->pid_path)) < 0 ||
        run_path(cfg, ".qmp", qemu->qmp_path, sizeof(qemu->qmp_path)) < 0 ||
        vm_net_paths(cfg, qemu->guest_path, port_path) < 0)
        return error_set(err, "run-dir = \"%s\" is too long for unix sockets in it", cfg->run_dir);
    return 0;
}

static void remove_files(struct qemu *qemu)
{
    unlink(qemu->qmp_path);
    unlink(qemu->pid_path);
    unlink(qemu->info_path);
    unlink(qemu->guest_path);
    unlink(qemu->ram_path);
}

static bool has_exited(const struct qemu *qemu, int wait_ms)
{
    struct pollfd p = {.fd = qemu->pidfd, .events = POLLIN};

    return poll(&p, 1, wait_ms) > 0;
}

static int open_pidfd(pid_t pid)
{
    return (int)syscall(SYS_pidfd_open, pid, 0);
}

/* The guest's RAM in here, shared with QEMU. */
static int map_memory(struct qemu *qemu, struct error *err)
{
    struct stat st;
    void *p;

    qemu->memory_fd = open(qemu->ram_path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (qemu->memory_fd < 0 || fstat(qemu->memory_fd, &st) < 0)
        return error_set(err, "%s: %s", qemu->ram_path, strerror(errno));
    if ((uint64_t)st.st_size != qemu->memory_bytes)
        return error_set(err, "the running guest has %llu octets of memory, the configuration says"
                         " memory = %llu: restart the guest or correct the configuration",
                         (unsigned long long)st.st_size, (unsigned long long)qemu->memory_bytes);
    p = mmap(NULL, qemu->memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, qemu->memory_fd, 0);
    if (p == MAP_FAILED)
        return error_set(err, "%s: mmap: %s", qemu->ram_path, strerror(errno));
    qemu->memory = p;
    return 0;
}

/*
 * What the preload wrote: PID ADDRESS SIZE.  Leaves guest_address 0 when it is not about this
 * process.
 */
static void read_ram_info(struct qemu *qemu)
{
    FILE *f = fopen(qemu->info_path, "re");
    unsigned long long pid, address, size;

    if (!f)
        return;
    if (fscanf(f, "%llu %llx %llx", &pid, &address, &size) == 3 && (pid_t)pid == qemu->pid &&
        size == qemu->memory_bytes)
        qemu->guest_address = address;
    fclose(f);
}

static int read_accelerator(struct qemu *qemu, struct error *err)
{
    json_t *value;
    int enabled;

    if (qmp_execute(qemu->qmp, "query-kvm", NULL, &value, err) < 0)
        return -1;
    enabled = json_is_true(json_object_get(value, "enabled"));
    json_decref(value);
    strcpy(qemu->accelerator, enabled ? "kvm" : "tcg");
    return 0;
}

/* The rest, once QMP is connected. */
static int take_up(struct qemu *qemu, struct error *err)
{
    qemu->pid = qmp_peer(qemu->qmp);
    qemu->pidfd = open_pidfd(qemu->pid);
    if (qemu->pidfd < 0)
        return error_set(err, "QEMU (pid %d): pidfd_open: %s", (int)qemu->pid, strerror(errno));
    /* A process that answers now was there when the pidfd was opened: the number was not reused. */
    if (read_accelerator(qemu, err) < 0)
        return -1;
    read_ram_info(qemu);
    return map_memory(qemu, err);
}

/* QEMU locks its pid file for as long as it lives.  0 when nobody does. */
static pid_t pid_file_owner(const struct qemu *qemu)
{
    cleanup_close int fd = open(qemu->pid_path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    char text[16] = "";

    if (fd < 0 || fcntl(fd, F_OFD_GETLK, &lock) < 0 || lock.l_type == F_UNLCK ||
        read(fd, text, sizeof(text) - 1) <= 0)
        return 0;
    return (pid_t)atoi(text);
}

bool qemu_running(const struct vm_config *cfg)
{
    struct qemu qemu;

    return init(&qemu, cfg, NULL) == 0 && pid_file_owner(&qemu) > 0;
}

int qemu_attach(struct qemu *qemu, const struct vm_config *cfg, struct error *err)
{
    pid_t pid;
    int rc;

    if (init(qemu, cfg, err) < 0)
        return -1;
    rc = qmp_open(&qemu->qmp, qemu->qmp_path, REPLY_MS, err);
    if (rc > 0) {
        pid = pid_file_owner(qemu);
        if (pid > 0)
            return error_set(err, "QEMU (pid %d) runs guest \"%s\", but its QMP socket %s is gone:"
                             " end that process", (int)pid, cfg->name, qemu->qmp_path);
        remove_files(qemu);
        return 0;
    }
    if (rc < 0 || take_up(qemu, err) < 0) {
        qemu_close(qemu);
        return error_prefix(err, "a guest \"%s\" runs already, but cannot be attached to",
                            cfg->name);
    }
    return 1;
}

int qemu_check_room(uint64_t memory_bytes, struct error *err)
{
    uint64_t available = vm_memory_available(), free_bytes;
    struct statfs fs;

    if (statfs(RAM_DIR, &fs) < 0 || fs.f_type != TMPFS_MAGIC)
        return error_set(err, RAM_DIR " is no tmpfs: mount one there for the memory of guests");
    free_bytes = (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize;
    if (memory_bytes > free_bytes)
        return error_set(err, "not enough room in " RAM_DIR ": the guest needs %llu MiB, %llu MiB"
                         " are free (mount -o remount,size=... " RAM_DIR " makes it larger)",
                         (unsigned long long)(memory_bytes / MIB),
                         (unsigned long long)(free_bytes / MIB));
    if (available < QEMU_OVERHEAD || memory_bytes > available - QEMU_OVERHEAD)
        return error_set(err, "not enough memory: the guest needs %llu MiB and %llu MiB for QEMU,"
                         " this host has %llu MiB available",
                         (unsigned long long)(memory_bytes / MIB),
                         (unsigned long long)(QEMU_OVERHEAD / MIB),
                         (unsigned long long)(available / MIB));
    return 0;
}

/*
 * Reserved at once: a tmpfs that is full shows here, and not later as a SIGBUS in the guest's
 * processor or in the middle of a checkpoint.
 */
static int make_ram(struct qemu *qemu, struct error *err)
{
    cleanup_close int fd = open(qemu->ram_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int rc;

    if (fd < 0)
        return error_set(err, "%s: %s", qemu->ram_path, strerror(errno));
    rc = posix_fallocate(fd, 0, (off_t)qemu->memory_bytes);
    if (rc) {
        unlink(qemu->ram_path);
        return error_set(err, "%s: %llu octets: %s", qemu->ram_path,
                         (unsigned long long)qemu->memory_bytes, strerror(rc));
    }
    return 0;
}

/* Waits until QMP answers, or the process has ended, or it took too long. */
static int wait_for_qmp(struct qemu *qemu, struct error *err)
{
    uint64_t deadline = clock_ns() + START_MS * NS_PER_MS;

    for (;;) {
        int rc = qmp_open(&qemu->qmp, qemu->qmp_path, REPLY_MS, err);

        if (rc == 0)
            return 0;
        if (has_exited(qemu, rc < 0 ? EXIT_MS : 0))
            return error_set(err, "QEMU ended at once");
        if (rc < 0)
            return -1;
        if (clock_ns() > deadline)
            return error_set(err, "QEMU (pid %d) does not open its QMP socket %s", (int)qemu->pid,
                             qemu->qmp_path);
        clock_sleep_until(clock_ns() + 2 * NS_PER_MS);
    }
}

static int launch(struct qemu *qemu, const struct vm_config *cfg, const char *accelerator,
                  bool incoming, struct error *err)
{
    struct args args = {0}, env = {0};
    cleanup_close int log = -1;
    int rc = -1;

    unlink(qemu->console_path);
    log = open(qemu->log_path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC | O_NOFOLLOW,
               0600);
    if (log < 0)
        return error_set(err, "%s: %s", qemu->log_path, strerror(errno));
    qemu_command_line(&args, qemu, cfg, accelerator, incoming);
    if (qemu_environment(&env, qemu, cfg, err) < 0)
        goto out;
    if (args.failed || env.failed) {
        error_set(err, "qemu-args: more than %d arguments for QEMU, or out of memory", ARGS_MAX);
        goto out;
    }
    qemu->pid = spawn_detached(args.v, env.v, log);
    if (qemu->pid < 0) {
        error_set(err, "qemu = \"%s\": %s", cfg->qemu, strerror(errno));
        goto out;
    }
    qemu->pidfd = open_pidfd(qemu->pid);
    if (qemu->pidfd < 0)
        error_set(err, "QEMU ended at once");
    else
        rc = wait_for_qmp(qemu, err);
    if (rc < 0)
        qemu_quote_log(qemu, err);
out:
    args_free(&args);
    args_free(&env);
    return rc;
}

int qemu_start(struct qemu *qemu, const struct vm_config *cfg, const char *accelerator,
               bool incoming, struct error *err)
{
    if (init(qemu, cfg, err) < 0 || make_ram(qemu, err) < 0)
        return -1;
    if (launch(qemu, cfg, accelerator, incoming, err) < 0)
        goto fail;
    close(qemu->pidfd);
    qemu->pidfd = -1;
    if (take_up(qemu, err) < 0)
        goto fail;
    return 0;
fail:
    qemu_kill(qemu);
    return -1;
}

int qemu_quote_log(const struct qemu *qemu, struct error *err)
{
    cleanup_close int fd = open(qemu->log_path, O_RDONLY | O_CLOEXEC);

    return run_log_quote(fd, err);
}

int qemu_status(struct qemu *qemu, char status[32], struct error *err)
{
    json_t *value;
    const char *text;

    if (qmp_execute(qemu->qmp, "query-status", NULL, &value, err) < 0)
        return -1;
    text = json_string_value(json_object_get(value, "status"));
    snprintf(status, 32, "%s", text ? text : "unknown");
    json_decref(value);
    return 0;
}

/* Nobody else bounds what a guest can write to its console. */
static void cut_console(const struct qemu *qemu)
{
    struct stat st;

    if (stat(qemu->console_path, &st) == 0 && st.st_size > CONSOLE_MAX &&
        truncate(qemu->console_path, 0) < 0)
        return;
}

enum vm_health qemu_health(struct qemu *qemu)
{
    const struct qmp_events *events = qmp_events(qemu->qmp);
    bool exited = has_exited(qemu, 0), connected = qmp_poll(qemu->qmp) == 0;

    if (events->failed)
        return VM_DIED;
    if (events->shut_down)
        return VM_SHUT_DOWN;
    if (exited || !connected)
        return VM_DIED;
    if (++qemu->health_calls % 64 == 0)
        cut_console(qemu);
    return VM_ALIVE;
}

void qemu_kill(struct qemu *qemu)
{
    if (qemu->pidfd >= 0) {
        syscall(SYS_pidfd_send_signal, qemu->pidfd, SIGKILL, NULL, 0);
        has_exited(qemu, KILL_MS);
    }
    remove_files(qemu);
    qemu_close(qemu);
}

void qemu_close(struct qemu *qemu)
{
    bool ends = qemu->qmp && qemu->pidfd >= 0 && qemu_health(qemu) != VM_ALIVE;

    if (qemu->pidfd >= 0 && has_exited(qemu, ends ? EXIT_MS : 0))
        remove_files(qemu);
    if (qemu->memory)
        munmap(qemu->memory, qemu->memory_bytes);
    if (qemu->memory_fd >= 0)
        close(qemu->memory_fd);
    if (qemu->pidfd >= 0)
        close(qemu->pidfd);
    qmp_close(qemu->qmp);
    qemu->memory = NULL;
    qemu->memory_fd = qemu->pidfd = -1;
    qemu->qmp = NULL;
}
