/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/run-file.h"
#include "queue.h"
#include "server.h"

#define START_NS (10 * NS_PER_S)
#define STOP_NS (5 * NS_PER_S)

int disk_queue_path(const struct vm_config *cfg, char path[108])
{
    return run_path(cfg, ".disk-queue", path, RUN_SOCKET_MAX);
}

static int quote_log(const char *log, struct error *err)
{
    cleanup_close int fd = open(log, O_RDONLY | O_CLOEXEC);
    char text[400], *end;
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);

    if (n <= 0)
        return error_set(err, "the disk server (nbdkit) ended at once: is nbdkit installed?");
    text[n] = '\0';
    end = strchr(text, '\n');
    if (end)
        *end = '\0';
    return error_set(err, "the disk server ended at once: %s", text);
}

/*
 * Child of init, in a session of its own.  It holds `alive`, the end of a pipe, for as long as it lives.  The daemon has
 * threads: system calls only in the child.  nbdkit's exitlast ends it together with its parent (PR_SET_PDEATHSIG): that must be init
 * before it starts.
 */
static int spawn(char **argv, int log, int null, int alive)
{
    pid_t child = fork();
    int status;

    if (child == 0) {
        pid_t parent = getpid();
        sigset_t none;

        setsid();
        child = fork();
        if (child)
            _exit(child < 0);
        while (getppid() == parent)
            usleep(100);
        for (int s = 1; s < NSIG; s++)
            signal(s, s == SIGXFSZ ? SIG_IGN : SIG_DFL);
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        if (dup2(null, 0) >= 0 && dup2(null, 1) >= 0 && dup2(log, 2) >= 0 && dup(alive) >= 0)
            execvp(argv[0], argv);
        _exit(127);
    }
    return child > 0 && waitpid(child, &status, 0) == child && status == 0 ? 0 : -1;
}

/* Once the server's number is in the queue, it listens. */
static int await_start(const char *queue, int alive, const char *log, struct error *err)
{
    uint64_t deadline = clock_ns() + START_NS;
    struct pollfd p = {.fd = alive, .events = POLLIN};

    while (!queue_server(queue)) {
        if (poll(&p, 1, 2) > 0)
            return quote_log(log, err);
        if (clock_ns() > deadline)
            return error_set(err, "the disk server did not start within %d s", (int)(START_NS / NS_PER_S));
    }
    return 0;
}

int disk_server_start(const struct vm_config *cfg, bool standby, struct error *err)
{
    const char *libexec = getenv("REMUS_LIBEXEC");
    char nbd[108], queue[108], log_path[108], plugin[512], queue_arg[128], size_arg[64], reads_arg[64];
    char standby_arg[16], disks[DISKS_MAX][PATH_MAX + 5];
    char *argv[] = {"nbdkit", "-f", "-U", nbd, "--filter=exitlast", plugin, queue_arg, size_arg,
                    reads_arg, standby_arg, [10 + DISKS_MAX] = NULL};
    cleanup_close int log = -1, null = -1;
    int alive[2], rc;

    if (run_path(cfg, ".nbdkit.log", log_path, sizeof(log_path)) < 0 ||
        run_path(cfg, ".nbd", nbd, sizeof(nbd)) < 0 || disk_queue_path(cfg, queue) < 0)
        return error_set(err, "run-dir = \"%s\" is too long for unix sockets in it", cfg->run_dir);
    if (queue_server(queue))
        return error_set(err, "a disk server of %s runs already (pid %d)", cfg->name,
                         (int)queue_server(queue));
    snprintf(plugin, sizeof(plugin), "%s/remus-disk.so", libexec ? libexec : PKGLIBEXECDIR);
    if (access(plugin, R_OK) < 0)
        return error_set(err, "%s: %s: disks need remusd built with nbdkit's plugin header", plugin,
                         strerror(errno));
    snprintf(queue_arg, sizeof(queue_arg), "queue=%s", queue);
    snprintf(size_arg, sizeof(size_arg), "queue-size=%zu", cfg->disk_queue_bytes);
    snprintf(reads_arg, sizeof(reads_arg), "reads-size=%zu", cfg->disk_reads_bytes);
    snprintf(standby_arg, sizeof(standby_arg), "standby=%d", standby);
    for (unsigned i = 0; i < cfg->disk_count; i++) {
        snprintf(disks[i], sizeof(disks[i]), "disk=%s", cfg->disks[i]);
        argv[10 + i] = disks[i];
    }
    unlink(nbd);
    log = open(log_path, O_RDWR | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (log < 0 || null < 0 || pipe2(alive, O_CLOEXEC) < 0)
        return error_set(err, "%s: %s", log_path, strerror(errno));
    rc = spawn(argv, log, null, alive[1]);
    close(alive[1]);
    if (rc < 0)
        error_set(err, "cannot start the disk server: %s", strerror(errno));
    else
        rc = await_start(queue, alive[0], log_path, err);
    close(alive[0]);
    return rc;
}

bool disk_server_alive(const struct vm_config *cfg)
{
    char queue[108];

    return disk_queue_path(cfg, queue) == 0 && queue_server(queue) > 0;
}

int disk_server_stop(const struct vm_config *cfg, struct error *err)
{
    uint64_t began = clock_ns();
    char queue[108];
    pid_t pid;

    if (disk_queue_path(cfg, queue) < 0)
        return 0;
    while ((pid = queue_server(queue)) > 0) {
        uint64_t waited = clock_ns() - began;

        if (waited > STOP_NS)
            return error_set(err, "the disk server (pid %d) does not end", (int)pid);
        kill(pid, waited > STOP_NS / 2 ? SIGKILL : SIGTERM);
        clock_sleep_until(clock_ns() + 5 * NS_PER_MS);
    }
    return 0;
}
