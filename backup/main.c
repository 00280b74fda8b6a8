/* SPDX-License-Identifier: GPL-2.0-or-later */
/* remus-backupd, the daemon on the backup: listens for primaries, one standby for each VM of the configuration. */
#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/cleanup.h"
#include "common/daemon.h"
#include "common/kept.h"
#include "common/log.h"
#include "disk/image.h"
#include "standby.h"
#include "vm/vm.h"

#define GREETERS_MAX 16         /* connections whose HELLO has not come yet, or that only ask */
#define HELLO_NS (5 * NS_PER_S)

struct entry {
    struct standby *standby;
    struct vm_config *kept; /* its section, when it is not in remusd.conf */
};

struct backupd {
    struct daemon *daemon;
    pthread_mutex_t lock; /* for the list, which greeters read, and add to */
    struct entry *entries;
    size_t count, kept;
    unsigned preflights;  /* being answered, with standbys that must stay */
    int listener;
    struct event *accept_event;
    _Atomic int greeters;
};

struct greeter {
    struct backupd *backupd;
    int fd;
};

static struct entry *find(struct backupd *b, const char *vm)
{
    for (size_t i = 0; i < b->count; i++)
        if (strcmp(standby_vm(b->entries[i].standby), vm) == 0)
            return &b->entries[i];
    return NULL;
}

/* Owns kept, also when it fails. */
static int add(struct backupd *b, const struct vm_config *section, struct vm_config *kept, struct error *err)
{
    struct entry *entries = reallocarray(b->entries, b->count + 1, sizeof(*entries));
    struct standby *s = NULL;

    if (entries)
        b->entries = entries;
    else
        error_set(err, "no memory");
    if (entries)
        s = standby_start(section, err);
    if (!s) {
        config_free_section(kept);
        return -1;
    }
    b->entries[b->count++] = (struct entry){s, kept};
    b->kept += kept != NULL;
    return 0;
}

static int add_kept(void *arg, struct vm_config *kept, struct error *err)
{
    return add(arg, kept, kept, err);
}

/* One that is there must be a copy that was made here before: anything else may be somebody's only one. */
static int name_images(const struct config *cfg, const struct proto_hello *hello, char *keys, size_t size, struct error *err)
{
    struct image_record record;
    char path[PATH_MAX];
    size_t len = strlen(keys);

    if (hello->disk_count && !*cfg->others->image_dir)
        return error_set(err, "%s has disks: set image-dir in the section others of remusd.conf on the backup, or give it a "
                         "section there", hello->vm);
    for (unsigned i = 0; i < hello->disk_count; i++) {
        char number[16] = "";
        int found;

        if (i) /* as in target=NAME:1, which is no VM's name */
            snprintf(number, sizeof(number), ":%u", i);
        snprintf(path, sizeof(path), "%s/%s%s.img", cfg->others->image_dir, hello->vm, number);
        found = image_read(path, &record, err);
        if (found < 0)
            return -1;
        if (access(path, F_OK) == 0 && (!found || record.role == IMAGE_VALID))
            return error_set(err, "%s is there already on the backup and is no copy of a disk of %s: move it away, or give %s a "
                             "section that names its images", path, hello->vm, hello->vm);
        len += (size_t)snprintf(keys + len, size - len, "disks %s {'%s'}\n", i ? "+=" : "=", path);
        if (len >= size)
            return error_set(err, "image-dir is too long");
    }
    return 0;
}

/* The keys of a section for a VM that has none, and that a primary wants to protect here: under `others'. */
static int draft(const struct config *cfg, const struct proto_hello *hello, char keys[KEPT_KEYS_MAX], struct error *err)
{
    if (!cfg->others || config_vm(cfg, hello->vm))
        return error_set(err, "the backup knows no VM \"%.63s\": add its section to remusd.conf there%s", hello->vm,
                         cfg->others ? "" : ", or a section others, which is for all that have none");
    if (!config_good_name(hello->vm))
        return error_set(err, "\"%.63s\" is not the name of a VM", hello->vm);
    if (!replica_platform(hello->platform))
        return error_set(err, "the backup's build has no platform '%.15s'", hello->platform);
    if (hello->features & FEATURE_MACHINE) /* the description says the memory */
        snprintf(keys, KEPT_KEYS_MAX, "platform = %s\n", hello->platform);
    else
        snprintf(keys, KEPT_KEYS_MAX, "platform = %s\nmemory = %" PRIu64 "\n", hello->platform,
                 hello->pages / ((1u << 20) / PAGE_SIZE));
    return name_images(cfg, hello, keys, KEPT_KEYS_MAX, err);
}

static int learn(struct backupd *b, const struct proto_hello *hello, struct error *err)
{
    const struct config *cfg = b->daemon->config;
    char keys[KEPT_KEYS_MAX];
    struct vm_config *kept;

    if (cfg->others && hello->flags & HELLO_QUERY) /* remembers nothing of who only asks */
        return error_set(err, "%.63s was never protected on this backup", hello->vm);
    if (b->kept >= KEPT_MAX)
        return error_set(err, "the backup has %d VMs that have no section there: remusctl forget one there, or give %s a section",
                         KEPT_MAX, hello->vm);
    if (draft(cfg, hello, keys, err) < 0)
        return -1;
    kept = kept_make(cfg, b->daemon->ops->name, hello->vm, keys, err);
    if (!kept)
        return -1;
    if (add(b, kept, kept, err) < 0) {
        kept_forget(cfg, b->daemon->ops->name, hello->vm, NULL);
        return -1;
    }
    log_info(hello->vm, "has no section here: taken as one of others, which is kept in %s", cfg->state_dir);
    return 0;
}

/* Brings the primary to its VM.  False when there is none for it. */
static bool offer(struct backupd *b, struct link *link, const struct proto_hello *hello, struct error *err)
{
    SCOPED_LOCK(&b->lock);

    if (!find(b, hello->vm) && learn(b, hello, err) < 0)
        return false;
    standby_offer(find(b, hello->vm)->standby, link, hello);
    return true;
}

/* The same, for who only asks what would be missing. */
static bool answer_preflight(struct backupd *b, struct link *link, const struct proto_hello *hello, struct error *err)
{
    const struct config *cfg = b->daemon->config;
    char keys[KEPT_KEYS_MAX];
    struct vm_config *section = NULL;
    struct standby *s = NULL;

    pthread_mutex_lock(&b->lock);
    if (find(b, hello->vm)) {
        s = find(b, hello->vm)->standby;
        b->preflights++;
    }
    pthread_mutex_unlock(&b->lock);
    if (s) {
        standby_answer_preflight(s, link, hello);
        pthread_mutex_lock(&b->lock);
        b->preflights--;
        pthread_mutex_unlock(&b->lock);
        return true;
    }
    if (draft(cfg, hello, keys, err) < 0 || !(section = kept_draft(cfg, hello->vm, keys, err)))
        return false;
    standby_answer_preflight_of(section, link, hello);
    config_free_section(section);
    return true;
}

/* Reads the HELLO of a new connection and brings it to its VM. */
static void greet(struct backupd *b, struct link *link)
{
    struct record rec;
    struct error err;
    struct proto_hello hello;
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
            if (hello.flags & HELLO_PREFLIGHT ? answer_preflight(b, link, &hello, &err) : offer(b, link, &hello, &err))
                return;
        }
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
    struct entry *e = NULL;

    if (!vm)
        control_fail(err, CONTROL_USAGE, "the request names no VM");
    else if (json_object_size(args))
        control_fail(err, CONTROL_USAGE, "this verb takes no arguments");
    else if (!(e = find(b, vm)) && config_vm(b->daemon->config, vm))
        control_fail(err, CONTROL_UNKNOWN_VM, "%s has a section with backup in remusd.conf: this host is its primary, and this is "
                     "for its backup", vm);
    else if (!e)
        control_fail(err, CONTROL_UNKNOWN_VM,
                     "remus-backupd knows no VM \"%s\"; remusctl list shows them", vm);
    return e ? e->standby : NULL;
}

static int request(struct backupd *b, const char *vm, const json_t *args, int (*fn)(struct standby *s, struct error *err),
                   struct control_error *err)
{
    SCOPED_LOCK(&b->lock);
    struct standby *s = named(b, vm, args, err);

    if (!s)
        return -1;
    if (fn(s, &err->text) < 0) {
        err->code = CONTROL_REFUSED;
        return -1;
    }
    return 0;
}

static int verb_takeover(void *arg, const char *vm, const json_t *args, json_t **result,
                         struct control_error *err)
{
    (void)result;
    return request(arg, vm, args, standby_takeover, err);
}

static int verb_discard(void *arg, const char *vm, const json_t *args, json_t **result,
                        struct control_error *err)
{
    (void)result;
    return request(arg, vm, args, standby_discard, err);
}

static int verb_forget(void *arg, const char *vm, const json_t *args, json_t **result,
                       struct control_error *err)
{
    struct backupd *b = arg;
    SCOPED_LOCK(&b->lock);
    struct standby *s = named(b, vm, NULL, err);
    struct entry *e = s ? find(b, vm) : NULL;
    json_error_t why;
    int active = 0;

    if (!s)
        return -1;
    if (json_unpack_ex((json_t *)args, &why, 0, "{s?b !}", "active", &active) < 0)
        return control_fail(err, CONTROL_USAGE, "forget: %s", why.text);
    if (b->preflights)
        return control_fail(err, CONTROL_BUSY, "%s: a preflight is being answered: try again", vm);
    err->code = CONTROL_REFUSED;
    if (!e->kept)
        return control_fail(err, CONTROL_REFUSED, "%s has a section in remusd.conf: remove it there, and restart remus-backupd",
                            vm);
    if (standby_may_forget(s, active, &err->text) < 0 || kept_forget(b->daemon->config, b->daemon->ops->name, vm, &err->text) < 0)
        return -1;
    *result = json_pack("{s:s}", "vm", vm);
    log_info(vm, "forgotten");
    standby_stop(s);
    config_free_section(e->kept);
    *e = b->entries[--b->count];
    b->kept--;
    return 0;
}

static int verb_status(void *arg, const char *vm, const json_t *args, json_t **result,
                       struct control_error *err)
{
    struct backupd *b = arg;
    SCOPED_LOCK(&b->lock);
    struct standby *s = vm ? named(b, vm, args, err) : NULL;

    if (vm && !s)
        return -1;
    if (s) {
        *result = standby_status(s);
        return 0;
    }
    *result = json_array();
    for (size_t i = 0; i < b->count; i++)
        json_array_append_new(*result, standby_status(b->entries[i].standby));
    return 0;
}

static int verb_preflight(void *arg, const char *vm, const json_t *args, json_t **result,
                          struct control_error *err)
{
    struct backupd *b = arg;
    SCOPED_LOCK(&b->lock);
    struct standby *s = named(b, vm, args, err);

    if (!s)
        return -1;
    *result = standby_preflight(s);
    return 0;
}

static int verb_list(void *arg, const char *vm, const json_t *args, json_t **result,
                     struct control_error *err)
{
    (void)vm;
    if (verb_status(arg, NULL, args, result, err) < 0)
        return -1;
    control_list(*result);
    return 0;
}

static int start(struct daemon *d, struct error *err)
{
    struct backupd *b = calloc(1, sizeof(*b));

    d->arg = b;
    if (!b)
        return error_set(err, "no memory");
    b->daemon = d;
    pthread_mutex_init(&b->lock, NULL);
    b->listener = tcp_listen(d->config->listen, err);
    if (b->listener < 0)
        return -1;
    for (size_t i = 0; i < d->config->vm_count; i++) {
        if (d->config->vms[i].backup[0]) /* this host is the VM's primary: remusd's */
            continue;
        if (add(b, &d->config->vms[i], NULL, err) < 0)
            return -1;
    }
    if (kept_each(d->config, d->ops->name, add_kept, b, err) < 0)
        return -1;
    b->accept_event = event_new(d->base, b->listener, EV_READ | EV_PERSIST, on_accept, b);
    if (!b->accept_event || event_add(b->accept_event, NULL) < 0)
        return error_set(err, "no memory");
    control_register(d->control, "takeover", verb_takeover, b);
    control_register(d->control, "discard", verb_discard, b);
    control_register(d->control, "forget", verb_forget, b);
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
    for (size_t i = 0; i < b->count; i++) {
        standby_stop(b->entries[i].standby);
        config_free_section(b->entries[i].kept);
    }
    free(b->entries);
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
