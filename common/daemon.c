/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <event2/event.h>
#include <event2/thread.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef HAVE_SYSTEMD
#include <systemd/sd-daemon.h>
#endif

#include "daemon.h"
#include "fault.h"
#include "log.h"

#define DEFAULT_CONFIG SYSCONFDIR "/remus/remusd.conf"

struct options {
    const char *config;
    bool check, foreground, verbose;
};

/* The daemon as daemon_main() holds it. */
struct loop {
    struct daemon daemon;
    struct event *term, *interrupt, *hangup, *watchdog;
    int lock_fd;
    bool stopping;
    int status;
};

static void usage(const struct daemon_ops *ops, FILE *out)
{
    fprintf(out,
            "Usage: %s [-c FILE] [-f] [-v] [-D FAULT]...\n"
            "       %s -t [-c FILE]\n"
            "       %s -h | -V\n\n"
            "%s\n\n"
            "  -c, --config FILE   read FILE instead of %s\n"
            "  -f, --foreground    log for a person: with times, not for the journal\n"
            "  -t, --test          check the configuration and exit\n"
            "  -v, --verbose       log at level debug, whatever the configuration says\n"
            "  -D, --debug FAULT   NAME or NAME@EPOCH: make that step fail, for tests\n"
            "  -h, --help          print this and exit\n"
            "  -V, --version       print the version and exit\n",
            ops->name, ops->name, ops->name, ops->summary, DEFAULT_CONFIG);
}

/* -1 = go on; else the exit status. */
static int read_options(const struct daemon_ops *ops, int argc, char **argv, struct options *o)
{
    static const struct option longs[] = {
        {"config", required_argument, NULL, 'c'}, {"foreground", no_argument, NULL, 'f'},
        {"test", no_argument, NULL, 't'},         {"verbose", no_argument, NULL, 'v'},
        {"debug", required_argument, NULL, 'D'},  {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},      {NULL, 0, NULL, 0},
    };
    struct error err;
    int c;

    *o = (struct options){.config = DEFAULT_CONFIG};
    while ((c = getopt_long(argc, argv, "c:ftvD:hV", longs, NULL)) != -1) {
        switch (c) {
        case 'c':
            o->config = optarg;
            break;
        case 'f':
            o->foreground = true;
            break;
        case 't':
            o->check = true;
            break;
        case 'v':
            o->verbose = true;
            break;
        case 'D':
            if (fault_set(optarg, &err) < 0) {
                fprintf(stderr, "%s: -D %s: %s\n", ops->name, optarg, err.text);
                return 2;
            }
            break;
        case 'h':
            usage(ops, stdout);
            return 0;
        case 'V':
            printf("%s %s\n", ops->name, PACKAGE_VERSION);
            return 0;
        default:
            fprintf(stderr, "Try %s --help.\n", ops->name);
            return 2;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "%s: unexpected argument \"%s\"\nTry %s --help.\n", ops->name,
                argv[optind], ops->name);
        return 2;
    }
    return -1;
}

/* Guests' sockets live there: nobody else may write to it. */
static int make_run_dir(const char *path, struct error *err)
{
    struct stat st;

    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return error_set(err, "run-dir %s: cannot create it: %s%s", path, strerror(errno),
                         errno == ENOENT ? "; make the directory that it is to be in" : "");
    if (stat(path, &st) < 0)
        return error_set(err, "run-dir %s: %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return error_set(err, "run-dir %s: is no directory", path);
    if (st.st_uid != geteuid())
        return error_set(err, "run-dir %s: belongs to user %u, and this daemon runs as user %u; start it as the other one, or use "
                         "a directory of its own", path, (unsigned)st.st_uid, (unsigned)geteuid());
    if (st.st_mode & (S_IWGRP | S_IWOTH))
        return error_set(err, "run-dir %s: others can write to it (mode %03o); chmod 700 it, or use another directory", path,
                         (unsigned)st.st_mode & 0777);
    return 0;
}

/*
 * A POSIX lock: a guest's process that this daemon forks does not inherit it, and the kernel knows
 * who holds it.  Returns the file, which stays open for the daemon's life.
 */
static int lock_pid_file(const struct daemon_ops *ops, const char *run_dir, struct error *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    char path[4096];
    int fd;

    snprintf(path, sizeof(path), "%s/%s.pid", run_dir, ops->name);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0)
        return error_set(err, "%s: %s", path, strerror(errno));
    if (fcntl(fd, F_SETLK, &lock) < 0) {
        if ((errno == EAGAIN || errno == EACCES) && fcntl(fd, F_GETLK, &lock) == 0 &&
            lock.l_type != F_UNLCK)
            error_set(err,
                      "run-dir %s: already in use by %s, process %d; stop that one, or set "
                      "another run-dir",
                      run_dir, ops->name, (int)lock.l_pid);
        else
            error_set(err, "%s: cannot lock it: %s", path, strerror(errno));
        close(fd);
        return -1;
    }
    if (ftruncate(fd, 0) < 0 || dprintf(fd, "%d\n", (int)getpid()) < 0) {
        error_set(err, "%s: %s", path, strerror(errno));
        close(fd);
        return -1;
    }
    return fd;
}

static void notify(const char *state)
{
#ifdef HAVE_SYSTEMD
    sd_notify(0, state);
#else
    (void)state;
#endif
}

void daemon_status(const char *fmt, ...)
{
    char state[256] = "STATUS=";
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(state + 7, sizeof(state) - 7, fmt, ap);
    va_end(ap);
    notify(state);
}

void daemon_exit(struct daemon *d, int status)
{
    struct loop *loop = (struct loop *)d;

    loop->status = status;
    event_base_loopexit(d->base, NULL);
}

static void on_stop_signal(evutil_socket_t signal_number, short what, void *arg)
{
    struct loop *loop = arg;

    (void)what;
    if (loop->stopping) {
        log_warning(NULL, "signal %d again: leaving at once", (int)signal_number);
        loop->status = 1;
        event_base_loopbreak(loop->daemon.base);
        return;
    }
    loop->stopping = true;
    log_info(NULL, "signal %d: stopping", (int)signal_number);
    notify("STOPPING=1");
    loop->daemon.ops->stop(&loop->daemon);
}

static void on_hangup(evutil_socket_t signal_number, short what, void *arg)
{
    (void)signal_number;
    (void)what;
    (void)arg;
    log_warning(NULL, "SIGHUP: the configuration is read at the start only; restart to change it");
}

static void on_watchdog(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    (void)arg;
    notify("WATCHDOG=1");
}

static struct event *add_event(struct event_base *base, int fd, short what, event_callback_fn fn,
                               void *arg, const struct timeval *every)
{
    struct event *ev = event_new(base, fd, what | EV_PERSIST, fn, arg);

    if (ev && event_add(ev, every) < 0) {
        event_free(ev);
        return NULL;
    }
    return ev;
}

static int add_watchdog(struct loop *loop)
{
#ifdef HAVE_SYSTEMD
    uint64_t usec;

    if (sd_watchdog_enabled(0, &usec) > 0) {
        struct timeval half = {(time_t)(usec / 2000000), (suseconds_t)(usec / 2 % 1000000)};

        loop->watchdog = add_event(loop->daemon.base, -1, 0, on_watchdog, NULL, &half);
        return loop->watchdog ? 0 : -1;
    }
#else
    (void)loop;
    (void)on_watchdog;
#endif
    return 0;
}

static int make_loop(struct loop *loop, struct error *err)
{
    struct event_base *base;

    if (evthread_use_pthreads() < 0 || !(base = event_base_new()))
        return error_set(err, "cannot make an event loop: %s", strerror(errno));
    loop->daemon.base = base;
    loop->term = add_event(base, SIGTERM, EV_SIGNAL, on_stop_signal, loop, NULL);
    loop->interrupt = add_event(base, SIGINT, EV_SIGNAL, on_stop_signal, loop, NULL);
    loop->hangup = add_event(base, SIGHUP, EV_SIGNAL, on_hangup, loop, NULL);
    if (!loop->term || !loop->interrupt || !loop->hangup || add_watchdog(loop) < 0)
        return error_set(err, "cannot make an event loop: out of memory");
    return 0;
}

static void free_loop(struct loop *loop)
{
    struct event *events[] = {loop->term, loop->interrupt, loop->hangup, loop->watchdog};

    for (size_t i = 0; i < sizeof(events) / sizeof(*events); i++)
        if (events[i])
            event_free(events[i]);
    if (loop->daemon.base)
        event_base_free(loop->daemon.base);
    if (loop->lock_fd >= 0)
        close(loop->lock_fd);
}

static int run(struct loop *loop, struct error *err)
{
    struct daemon *d = &loop->daemon;
    const char *name = d->ops->name, *run_dir = d->config->run_dir;
    char path[4096];
    int rc;

    if (make_run_dir(run_dir, err) < 0)
        return -1;
    loop->lock_fd = lock_pid_file(d->ops, run_dir, err);
    if (loop->lock_fd < 0 || make_loop(loop, err) < 0)
        return -1;
    snprintf(path, sizeof(path), "%s/%s.sock", run_dir, name);
    d->control = control_new(d->base, path, err);
    if (!d->control)
        return -1;
    rc = d->ops->start(d, err);
    if (rc == 0) {
        log_info(NULL, "%s %s is ready, control socket %s", name, PACKAGE_VERSION, path);
        notify("READY=1");
        event_base_dispatch(d->base);
    }
    control_free(d->control);
    d->control = NULL;
    d->ops->free(d);
    return rc;
}

int daemon_main(const struct daemon_ops *ops, int argc, char **argv)
{
    struct config config;
    struct options o;
    struct error err;
    struct loop loop = {.daemon = {.ops = ops, .config = &config}, .lock_fd = -1};
    int status = read_options(ops, argc, argv, &o);

    if (status >= 0)
        return status;
    if (o.foreground)
        unsetenv("JOURNAL_STREAM");
    if (config_load(&config, o.config, &err) < 0) {
        log_error(NULL, "%s", err.text);
        return 1;
    }
    if (o.check) {
        printf("%s: ok\n", o.config);
        config_free(&config);
        return 0;
    }
    log_set_level(o.verbose ? LOG_LEVEL_DEBUG : (enum log_level)config.log_level);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is an error of that file, not the end of all VMs here */
    if (run(&loop, &err) < 0) {
        log_error(NULL, "%s", err.text);
        loop.status = 1;
    }
    free_loop(&loop);
    config_free(&config);
    return loop.status;
}

struct post {
    void (*fn)(void *arg);
    void *arg;
};

static void on_post(evutil_socket_t fd, short what, void *arg)
{
    struct post post = *(struct post *)arg;

    (void)fd;
    (void)what;
    free(arg);
    post.fn(post.arg);
}

/* event_base_once() without a time makes the event active at once; active events run in order. */
int daemon_post(struct daemon *d, void (*fn)(void *arg), void *arg)
{
    struct post *post = malloc(sizeof(*post));

    if (!post)
        return -1;
    *post = (struct post){fn, arg};
    if (event_base_once(d->base, -1, EV_TIMEOUT, on_post, post, NULL) < 0) {
        free(post);
        return -1;
    }
    return 0;
}
