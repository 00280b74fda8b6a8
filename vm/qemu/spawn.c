/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "spawn.h"

pid_t spawn_detached(char **argv, char **env, int log)
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

bool spawn_until(char *const argv[], const char *until, unsigned timeout_ms, char *out, size_t size)
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
