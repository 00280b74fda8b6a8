/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The arbiter decides which host may run a VM alone (R7).  It is a command of the operator's, run as
 *
 *     COMMAND VM primary|backup EPOCH
 *
 * by /bin/sh; exit status 0 grants, anything else denies.  It must be safe to ask twice and must never grant both.
 */
#ifndef REMUS_ARBITER_H
#define REMUS_ARBITER_H

#include <stdint.h>
#include <sys/types.h>

#include "error.h"

enum arbiter_answer { ARBITER_PENDING, ARBITER_GRANTED, ARBITER_DENIED };

struct arbiter {
    pid_t pid; /* 0: not asked */
    uint64_t deadline;
};

/* Starts to ask.  No answer within timeout_ns counts as denied, and the command is killed. */
int arbiter_ask(struct arbiter *a, const char *command, const char *vm, const char *role,
                uint64_t epoch, uint64_t timeout_ns, struct error *err);

/* Does not wait.  ARBITER_DENIED comes with the reason in err. */
enum arbiter_answer arbiter_poll(struct arbiter *a, uint64_t now, struct error *err);

/* Forgets the question; a running command is killed. */
void arbiter_cancel(struct arbiter *a);

#endif
