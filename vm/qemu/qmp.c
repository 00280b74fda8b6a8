/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/clock.h"
#include "qmp.h"

struct qmp {
    int fd;
    unsigned timeout_ms;
    bool broken;
    pid_t peer;
    char version[32];
    uint64_t last_id;
    struct qmp_events events;
    size_t head, len;             /* buf[head, len) was received and not yet looked at */
    char buf[QMP_LINE_MAX + 1];   /* a line and its newline */
};

static int broken(struct qmp *qmp, struct error *err, const char *why)
{
    qmp->broken = true;
    return error_set(err, "QMP: %s", why);
}

/*
 * Receives what is there: number of octets, 0 when there is nothing yet, -1 when the connection is
 * gone.
 */
static ssize_t receive(struct qmp *qmp, struct error *err)
{
    ssize_t n;

    if (qmp->head > 0) {
        memmove(qmp->buf, qmp->buf + qmp->head, qmp->len - qmp->head);
        qmp->len -= qmp->head;
        qmp->head = 0;
    }
    if (qmp->len == sizeof(qmp->buf))
        return broken(qmp, err, "QEMU sent a line of more than 65536 octets");
    n = recv(qmp->fd, qmp->buf + qmp->len, sizeof(qmp->buf) - qmp->len, MSG_DONTWAIT);
    if (n > 0)
        qmp->len += (size_t)n;
    else if (n == 0)
        return broken(qmp, err, "QEMU closed the connection");
    else if (errno == EAGAIN || errno == EINTR)
        return 0;
    else
        return broken(qmp, err, strerror(errno));
    return n;
}

static json_t *parse(struct qmp *qmp, const char *line, size_t len, struct error *err)
{
    json_t *message = json_loadb(line, len, JSON_REJECT_DUPLICATES, NULL);

    if (json_is_object(message))
        return message;
    json_decref(message);
    qmp->broken = true;
    error_set(err, "QMP: QEMU sent no JSON object but \"%.*s\"", len > 80 ? 80 : (int)len, line);
    return NULL;
}

/*
 * The next message: 1; 0 when there is none before `deadline` (0: do not wait); -1 when the
 * connection is gone.
 */
static int next_message(struct qmp *qmp, uint64_t deadline, json_t **message, struct error *err)
{
    struct pollfd p = {.fd = qmp->fd, .events = POLLIN};
    size_t searched = 0;

    if (qmp->broken)
        return error_set(err, "QMP: the connection to QEMU was lost");
    for (;;) {
        char *line = qmp->buf + qmp->head;
        char *end = memchr(line + searched, '\n', qmp->len - qmp->head - searched);
        ssize_t n;

        if (end) {
            qmp->head += (size_t)(end - line) + 1;
            *message = parse(qmp, line, (size_t)(end - line), err);
            return *message ? 1 : -1;
        }
        searched = qmp->len - qmp->head;
        n = receive(qmp, err);
        if (n < 0)
            return -1;
        if (n == 0) {
            uint64_t now = deadline ? clock_ns() : 0;

            if (now >= deadline)
                return 0;
            poll(&p, 1, (int)((deadline - now) / NS_PER_MS) + 1);
        }
    }
}

static bool is(const char *text, const char *what)
{
    return text && strcmp(text, what) == 0;
}

static void note_event(struct qmp *qmp, const char *name, const json_t *data)
{
    if (is(name, "SHUTDOWN")) {
        const char *reason = json_string_value(json_object_get(data, "reason"));

        if (is(reason, "guest-panic") || is(reason, "host-error"))
            qmp->events.failed = true;
        else
            qmp->events.shut_down = true;
    } else if (is(name, "GUEST_PANICKED")) {
        qmp->events.failed = true;
    } else if (is(name, "MIGRATION")) {
        const char *status = json_string_value(json_object_get(data, "status"));

        if (is(status, "completed"))
            qmp->events.migration = QMP_MIGRATION_DONE;
        else if (is(status, "failed") || is(status, "cancelled"))
            qmp->events.migration = QMP_MIGRATION_FAILED;
    }
}

/* true when it was an event. */
static bool take_event(struct qmp *qmp, const json_t *message)
{
    const char *event = json_string_value(json_object_get(message, "event"));

    if (event)
        note_event(qmp, event, json_object_get(message, "data"));
    return event != NULL;
}

static uint64_t deadline(const struct qmp *qmp)
{
    return clock_ns() + qmp->timeout_ms * NS_PER_MS;
}

static int timed_out(const struct qmp *qmp, struct error *err)
{
    return error_set(err, "QMP: no answer from QEMU (pid %d) in %u ms: it hangs, is stopped, or"
                     " serves another daemon", (int)qmp->peer, qmp->timeout_ms);
}

static int greet(struct qmp *qmp, struct error *err)
{
    json_t *message;
    int major, minor, micro, n;

    n = next_message(qmp, deadline(qmp), &message, err);
    if (n <= 0)
        return n < 0 ? -1 : timed_out(qmp, err);
    n = json_unpack(message, "{s:{s:{s:{s:i,s:i,s:i}}}}", "QMP", "version", "qemu", "major",
                    &major, "minor", &minor, "micro", &micro);
    json_decref(message);
    if (n < 0)
        return error_set(err, "QMP: the peer does not greet as QEMU does");
    snprintf(qmp->version, sizeof(qmp->version), "%d.%d.%d", major, minor, micro);
    return qmp_execute(qmp, "qmp_capabilities", NULL, NULL, err);
}

int qmp_open(struct qmp **out, const char *path, unsigned timeout_ms, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct ucred peer;
    socklen_t len = sizeof(peer);
    struct qmp *qmp;
    int rc = -1;

    if (strlen(path) >= sizeof(address.sun_path))
        return error_set(err, "%s: too long for a unix socket; choose a shorter run-dir", path);
    strcpy(address.sun_path, path);
    qmp = calloc(1, sizeof(*qmp));
    if (!qmp)
        return error_set(err, "out of memory");
    qmp->timeout_ms = timeout_ms;
    qmp->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (qmp->fd < 0) {
        error_set(err, "unix socket: %s", strerror(errno));
    } else if (connect(qmp->fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        if (errno == ENOENT || errno == ECONNREFUSED)
            rc = 1;
        else
            error_set(err, "%s: %s", path, strerror(errno));
    } else if (getsockopt(qmp->fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0) {
        error_set(err, "%s: SO_PEERCRED: %s", path, strerror(errno));
    } else {
        qmp->peer = peer.pid;
        rc = greet(qmp, err);
    }
    if (rc == 0)
        *out = qmp;
    else
        qmp_close(qmp);
    return rc;
}

void qmp_close(struct qmp *qmp)
{
    if (!qmp)
        return;
    if (qmp->fd >= 0)
        close(qmp->fd);
    free(qmp);
}

pid_t qmp_peer(const struct qmp *qmp)
{
    return qmp->peer;
}

const char *qmp_version(const struct qmp *qmp)
{
    return qmp->version;
}

struct qmp_events *qmp_events(struct qmp *qmp)
{
    return &qmp->events;
}

int qmp_send(struct qmp *qmp, const char *command, const char *arguments, int fd, uint64_t *id,
             struct error *err)
{
    char text[1024], control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {.iov_base = text};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    int n;

    if (qmp->broken)
        return error_set(err, "QMP: the connection to QEMU was lost");
    *id = ++qmp->last_id;
    n = snprintf(text, sizeof(text), "{\"execute\":\"%s\",\"id\":%llu%s%s}\n", command,
                 (unsigned long long)*id, arguments ? ",\"arguments\":" : "",
                 arguments ? arguments : "");
    if (n < 0 || (size_t)n >= sizeof(text))
        return error_set(err, "QMP: command %s has too long arguments", command);
    iov.iov_len = (size_t)n;
    if (fd >= 0) {
        struct cmsghdr *c;

        msg.msg_control = control;
        msg.msg_controllen = sizeof(control);
        c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof(int));
    }
    /* A socket that has no room for one command belongs to a QEMU that reads nothing. */
    if (sendmsg(qmp->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) != n)
        return broken(qmp, err, "QEMU takes no commands");
    return 0;
}

int qmp_wait(struct qmp *qmp, uint64_t id, json_t **value, struct error *err)
{
    uint64_t until = deadline(qmp);
    json_t *message, *result, *error;
    int n;

    for (;;) {
        n = next_message(qmp, until, &message, err);
        if (n <= 0)
            return n < 0 ? -1 : timed_out(qmp, err);
        if (!take_event(qmp, message) &&
            (uint64_t)json_integer_value(json_object_get(message, "id")) == id)
            break;
        json_decref(message);
    }
    result = json_object_get(message, "return");
    error = json_object_get(message, "error");
    if (result) {
        if (value)
            *value = json_incref(result);
        n = 0;
    } else {
        const char *text = json_string_value(json_object_get(error, "desc"));

        n = error_set(err, "QEMU refuses: %.300s", text ? text : "no reason given");
    }
    json_decref(message);
    return n;
}

int qmp_execute(struct qmp *qmp, const char *command, const char *arguments, json_t **value,
                struct error *err)
{
    uint64_t id;

    if (qmp_send(qmp, command, arguments, -1, &id, err) < 0)
        return -1;
    if (qmp_wait(qmp, id, value, err) < 0)
        return error_prefix(err, "%s", command);
    return 0;
}

int qmp_wait_migration(struct qmp *qmp, struct error *err)
{
    uint64_t until = deadline(qmp);
    json_t *message;

    while (qmp->events.migration == QMP_MIGRATION_NONE) {
        int n = next_message(qmp, until, &message, err);

        if (n <= 0)
            return n < 0 ? -1 : timed_out(qmp, err);
        take_event(qmp, message);
        json_decref(message);
    }
    return 0;
}

int qmp_poll(struct qmp *qmp)
{
    json_t *message;
    int n;

    while ((n = next_message(qmp, 0, &message, NULL)) > 0) {
        take_event(qmp, message);
        json_decref(message);
    }
    return n;
}
