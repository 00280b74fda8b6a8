/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The control socket: what remusctl talks to.
 *
 * A unix stream socket, mode 0600, for root and the daemon's own user.  A JSON object a line, each
 * way:
 *
 *   {"format":1,"verb":"status","vm":"db1","args":{}}
 *   {"format":1,"ok":true,"result":...}
 *   {"format":1,"ok":false,"code":"unknown-vm","error":"no VM \"db1\"; remusctl list shows them"}
 *
 * "vm" and "args" may be left out.  Anything else in a request is refused, never ignored.  A
 * connection may carry any number of requests; the next one is read when the last reply has been
 * taken.
 *
 * Verbs register themselves.  Handlers run in the event loop's thread and must not wait: a verb
 * that takes time starts the work and answers; the client follows it through `status`.
 */
#ifndef REMUS_CONTROL_H
#define REMUS_CONTROL_H

#include <jansson.h>

#include "error.h"

#define CONTROL_FORMAT 1
#define CONTROL_LINE_MAX 65536u /* octets of a request with its newline */
#define CONTROL_CLIENTS_MAX 16  /* one more is told "busy" */
#define CONTROL_IDLE_S 30       /* a client that neither sends nor takes anything is dropped */

enum control_code {
    CONTROL_FAILED,     /* "failed": tried, and it did not work */
    CONTROL_USAGE,      /* "usage": the request makes no sense */
    CONTROL_REFUSED,    /* "refused": makes sense, but not in this state; nothing was changed */
    CONTROL_UNKNOWN_VM, /* "unknown-vm" */
    CONTROL_BUSY,       /* "busy": the same again later may work */
};

struct control_error {
    enum control_code code; /* CONTROL_FAILED unless the handler says otherwise */
    struct error text;
};

/*
 * vm: a well-formed name, or NULL when the request has none.  args: an object, perhaps empty; check
 * it with json_unpack_ex(args, &e, 0, "{s:i !}", ...), whose '!' refuses what the verb does not
 * know. 0 with *result set (a new reference) or left NULL (the reply says null); or -1 with err
 * filled.  Or CONTROL_LATER, when it has called control_later().
 */
#define CONTROL_LATER 1
typedef int (*control_handler)(void *arg, const char *vm, const json_t *args, json_t **result,
                               struct control_error *err);

struct control;
struct event_base;

/*
 * Listens on `path`.  A socket that nobody listens on any more is replaced; when somebody answers,
 * that is an error, and so is anything else of that name.  The program must ignore SIGPIPE.
 */
struct control *control_new(struct event_base *base, const char *path, struct error *err);

/* verb: a string that stays.  The last one registered for a verb counts. */
void control_register(struct control *c, const char *verb, control_handler handler, void *arg);

/*
 * For a handler whose answer takes longer: the client waits, without asking anything else, until control_answer() says in the
 * event loop's thread what the handler would have, once, even when the client or the control socket is gone by then.
 * Takes the reference to result.  NULL when there is no memory.
 */
struct control_later;
struct control_later *control_later(struct control *c);
void control_answer(struct control_later *later, int rc, json_t *result, const struct control_error *err);

/* Drops the clients and removes the socket. */
void control_free(struct control *c);

/* For handlers: sets both, returns -1. */
int control_fail(struct control_error *err, enum control_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* What `list' shows of each VM, made of an array of what `status' shows, in its place. */
void control_list(json_t *statuses);

#endif
