/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What remusd and remus-backupd share: options, configuration, run directory, lock, signals, event
 * loop, control socket and the words with systemd.  A daemon's main is
 *
 *   static const struct daemon_ops ops = {.name = "remusd", .start = start, .stop = stop, ...};
 *
 *   int main(int argc, char **argv)
 *   {
 *       return daemon_main(&ops, argc, argv);
 *   }
 *
 * Order: options, configuration, run-dir, lock, control socket, start(), READY, the loop, stop() on
 * SIGTERM or SIGINT, daemon_exit(), free().  The daemon stays in the foreground, as systemd wants
 * it.  SIGPIPE is ignored, also by the programs that it starts.  A child that goes on without exec
 * must closefrom(3), or it keeps the control socket open when the daemon is gone.
 */
#ifndef REMUS_DAEMON_H
#define REMUS_DAEMON_H

#include "config.h"
#include "control.h"
#include "error.h"

struct daemon {
    const struct daemon_ops *ops;
    const struct config *config;
    struct event_base *base;    /* thread safe: events may be added from any thread */
    struct control *control;
    void *arg;                  /* the program's own, for it to set in start() */
};

struct daemon_ops {
    const char *name;           /* also of RUN_DIR/NAME.sock and RUN_DIR/NAME.pid */
    const char *summary;        /* a line for --help */

    /* Sets up everything and registers the verbs.  When it fails free() is called all the same. */
    int (*start)(struct daemon *d, struct error *err);

    /*
     * Asked to stop: says the goodbyes and calls daemon_exit() when that is done, now or later.
     * Called once; a second signal ends the loop at once.
     */
    void (*stop)(struct daemon *d);

    /* After the loop, with the control socket closed. */
    void (*free)(struct daemon *d);
};

/* From the options to the exit status: 0 after a clean stop, 1 when something failed, 2 usage. */
int daemon_main(const struct daemon_ops *ops, int argc, char **argv);

/* Ends the loop; status is the program's exit status.  Main thread only. */
void daemon_exit(struct daemon *d, int status);

/*
 * From any thread: runs fn(arg) in the main thread, soon, in the order of the posts.  0, or -1 with
 * ENOMEM.  What is still waiting when the loop ends is never run.
 */
int daemon_post(struct daemon *d, void (*fn)(void *arg), void *arg);

/* The line that systemctl status shows.  Any thread. */
void daemon_status(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
