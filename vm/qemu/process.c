/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "accel.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "process.h"

#define RAM_DIR "/dev/shm"
#define REPLY_MS 5000      /* for each QMP reply */
#define START_MS 20000     /* from exec until QMP greets */
#define EXIT_MS 1000       /* from a QEMU's last word to the end of its process */
#define KILL_MS 5000
#define QEMU_OVERHEAD (UINT64_C(64) << 20) /* of a QEMU beside the guest's RAM */
#define ARGS_MAX 128
#define MIB (UINT64_C(1) << 20)

extern char **environ;

uint64_t qemu_hash(const char *text)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325);

    while (*text)
        h = (h ^ (uint8_t)*text++) * UINT64_C(0x100000001b3);
    return h;
}

/* A NULL-terminated vector of strings for exec. */
struct args {
    char *v[ARGS_MAX + 1];
    size_t n;
    bool failed;
};

static void args_add(struct args *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void args_add(struct args *a, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    if (a->n == ARGS_MAX || vasprintf(&a->v[a->n], fmt, ap) < 0) {
        a->v[a->n] = NULL;
        a->failed = true;
    } else {
        a->n++;
    }
    va_end(ap);
}

static void args_free(struct args *a)
{
    for (size_t i = 0; i < a->n; i++)
        free(a->v[i]);
}

static int check_readable(const char *key, const char *path, struct error *err)
{
    if (access(path, R_OK) < 0)
        return error_set(err, "%s = \"%s\": %s", key, path, strerror(errno));
    return 0;
}

int qemu_check_config(const struct vm_config *cfg, struct error *err)
{
    if (!*cfg->kernel)
        return error_set(err, "kernel is not set: the qemu platform starts a guest from a Linux kernel");
    if (check_readable("kernel", cfg->kernel, err) < 0)
        return -1;
    if (*cfg->initrd && check_readable("initrd", cfg->initrd, err) < 0)
        return -1;
    if (cfg->memory_bytes == 0 || cfg->memory_bytes % MIB)
        return error_set(err, "memory = %llu: the qemu platform needs a multiple of 1 MiB",
                         (unsigned long long)cfg->memory_bytes);
    if (cfg->cpus == 0)
        return error_set(err, "cpus = 0: a guest needs at least one");
    if (strchr(cfg->run_dir, ','))
        return error_set(err, "run-dir = \"%s\": QEMU's options cannot hold a path with a comma",
                         cfg->run_dir);
    if (strchr(cfg->mac, ','))
        return error_set(err, "mac = \"%s\" is no MAC address", cfg->mac);
    return 0;
}

static int run_path(char path[108], const struct vm_config *cfg, const char *suffix,
                    struct error *err)
{
    int n = snprintf(path, 108, "%s/%s%s", cfg->run_dir, cfg->name, suffix);

    if (n < 0 || n >= 108)
        return error_set(err, "run-dir = \"%s\" is too long for unix sockets in it", cfg->run_dir);
    return 0;
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
    if (run_path(qemu->info_path, cfg, ".ram-info", err) < 0 ||
        run_path(qemu->console_path, cfg, ".console", err) < 0 ||
        run_path(qemu->log_path, cfg, ".qemu.log", err) < 0 ||
        run_path(qemu->pid_path, cfg, ".pid", err) < 0 ||
        run_path(qemu->qmp_path, cfg, ".qmp", err) < 0)
        return -1;
    if (vm_net_paths(cfg, qemu->guest_path, port_path) < 0)
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

/* What the preload wrote: PID ADDRESS SIZE.  Leaves guest_address 0 when it is not about this process. */
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
            return error_set(err, "QEMU (pid %d) runs guest \"%s\", but its QMP socket %s is gone: end"
                             " that process", (int)pid, cfg->name, qemu->qmp_path);
        remove_files(qemu);
        return 0;
    }
    if (rc < 0 || take_up(qemu, err) < 0) {
        qemu_close(qemu);
        return error_prefix(err, "a guest \"%s\" runs already, but cannot be attached to", cfg->name);
    }
    return 1;
}

static uint64_t memory_available(void)
{
    FILE *f = fopen("/proc/meminfo", "re");
    unsigned long long kib = 0;
    char line[128];

    if (!f)
        return UINT64_MAX;
    while (fgets(line, sizeof(line), f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            break;
    fclose(f);
    return kib ? (uint64_t)kib * 1024 : UINT64_MAX;
}

int qemu_check_room(uint64_t memory_bytes, struct error *err)
{
    uint64_t available = memory_available(), free_bytes;
    struct statfs fs;

    if (statfs(RAM_DIR, &fs) < 0 || fs.f_type != TMPFS_MAGIC)
        return error_set(err, RAM_DIR " is no tmpfs: mount one there for the memory of guests");
    free_bytes = (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize;
    if (memory_bytes > free_bytes)
        return error_set(err, "not enough room in " RAM_DIR ": the guest needs %llu MiB, %llu MiB are free"
                         " (mount -o remount,size=... " RAM_DIR " makes it larger)",
                         (unsigned long long)(memory_bytes / MIB), (unsigned long long)(free_bytes / MIB));
    if (available < QEMU_OVERHEAD || memory_bytes > available - QEMU_OVERHEAD)
        return error_set(err, "not enough memory: the guest needs %llu MiB and %llu MiB for QEMU, this host"
                         " has %llu MiB available", (unsigned long long)(memory_bytes / MIB),
                         (unsigned long long)(QEMU_OVERHEAD / MIB), (unsigned long long)(available / MIB));
    return 0;
}

/*
 * Reserved at once: a tmpfs that is full shows here, and not later as a SIGBUS in the guest's processor or
 * in the middle of a checkpoint.
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

static void compose(struct args *a, const struct qemu *qemu, const struct vm_config *cfg,
                    const char *accelerator, bool incoming)
{
    char guest[108], port[108];
    unsigned tsc_khz = qemu_tsc_khz();

    args_add(a, "%s", cfg->qemu);
    args_add(a, "-name");
    args_add(a, "%s", cfg->name);
    args_add(a, "-machine");
    /* suppress-vmdesc and send-configuration: else the state by xen-save-devices-state cannot be loaded. */
    args_add(a, "microvm,memory-backend=m0,suppress-vmdesc=on");
    args_add(a, "-global");
    args_add(a, "migration.send-configuration=off");
    args_add(a, "-accel");
    args_add(a, "%s", accelerator);
    args_add(a, "-smp");
    args_add(a, "%u", cfg->cpus);
    args_add(a, "-m");
    args_add(a, "%lluM", (unsigned long long)(cfg->memory_bytes / MIB));
    args_add(a, "-object");
    args_add(a, "memory-backend-file,id=m0,size=%lluM,share=on,mem-path=%s",
             (unsigned long long)(cfg->memory_bytes / MIB), qemu->ram_path);
    args_add(a, "-nodefaults");
    args_add(a, "-no-user-config");
    args_add(a, "-display");
    args_add(a, "none");
    args_add(a, "-chardev");
    args_add(a, "file,id=console,path=%s,append=on", qemu->console_path);
    args_add(a, "-serial");
    args_add(a, "chardev:console");
    args_add(a, "-qmp");
    args_add(a, "unix:%s,server=on,wait=off", qemu->qmp_path);
    args_add(a, "-pidfile");
    args_add(a, "%s", qemu->pid_path);
    if ((*cfg->tap || *cfg->mac) && vm_net_paths(cfg, guest, port) == 0) {
        args_add(a, "-netdev");
        args_add(a, "dgram,id=net0,local.type=unix,local.path=%s,remote.type=unix,remote.path=%s",
                 guest, port);
        args_add(a, "-device");
        args_add(a, "virtio-net-device,netdev=net0%s%s", *cfg->mac ? ",mac=" : "", cfg->mac);
    }
    args_add(a, "-kernel");
    args_add(a, "%s", cfg->kernel);
    if (*cfg->initrd) {
        args_add(a, "-initrd");
        args_add(a, "%s", cfg->initrd);
    }
    args_add(a, "-append");
    if (strcmp(accelerator, "tcg") == 0 && tsc_khz && !strstr(cfg->append, "tsc_early_khz="))
        args_add(a, "%s tsc_early_khz=%u", cfg->append, tsc_khz);
    else
        args_add(a, "%s", cfg->append);
    if (incoming) {
        args_add(a, "-incoming");
        args_add(a, "defer");
    }
    for (char **p = cfg->qemu_args; *p; p++)
        args_add(a, "%s", *p);
}

/* The environment with uffd-preload.so in it, which arms the mapping of ram_path. */
static int compose_env(struct args *env, const struct qemu *qemu, const struct vm_config *cfg,
                       struct error *err)
{
    const char *libexec = getenv("REMUS_LIBEXEC"), *preload = NULL;
    char library[512];

    for (char **e = environ; *e; e++) {
        if (strncmp(*e, "LD_PRELOAD=", 11) == 0)
            preload = *e + 11;
        else if (env->n < ARGS_MAX - 3)
            args_add(env, "%s", *e);
    }
    if (strcmp(cfg->tracker, "compare") == 0)
        return 0;
    snprintf(library, sizeof(library), "%s/uffd-preload.so", libexec ? libexec : PKGLIBEXECDIR);
    if (access(library, R_OK) < 0)
        return error_set(err, "%s: %s (REMUS_LIBEXEC names the folder of remusd's helpers; tracker = compare"
                         " goes without)", library, strerror(errno));
    args_add(env, "LD_PRELOAD=%s%s%s", library, preload ? ":" : "", preload ? preload : "");
    args_add(env, "REMUS_RAM=%s", qemu->ram_path);
    args_add(env, "REMUS_RAM_INFO=%s", qemu->info_path);
    return 0;
}

/*
 * Runs argv detached: in its own session, child of init, so that nobody here has to reap it.  stdin is
 * /dev/null, stdout and stderr go to `log`.  Returns its pid, or -1 with errno of what failed, exec included.
 */
static pid_t spawn(char **argv, char **env, int log)
{
    int report[2], null = open("/dev/null", O_RDWR | O_CLOEXEC), words[2] = {-1, 0};
    size_t got = 0;
    ssize_t n;
    pid_t child;
    sigset_t none;

    if (null < 0)
        return -1;
    if (pipe2(report, O_CLOEXEC) < 0) {
        close(null);
        return -1;
    }
    child = fork();
    if (child == 0) {
        /* The daemon has threads: system calls only from here on. */
        setsid();
        child = fork();
        if (child > 0)
            _exit(0);
        words[0] = child == 0 ? getpid() : -1;
        n = write(report[1], &words[0], sizeof(int));
        for (int s = 1; s < NSIG; s++)
            signal(s, SIG_DFL);
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        if (n > 0 && child == 0 && dup2(null, 0) >= 0 && dup2(log, 1) >= 0 && dup2(log, 2) >= 0)
            execvpe(argv[0], argv, env);
        words[1] = errno;
        _exit(write(report[1], &words[1], sizeof(int)) < 0);
    }
    words[1] = errno;
    close(report[1]);
    close(null);
    if (child > 0)
        waitpid(child, NULL, 0);
    /* The pid, and behind it errno when there is no QEMU. */
    while (child > 0 && got < sizeof(words)) {
        n = read(report[0], (char *)words + got, sizeof(words) - got);
        if (n <= 0)
            break;
        got += (size_t)n;
    }
    close(report[0]);
    errno = words[1];
    return got == sizeof(int) ? words[0] : -1;
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
    log = open(qemu->log_path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (log < 0)
        return error_set(err, "%s: %s", qemu->log_path, strerror(errno));
    compose(&args, qemu, cfg, accelerator, incoming);
    if (compose_env(&env, qemu, cfg, err) < 0)
        goto out;
    if (args.failed || env.failed) {
        error_set(err, "qemu-args: more than %d arguments for QEMU, or out of memory", ARGS_MAX);
        goto out;
    }
    qemu->pid = spawn(args.v, env.v, log);
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

int qemu_start(struct qemu *qemu, const struct vm_config *cfg, const char *accelerator, bool incoming,
               struct error *err)
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
    struct error what = *err;
    char text[2048], *line;
    struct stat st;
    ssize_t n;

    if (fd < 0 || fstat(fd, &st) < 0)
        return -1;
    n = pread(fd, text, sizeof(text) - 1, st.st_size > (off_t)sizeof(text) - 1 ?
              st.st_size - (off_t)sizeof(text) + 1 : 0);
    while (n > 0 && text[n - 1] == '\n')
        n--;
    if (n <= 0)
        return -1;
    text[n] = '\0';
    line = strrchr(text, '\n');
    return error_set(err, "%.180s: %.300s", what.text, line ? line + 1 : text);
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

/* Drivers of "-device X,..." and the model of "-cpu X,..." among the user's arguments. */
static void describe_args(char **args, char *out, size_t size)
{
    size_t n = 0;

    out[0] = '\0';
    for (; args[0] && args[1]; args++) {
        bool cpu = strcmp(args[0], "-cpu") == 0;

        if (cpu || strcmp(args[0], "-device") == 0)
            n += (size_t)snprintf(out + n, size - n, "%s%s%.*s", n ? "+" : "", cpu ? "cpu:" : "",
                                  (int)strcspn(args[1], cpu ? "" : ","), args[1]);
        if (n >= size)
            return;
    }
}

int qemu_profile(const struct vm_config *cfg, const char *version, const char *accelerator,
                 char profile[VM_PROFILE_MAX + 1], struct error *err)
{
    char devices[VM_PROFILE_MAX];
    int n;

    describe_args(cfg->qemu_args, devices, sizeof(devices));
    n = snprintf(profile, VM_PROFILE_MAX + 1,
                 "platform=qemu version=%s machine=microvm cpus=%u memory=%llu accelerator=%s"
                 " net=%s machine-state=%s devices=%s", version, cfg->cpus,
                 (unsigned long long)cfg->memory_bytes, accelerator,
                 *cfg->tap || *cfg->mac ? "virtio-net-device" : "none", cfg->machine_state,
                 *devices ? devices : "none");
    if (n < 0 || n > VM_PROFILE_MAX)
        return error_set(err, "qemu-args: too many devices to describe to the backup");
    return 0;
}

bool run_until(char *const argv[], const char *until, unsigned timeout_ms, char *out, size_t size)
{
    uint64_t deadline = clock_ns() + timeout_ms * NS_PER_MS;
    struct pollfd p = {.events = POLLIN};
    bool found = false;
    size_t len = 0;
    int fds[2];
    pid_t pid;

    out[0] = '\0';
    if (pipe2(fds, O_CLOEXEC) < 0)
        return false;
    pid = fork();
    if (pid == 0) {
        int null = open("/dev/null", O_RDWR);

        if (dup2(null, 0) >= 0 && dup2(fds[1], 1) >= 0 && dup2(null, 2) >= 0)
            execvp(argv[0], argv);
        _exit(127);
    }
    close(fds[1]);
    p.fd = fds[0];
    while (pid > 0 && !found && len < size - 1) {
        uint64_t now = clock_ns();
        ssize_t n;

        if (now >= deadline || poll(&p, 1, (int)((deadline - now) / NS_PER_MS) + 1) <= 0)
            break;
        n = read(fds[0], out + len, size - 1 - len);
        if (n <= 0)
            break;
        len += (size_t)n;
        out[len] = '\0';
        found = until && strstr(out, until);
    }
    close(fds[0]);
    if (pid > 0) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    return found;
}

int qemu_binary_version(const struct vm_config *cfg, char version[32], struct error *err)
{
    char *argv[] = {cfg->qemu, (char *)"-version", NULL};
    char out[512];
    unsigned major, minor, micro;

    run_until(argv, NULL, REPLY_MS, out, sizeof(out));
    if (sscanf(out, "QEMU emulator version %u.%u.%u", &major, &minor, &micro) != 3)
        return error_set(err, "qemu = \"%s\" does not run, or is no QEMU", cfg->qemu);
    snprintf(version, 32, "%u.%u.%u", major, minor, micro);
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
    bool ended = qemu->qmp && (qmp_events(qemu->qmp)->shut_down || qmp_events(qemu->qmp)->failed);

    if (qemu->pidfd >= 0 && has_exited(qemu, ended ? EXIT_MS : 0))
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
