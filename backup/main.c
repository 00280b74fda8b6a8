/* SPDX-License-Identifier: GPL-2.0-or-later */
/* remus-backupd, the daemon on the backup: listens for primaries, one standby for each VM of the configuration. */
#include <errno.h>
#include <event2/event.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/daemon.h"
#include "common/log.h"
#include "standby.h"

#define GREETERS_MAX 16         /* connections whose HELLO has not come yet, or that only ask */
#define HELLO_NS (5 * NS_PER_S)

struct backupd {
    struct standby **standbys;
    size_t count;
    int listener;
    struct event *accept_event;
    _Atomic int greeters;
};

struct greeter {
    struct backupd *backupd;
    int fd;
};

static struct standby *find(struct backupd *b, const char *vm)
{
    for (size_t i = 0; i < b->count; i++)
        if (strcmp(standby_vm(b->standbys[i]), vm) == 0)
            return b->standbys[i];
    return NULL;
}

/* Reads the HELLO of a new connection and brings it to its VM. */
static void greet(struct backupd *b, struct link *link)
{
    struct record rec;
    struct error err;
    struct proto_hello hello;
    struct standby *s = NULL;
    unsigned refusal = REFUSE_PROTOCOL;
    enum link_result r = link_recv(link, &rec, clock_ns() + HELLO_NS, &err);

    if (r == LINK_TIMEOUT)
        error_set(&err, "no HELLO within %d s", (int)(HELLO_NS / NS_PER_S));
    else if (r == LINK_CLOSED)
        error_set(&err, "closed before its HELLO");
    else if (r == LINK_RECORD && rec.type != PROTO_HELLO)
        error_set(&err, "%s before HELLO", proto_type_name(rec.type));
    else if (r == LINK_RECORD && proto_get_hello(&hello, rec.body, rec.length, &err) == 0) {
        refusal = REFUSE_VERSION;
        if (proto_choose_version(&hello, &err)) {
            refusal = REFUSE_UNKNOWN_VM;
            s = find(b, hello.vm);
            if (!s)
                error_set(&err, "the backup knows no VM \"%.63s\": add its section to remusd.conf "
                          "there", hello.vm);
        }
    }
    if (s && hello.flags & HELLO_PREFLIGHT) {
        standby_answer_preflight(s, link, &hello);
        return;
    }
    if (s) {
        standby_offer(s, link, &hello);
        return;
    }
    log_warning(NULL, "refused connection from %s: %s", link_peer(link), err.text);
    link_send_notice(link, PROTO_REFUSE, refusal, err.text);
    link_free(link);
}

static void *greeter_run(void *arg)
{
    struct greeter *g = arg;
    struct backupd *b = g->backupd;
    struct error err;
    struct chan *chan = tcp_accepted(g->fd, &err);
    struct link *link = chan ? link_new(chan) : NULL;

    if (link)
        greet(b, link);
    free(g);
    b->greeters--;
    return NULL;
}

static void on_accept(evutil_socket_t listener, short what, void *arg)
{
    struct backupd *b = arg;
    struct greeter *g;
    pthread_t thread;
    pthread_attr_t attr;
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

    (void)what;
    if (fd < 0)
        return;
    if (b->greeters >= GREETERS_MAX || !(g = malloc(sizeof(*g)))) {
        close(fd);
        return;
    }
    *g = (struct greeter){b, fd};
    b->greeters++;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&thread, &attr, greeter_run, g)) {
        b->greeters--;
        close(fd);
        free(g);
    }
    pthread_attr_destroy(&attr);
}

static struct standby *named(struct backupd *b, const char *vm, const json_t *args,
                             struct control_error *err)
{
    struct standby *s = NULL;

    if (!vm)
        control_fail(err, CONTROL_USAGE, "the request names no VM");
    else if (json_object_size(args))
        control_fail(err, CONTROL_USAGE, "this verb takes no arguments");
    else if (!(s = find(b, vm)))
        control_fail(err, CONTROL_UNKNOWN_VM,
                     "remus-backupd knows no VM \"%s\"; remusctl list shows them", vm);
    return s;
}

static int verb_takeover(void *arg, const char *vm, const json_t *args, json_t **result,
                         struct control_error *err)
{
    struct standby *s = named(arg, vm, args, err);

    (void)result;
    if (!s)
        return -1;
    if (standby_takeover(s, &err->text) < 0) {
        err->code = CONTROL_REFUSED;
        return -1;
    }
    return 0;
}

static int verb_discard(void *arg, const char *vm, const json_t *args, json_t **result,
                        struct control_error *err)
{
    struct standby *s = named(arg, vm, args, err);

    (void)result;
    if (!s)
        return -1;
    if (standby_discard(s, &err->text) < 0) {
        err->code = CONTROL_REFUSED;
        return -1;
    }
    return 0;
}

static int verb_status(void *arg, const char *vm, const json_t *args, json_t **result,
                       struct control_error *err)
{
    struct backupd *b = arg;
    struct standby *s = vm ? named(b, vm, args, err) : NULL;

    if (vm && !s)
        return -1;
    if (s) {
        *result = standby_status(s);
        return 0;
    }
    *result = json_array();
    for (size_t i = 0; i < b->count; i++)
        json_array_append_new(*result, standby_status(b->standbys[i]));
    return 0;
}

static int verb_preflight(void *arg, const char *vm, const json_t *args, json_t **result,
                          struct control_error *err)
{
    struct standby *s = named(arg, vm, args, err);

    if (!s)
        return -1;
    *result = standby_preflight(s);
    return 0;
}

static int verb_list(void *arg, const char *vm, const json_t *args, json_t **result,
                     struct control_error *err)
{
    struct backupd *b = arg;

    (void)vm;
    (void)args;
    (void)err;
    *result = json_array();
    for (size_t i = 0; i < b->count; i++) {
        json_t *status = standby_status(b->standbys[i]), *row = json_object();
        static const char *const keys[] = {"vm", "role", "state", "epoch"};

        for (size_t k = 0; k < sizeof(keys) / sizeof(*keys); k++)
            json_object_set(row, keys[k], json_object_get(status, keys[k]));
        json_array_append_new(*result, row);
        json_decref(status);
    }
    return 0;
}

static int start(struct daemon *d, struct error *err)
{
    struct backupd *b = calloc(1, sizeof(*b));

    d->arg = b;
    if (!b || !(b->standbys = calloc(d->config->vm_count + 1, sizeof(*b->standbys))))
        return error_set(err, "no memory");
    b->listener = tcp_listen(d->config->listen, err);
    if (b->listener < 0)
        return -1;
    for (size_t i = 0; i < d->config->vm_count; i++) {
        if (d->config->vms[i].backup[0]) /* this host is the VM's primary: remusd's */
            continue;
        b->standbys[b->count] = standby_start(&d->config->vms[i], err);
        if (!b->standbys[b->count])
            return -1;
        b->count++;
    }
    b->accept_event = event_new(d->base, b->listener, EV_READ | EV_PERSIST, on_accept, b);
    if (!b->accept_event || event_add(b->accept_event, NULL) < 0)
        return error_set(err, "no memory");
    control_register(d->control, "takeover", verb_takeover, b);
    control_register(d->control, "discard", verb_discard, b);
    control_register(d->control, "preflight", verb_preflight, b);
    control_register(d->control, "status", verb_status, b);
    control_register(d->control, "list", verb_list, b);
    log_info(NULL, "listening on %s for %zu VM%s", d->config->listen, b->count,
             b->count == 1 ? "" : "s");
    return 0;
}

static void stop(struct daemon *d)
{
    daemon_exit(d, 0);
}

static void free_all(struct daemon *d)
{
    struct backupd *b = d->arg;

    if (!b)
        return;
    if (b->accept_event)
        event_free(b->accept_event);
    if (b->listener > 0)
        close(b->listener);
    while (b->greeters) /* each ends within HELLO_NS, or ten seconds for a preflight */
        clock_sleep_until(clock_ns() + NS_PER_MS);
    for (size_t i = 0; i < b->count; i++)
        standby_stop(b->standbys[i]);
    free(b->standbys);
    free(b);
}

int main(int argc, char **argv)
{
    static const struct daemon_ops ops = {
        .name = "remus-backupd",
        .summary = "keeps replicas of VMs ready and takes over when their host is lost",
        .start = start,
        .stop = stop,
        .free = free_all,
    };

    return daemon_main(&ops, argc, argv);
}
