/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include "common/buffer.h"
#include "common/cleanup.h"
#include "common/control.h"
#include "remusctl.h"

#define ANSWER_MAX (16u << 20)
#define ANSWER_TIME_S 10

static const char *const daemons[] = {"remusd", "remus-backupd"};

int fail(struct failure *f, int status, const char *code, const char *fmt, ...)
{
    va_list ap;

    f->status = status;
    snprintf(f->code, sizeof(f->code), "%s", code);
    va_start(ap, fmt);
    vsnprintf(f->text, sizeof(f->text), fmt, ap);
    va_end(ap);
    return status;
}

static int fail_errno(struct failure *f, const char *path, const char *daemon)
{
    switch (errno) {
    case ENOENT:
        if (!daemon)
            return fail(f, STATUS_NO_DAEMON, "no-daemon", "there is no %s: no daemon runs with that control socket", path);
        return fail(f, STATUS_NO_DAEMON, "no-daemon",
                    "%s is not running on this host (there is no %s); if this is the %s host: systemctl start %s", daemon,
                    path, daemon == daemons[PRIMARY] ? "primary" : "backup", daemon);
    case ECONNREFUSED:
        if (!daemon)
            return fail(f, STATUS_NO_DAEMON, "daemon-gone", "nobody listens on %s: its daemon is not running any more", path);
        return fail(f, STATUS_NO_DAEMON, "daemon-gone",
                    "%s is not running any more (nobody listens on %s); systemctl restart %s",
                    daemon, path, daemon);
    case EACCES:
    case EPERM:
        return fail(f, STATUS_UNKNOWN, "no-permission",
                    "%s: %s; run remusctl as root or as the user of %s", path, strerror(errno),
                    daemon ? daemon : "the daemon");
    case EAGAIN:
        return fail(f, STATUS_UNKNOWN, "no-answer", "%s: %s gives no answer for %d s", path,
                    daemon ? daemon : "the daemon", ANSWER_TIME_S);
    case EINTR:
        return fail(f, STATUS_UNKNOWN, "interrupted", "interrupted");
    default:
        return fail(f, STATUS_UNKNOWN, "no-answer", "%s: %s", path, strerror(errno));
    }
}

static int open_socket(const char *path)
{
    const struct timeval patience = {ANSWER_TIME_S, 0};
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(addr.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        int saved = errno;

        close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

/*
 * A daemon that turns us away may close before it has read the request: its answer is there all
 * the same.
 */
static int send_line(int fd, const char *line)
{
    size_t len = strlen(line), sent = 0;

    while (sent < len) {
        ssize_t n = send(fd, line + sent, len - sent, MSG_NOSIGNAL);

        if (n < 0 && errno == EPIPE)
            return 0;
        if (n < 0 && (errno != EINTR || interrupted))
            return -1;
        sent += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

static int read_line(int fd, struct buffer *in)
{
    for (;;) {
        ssize_t n;

        if (in->len > ANSWER_MAX) {
            errno = EMSGSIZE;
            return -1;
        }
        if (buffer_reserve(in, 4096) < 0)
            return -1;
        n = recv(fd, in->data + in->len, in->cap - in->len, 0);
        if (n == 0) {
            errno = ECONNRESET;
            return -1;
        }
        if (n < 0) {
            if (errno == EINTR && !interrupted)
                continue;
            return -1;
        }
        in->len += (size_t)n;
        if (in->data[in->len - 1] == '\n')
            return 0;
    }
}

static int fail_as_told(struct failure *f, const json_t *reply)
{
    const char *code = text_at(reply, "code");
    int status = strcmp(code, "usage") == 0        ? STATUS_USAGE
                 : strcmp(code, "unknown-vm") == 0 ? STATUS_UNKNOWN_VM
                                                   : STATUS_FAILED;

    return fail(f, status, *code ? code : "failed", "%s", text_at(reply, "error"));
}

static int take_reply(const struct buffer *in, const char *path, json_t **result, struct failure *f)
{
    json_t *reply = json_loadb((const char *)in->data, in->len, JSON_REJECT_DUPLICATES, NULL);
    int rc = 0;

    if (!json_is_object(reply) ||
        json_integer_value(json_object_get(reply, "format")) != CONTROL_FORMAT)
        rc = fail(f, STATUS_UNKNOWN, "no-answer",
                  "%s: not an answer of format %d; is this remusctl of the daemon's version?", path,
                  CONTROL_FORMAT);
    else if (!json_is_true(json_object_get(reply, "ok")))
        rc = fail_as_told(f, reply);
    else
        *result = json_incref(json_object_get(reply, "result"));
    json_decref(reply);
    return rc;
}

int call(const struct ctl *ctl, enum side side, const char *verb, const char *vm, json_t *args,
         json_t **result, struct failure *f)
{
    json_t *request = json_pack("{s:i, s:s, s:s*, s:o*}", "format", CONTROL_FORMAT, "verb", verb,
                                "vm", vm, "args", args);
    cleanup_free char *line = request ? json_dumps(request, JSON_COMPACT) : NULL;
    struct buffer in = {0};
    cleanup_close int fd = -1;
    char path[4096];
    int rc;

    json_decref(request);
    if (!line)
        return fail(f, STATUS_FAILED, "failed", "out of memory");
    if (ctl->socket)
        snprintf(path, sizeof(path), "%s", ctl->socket);
    else
        snprintf(path, sizeof(path), "%s/%s.sock", ctl->run_dir, daemons[side]);
    fd = open_socket(path);
    if (fd < 0 || send_line(fd, line) < 0 || send_line(fd, "\n") < 0 || read_line(fd, &in) < 0)
        rc = fail_errno(f, path, ctl->socket ? NULL : daemons[side]);
    else
        rc = take_reply(&in, path, result, f);
    buffer_free(&in);
    return rc;
}

static int add_vms(json_t *vms, json_t *result, struct failure *f)
{
    int rc = json_is_array(result) ? json_array_extend(vms, result)
                                   : json_array_append(vms, result);
    size_t i;
    json_t *vm;

    json_decref(result);
    json_array_foreach(vms, i, vm)
        if (rc == 0 && !json_is_object(vm))
            rc = -1;
    return rc == 0 ? 0 : fail(f, STATUS_UNKNOWN, "no-answer", "the daemon's answer makes no sense");
}

/*
 * The one failure to report, when there is no answer at all: the more the operator can do about
 * it the better.
 */
static int weight(const struct failure *f)
{
    return strcmp(f->code, "no-daemon") == 0 ? 1 : strcmp(f->code, "unknown-vm") == 0 ? 2 : 3;
}

int call_both(const struct ctl *ctl, const char *verb, const char *vm, json_t **vms,
              struct failure *f)
{
    int sides = ctl->socket ? 1 : 2, answers = 0;
    struct failure failures[2] = {{0}}, *worst = &failures[0];

    *vms = json_array();
    for (int side = 0; side < sides; side++) {
        json_t *result = NULL;

        if (call(ctl, (enum side)side, verb, vm, NULL, &result, &failures[side]) == 0 &&
            add_vms(*vms, result, &failures[side]) == 0)
            answers++;
        else if (weight(&failures[side]) > weight(worst) || side == 0)
            worst = &failures[side];
    }
    if (answers == 0) {
        *f = *worst;
        if (sides == 2 && weight(worst) == 1)
            fail(f, STATUS_NO_DAEMON, "no-daemon",
                 "neither remusd nor remus-backupd is running on this host (no control socket in "
                 "%s); systemctl start remusd or remus-backupd, or name the run-dir by -R",
                 ctl->run_dir);
        else if (sides == 2 && weight(worst) == 2 && weight(&failures[worst == failures]) == 1)
            snprintf(f->text + strlen(f->text), sizeof(f->text) - strlen(f->text), "; %s does not run here",
                     daemons[worst == failures]);
        json_decref(*vms);
        *vms = NULL;
        return f->status;
    }
    for (int side = 0; side < sides; side++)
        if (failures[side].status && weight(&failures[side]) == 3)
            fprintf(stderr, "remusctl: warning: %s\n", failures[side].text);
    return 0;
}
