/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Client of the QEMU Machine Protocol: JSON objects, one a line, over a unix socket.
 * Source: QEMU docs/interop/qmp-spec.txt.
 *
 * Commands are answered in the order in which they were sent, so several can be sent before the
 * first reply is waited for; each carries an id, and a late reply to a command that was given up is
 * skipped.  Events are kept in qmp_events().  A line that is no QMP, or longer than QMP_LINE_MAX,
 * breaks the connection for good.
 */
#ifndef REMUS_QMP_H
#define REMUS_QMP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include <jansson.h>

#include "common/error.h"

#define QMP_LINE_MAX 65536

enum qmp_migration { QMP_MIGRATION_NONE, QMP_MIGRATION_DONE, QMP_MIGRATION_FAILED };

struct qmp_events {
    bool shut_down;          /* SHUTDOWN by the guest or by an operator */
    bool failed;             /* SHUTDOWN for another reason, or GUEST_PANICKED */
    enum qmp_migration migration;   /* the last MIGRATION that ended; the caller resets it */
};

struct qmp;

/*
 * Connects and greets.  0; 1 when nobody listens at `path`; -1 on failure.  timeout_ms bounds the
 * wait for the greeting and for each reply later.
 */
int qmp_open(struct qmp **qmp, const char *path, unsigned timeout_ms, struct error *err);
void qmp_close(struct qmp *qmp);

pid_t qmp_peer(const struct qmp *qmp);            /* the process that listens */
const char *qmp_version(const struct qmp *qmp);   /* of QEMU: "7.2.22" */
struct qmp_events *qmp_events(struct qmp *qmp);

/*
 * The descriptor -1 means none; `arguments` is a JSON object as text, or NULL.  *id is for
 * qmp_wait().
 */
int qmp_send(struct qmp *qmp, const char *command, const char *arguments, int fd, uint64_t *id,
             struct error *err);

/*
 * Waits for the reply.  `value`, when not NULL, gets what the command returned; the caller
 * json_decref()s it.
 */
int qmp_wait(struct qmp *qmp, uint64_t id, json_t **value, struct error *err);

/* Both. */
int qmp_execute(struct qmp *qmp, const char *command, const char *arguments, json_t **value,
                struct error *err);

/* Waits until a migration has ended: events->migration says how. */
int qmp_wait_migration(struct qmp *qmp, struct error *err);

/* Takes in the events that have arrived, without waiting.  -1: the connection is gone. */
int qmp_poll(struct qmp *qmp);

#endif
