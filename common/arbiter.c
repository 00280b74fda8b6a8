/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "arbiter.h"
#include "clock.h"

extern char **environ;

int arbiter_ask(struct arbiter *a, const char *command, const char *vm, const char *role,
                uint64_t epoch, uint64_t timeout_ns, struct error *err)
{
    char script[4096], number[24];
    const char *argv[] = {"sh", "-c", script, "arbiter", vm, role, number, NULL};
    posix_spawnattr_t attr;
    sigset_t none;
    int rc;

    if ((size_t)snprintf(script, sizeof(script), "%s \"$@\"", command) >= sizeof(script))
        return error_set(err, "arbiter command is longer than %zu octets", sizeof(script));
    snprintf(number, sizeof(number), "%" PRIu64, epoch);
    posix_spawnattr_init(&attr);
    sigemptyset(&none);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setpgroup(&attr, 0);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
    rc = posix_spawn(&a->pid, "/bin/sh", NULL, &attr, (char *const *)argv, environ);
    posix_spawnattr_destroy(&attr);
    if (rc) {
        a->pid = 0;
        return error_set(err, "arbiter '%s': %s", command, strerror(rc));
    }
    a->deadline = clock_ns() + timeout_ns;
    return 0;
}

enum arbiter_answer arbiter_poll(struct arbiter *a, uint64_t now, struct error *err)
{
    int status;
    pid_t got = waitpid(a->pid, &status, WNOHANG);

    if (got == 0) {
        if (now < a->deadline)
            return ARBITER_PENDING;
        arbiter_cancel(a);
        error_set(err, "the arbiter gave no answer in time");
        return ARBITER_DENIED;
    }
    a->pid = 0;
    if (got > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return ARBITER_GRANTED;
    if (got < 0)
        error_set(err, "arbiter: %s", strerror(errno));
    else if (WIFEXITED(status) && (WEXITSTATUS(status) == 126 || WEXITSTATUS(status) == 127)) /* of sh */
        error_set(err, "the arbiter's command, or one that it runs, cannot be run (exit status %d): look at it, or at the log",
                  WEXITSTATUS(status));
    else if (WIFEXITED(status))
        error_set(err, "the arbiter denied it (exit status %d)", WEXITSTATUS(status));
    else
        error_set(err, "the arbiter was killed by signal %d", WTERMSIG(status));
    return ARBITER_DENIED;
}

void arbiter_cancel(struct arbiter *a)
{
    if (a->pid <= 0)
        return;
    kill(-a->pid, SIGKILL);
    waitpid(a->pid, NULL, 0);
    a->pid = 0;
}
