/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "cleanup.h"
#include "config.h"
#include "control.h"

#define VERBS_MAX 32

struct verb {
    const char *name;
    control_handler handler;
    void *arg;
};

struct client {
    struct control *control;
    struct bufferevent *bev;
    struct client *next;
    struct control_later *later; /* the reply to come */
    bool closing; /* once the reply is taken */
    bool eof;     /* sends nothing more */
};

struct control_later {
    struct client *client; /* NULL: gone */
};

struct control {
    struct evconnlistener *listener;
    struct client *clients, *serving;
    unsigned client_count, verb_count;
    struct verb verbs[VERBS_MAX];
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
};

static const char *const code_names[] = {"failed", "usage", "refused", "unknown-vm", "busy"};

int control_fail(struct control_error *err, enum control_code code, const char *fmt, ...)
{
    va_list ap;

    err->code = code;
    va_start(ap, fmt);
    vsnprintf(err->text.text, sizeof(err->text.text), fmt, ap);
    va_end(ap);
    return -1;
}

void control_register(struct control *c, const char *verb, control_handler handler, void *arg)
{
    unsigned i = 0;

    while (i < c->verb_count && strcmp(c->verbs[i].name, verb) != 0)
        i++;
    if (i == VERBS_MAX)
        abort(); /* the verbs are fixed at compile time */
    c->verbs[i] = (struct verb){verb, handler, arg};
    if (i == c->verb_count)
        c->verb_count++;
}

static const struct verb *find_verb(const struct control *c, const char *name)
{
    for (unsigned i = 0; i < c->verb_count; i++)
        if (strcmp(c->verbs[i].name, name) == 0)
            return &c->verbs[i];
    return NULL;
}

static int check_request(const json_t *request, struct control_error *err)
{
    const char *key;
    json_t *value;

    if (!json_is_object(request))
        return control_fail(err, CONTROL_USAGE, "the request is no JSON object");
    json_object_foreach((json_t *)request, key, value) {
        if (strcmp(key, "format") == 0) {
            if (!json_is_integer(value) || json_integer_value(value) != CONTROL_FORMAT)
                return control_fail(err, CONTROL_USAGE,
                                    "this daemon speaks format %d; use the remusctl of its version",
                                    CONTROL_FORMAT);
        } else if (strcmp(key, "verb") == 0) {
            if (!json_is_string(value))
                return control_fail(err, CONTROL_USAGE, "\"verb\" must be a string");
        } else if (strcmp(key, "vm") == 0) {
            if (!json_is_string(value) || !config_good_name(json_string_value(value)))
                return control_fail(err, CONTROL_USAGE, "\"vm\" must be the name of a VM");
        } else if (strcmp(key, "args") == 0) {
            if (!json_is_object(value))
                return control_fail(err, CONTROL_USAGE, "\"args\" must be an object");
        } else {
            return control_fail(err, CONTROL_USAGE,
                                "unknown field \"%.64s\"; want format, verb, vm and args", key);
        }
    }
    if (!json_object_get(request, "format") || !json_object_get(request, "verb"))
        return control_fail(err, CONTROL_USAGE, "\"format\" and \"verb\" are needed");
    return 0;
}

static int run_request(struct control *c, const char *line, size_t len, json_t **result,
                       struct control_error *err)
{
    json_error_t where;
    json_t *request = json_loadb(line, len, JSON_REJECT_DUPLICATES, &where), *args;
    const struct verb *verb;
    const char *name;
    int rc = -1;

    if (!request)
        return control_fail(err, CONTROL_USAGE, "not a JSON request: %s", where.text);
    if (check_request(request, err) < 0)
        goto out;
    name = json_string_value(json_object_get(request, "verb"));
    verb = find_verb(c, name);
    if (!verb) {
        control_fail(err, CONTROL_USAGE, "this daemon does not know the verb \"%.64s\"", name);
        goto out;
    }
    args = json_object_get(request, "args");
    args = args ? json_incref(args) : json_object();
    if (args)
        rc = verb->handler(verb->arg, json_string_value(json_object_get(request, "vm")), args,
                           result, err);
    json_decref(args);
out:
    json_decref(request);
    return rc;
}

/* A text may end in half a UTF-8 character, where it was cut: jansson takes no such string. */
static json_t *text_to_json(const char *text)
{
    json_t *s = json_string(text);
    char ascii[sizeof(((struct error *)0)->text)];
    size_t i;

    if (s)
        return s;
    for (i = 0; text[i] && i < sizeof(ascii) - 1; i++)
        ascii[i] = (unsigned char)text[i] < 0x80 ? text[i] : '?';
    ascii[i] = '\0';
    return json_string(ascii);
}

/* Takes the reference to result.  NULL when out of memory. */
static char *reply_line(int rc, json_t *result, const struct control_error *err)
{
    json_t *reply =
        rc == 0 ? json_pack("{s:i, s:b, s:o?}", "format", CONTROL_FORMAT, "ok", 1, "result",
                            result ? result : json_null())
                : json_pack("{s:i, s:b, s:s, s:o}", "format", CONTROL_FORMAT, "ok", 0, "code",
                            code_names[err->code], "error", text_to_json(err->text.text));
    char *line = reply ? json_dumps(reply, JSON_COMPACT) : NULL;

    json_decref(reply);
    return line;
}

static void client_free(struct client *client)
{
    struct client **p = &client->control->clients;

    while (*p != client)
        p = &(*p)->next;
    *p = client->next;
    if (client->later)
        client->later->client = NULL;
    client->control->client_count--;
    bufferevent_free(client->bev);
    free(client);
}

static int send_reply(struct client *client, int rc, json_t *result,
                      const struct control_error *err)
{
    cleanup_free char *line = reply_line(rc, result, err);

    if (!line || bufferevent_write(client->bev, line, strlen(line)) < 0)
        return -1;
    return bufferevent_write(client->bev, "\n", 1);
}

/*
 * At most one request at a time: the next one waits until the reply is taken, so that replies
 * cannot pile up.  May free the client.
 */
static void serve(struct client *client)
{
    struct evbuffer *in = bufferevent_get_input(client->bev);
    struct control_error err = {.code = CONTROL_FAILED, .text = {"out of memory"}};
    json_t *result = NULL;
    cleanup_free char *line = NULL;
    size_t len;
    int rc;

    if (client->later || evbuffer_get_length(bufferevent_get_output(client->bev)) > 0)
        return;
    line = client->closing ? NULL : evbuffer_readln(in, &len, EVBUFFER_EOL_LF);
    if (line) {
        client->control->serving = client;
        rc = run_request(client->control, line, len, &result, &err);
        if (rc == CONTROL_LATER)
            return;
    } else if (!client->closing && evbuffer_get_length(in) >= CONTROL_LINE_MAX) {
        rc = control_fail(&err, CONTROL_USAGE, "the request is longer than %u octets",
                          CONTROL_LINE_MAX);
        client->closing = true;
        bufferevent_disable(client->bev, EV_READ);
    } else {
        if (client->closing || client->eof)
            client_free(client);
        return;
    }
    if (send_reply(client, rc, result, &err) < 0)
        client_free(client);
}

struct control_later *control_later(struct control *c)
{
    struct control_later *later = calloc(1, sizeof(*later));

    if (later) {
        later->client = c->serving;
        c->serving->later = later;
    }
    return later;
}

void control_answer(struct control_later *later, int rc, json_t *result, const struct control_error *err)
{
    struct client *client = later->client;

    free(later);
    if (!client) {
        json_decref(result);
        return;
    }
    client->later = NULL;
    if (send_reply(client, rc, result, err) < 0)
        client_free(client);
}

static void on_read_or_written(struct bufferevent *bev, void *arg)
{
    (void)bev;
    serve(arg);
}

/* A client that has only shut down its sending side still gets its replies. */
static void on_event(struct bufferevent *bev, short what, void *arg)
{
    struct client *client = arg;

    (void)bev;
    if (what & BEV_EVENT_EOF) {
        client->eof = true;
        serve(client);
    } else {
        client_free(client); /* an error, or idle for too long */
    }
}

/* The socket is new, so the short reply fits into it at once. */
static void turn_away(evutil_socket_t fd, enum control_code code, const char *text)
{
    struct control_error err = {.code = code};
    cleanup_free char *line = NULL;

    control_fail(&err, code, "%s", text);
    line = reply_line(-1, NULL, &err);
    if (line && send(fd, line, strlen(line), MSG_NOSIGNAL) > 0)
        send(fd, "\n", 1, MSG_NOSIGNAL);
    evutil_closesocket(fd);
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *addr,
                      int addr_len, void *arg)
{
    struct control *c = arg;
    const struct timeval idle = {CONTROL_IDLE_S, 0};
    struct ucred peer;
    socklen_t peer_len = sizeof(peer);
    struct client *client;

    (void)addr;
    (void)addr_len;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &peer_len) < 0 ||
        (peer.uid != 0 && peer.uid != geteuid())) {
        turn_away(fd, CONTROL_REFUSED, "only root and the daemon's own user may control it");
        return;
    }
    if (c->client_count == CONTROL_CLIENTS_MAX) {
        turn_away(fd, CONTROL_BUSY, "too many clients are connected; try again");
        return;
    }
    client = calloc(1, sizeof(*client));
    if (client)
        client->bev = bufferevent_socket_new(evconnlistener_get_base(listener), fd,
                                             BEV_OPT_CLOSE_ON_FREE);
    if (!client || !client->bev) {
        free(client);
        evutil_closesocket(fd);
        return;
    }
    client->control = c;
    client->next = c->clients;
    c->clients = client;
    c->client_count++;
    bufferevent_setwatermark(client->bev, EV_READ, 0, CONTROL_LINE_MAX);
    bufferevent_setcb(client->bev, on_read_or_written, on_read_or_written, on_event, client);
    bufferevent_set_timeouts(client->bev, &idle, &idle);
    bufferevent_enable(client->bev, EV_READ | EV_WRITE);
}

/* Removes what a daemon that was killed has left.  0 = the name is free now. */
static int remove_stale(const struct sockaddr_un *addr, struct error *err)
{
    struct stat st;
    cleanup_close int fd = -1;

    if (lstat(addr->sun_path, &st) < 0)
        return errno == ENOENT ? 0 : error_set(err, "%s: %s", addr->sun_path, strerror(errno));
    if (!S_ISSOCK(st.st_mode))
        return error_set(err, "%s: is in the way and no socket; remove it", addr->sun_path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_set(err, "%s: %s", addr->sun_path, strerror(errno));
    if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0 || errno == EAGAIN)
        return error_set(err, "%s: another daemon answers on it; stop that one first",
                         addr->sun_path);
    if (errno != ECONNREFUSED || unlink(addr->sun_path) < 0)
        return error_set(err, "%s: %s", addr->sun_path, strerror(errno));
    return 0;
}

struct control *control_new(struct event_base *base, const char *path, struct error *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct control *c = calloc(1, sizeof(*c));
    int fd = -1;
    bool bound = false;

    if (!c) {
        error_set(err, "%s: out of memory", path);
        return NULL;
    }
    if (strlen(path) >= sizeof(addr.sun_path)) {
        error_set(err, "%s: want at most %zu octets: use a shorter run-dir", path,
                  sizeof(addr.sun_path) - 1);
        goto fail;
    }
    strcpy(addr.sun_path, path);
    strcpy(c->path, path);
    if (remove_stale(&addr, err) < 0)
        goto fail;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bound = fd >= 0 && bind(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0;
    /* Nobody can connect before listen(2), so the mode is set in time. */
    if (!bound || chmod(path, 0600) < 0 || listen(fd, CONTROL_CLIENTS_MAX) < 0) {
        error_set(err, "%s: %s", path, strerror(errno));
        goto fail;
    }
    c->listener = evconnlistener_new(base, on_accept, c,
                                     LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 0, fd);
    if (!c->listener) {
        error_set(err, "%s: out of memory", path);
        goto fail;
    }
    return c;
fail:
    if (bound)
        unlink(path);
    if (fd >= 0)
        close(fd);
    free(c);
    return NULL;
}

void control_free(struct control *c)
{
    if (!c)
        return;
    while (c->clients)
        client_free(c->clients);
    evconnlistener_free(c->listener);
    unlink(c->path);
    free(c);
}

void control_list(json_t *statuses)
{
    static const char *const keys[] = {"vm", "role", "state", "epoch"};

    for (size_t i = 0; i < json_array_size(statuses); i++) {
        json_t *status = json_array_get(statuses, i), *row = json_object();

        for (size_t k = 0; k < sizeof(keys) / sizeof(*keys); k++)
            json_object_set(row, keys[k], json_object_get(status, keys[k]));
        json_array_set_new(statuses, i, row);
    }
}
