/* SPDX-License-Identifier: GPL-2.0-or-later */
/* remusd, the daemon on the primary: one protection for each VM of the configuration. */
#include <event2/event.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/daemon.h"
#include "common/kept.h"
#include "common/log.h"
#include "common/protocol.h"
#include "preflight.h"
#include "protection.h"
#include "vm/vm.h"

struct entry {
    struct protection *protection;
    struct vm_config *kept; /* its section, when it is not in remusd.conf */
};

#define PREFLIGHTS_MAX 4 /* at a time */

/* A preflight that is under way: it talks to the backup, which the event loop must not wait for. */
struct preflight_job {
    pthread_t thread;
    struct event *done;
    struct control_later *later; /* NULL: a free place */
    const struct vm_config *cfg;
    struct vm_config *draft; /* cfg, of a VM that has no section */
    char to[300];
    double needs;
    json_t *report;
};

struct remusd {
    struct daemon *daemon;
    struct entry *entries;
    size_t count, kept;
    struct preflight_job preflights[PREFLIGHTS_MAX];
};

static struct entry *entry_of(struct remusd *r, const char *vm)
{
    for (size_t i = 0; i < r->count; i++)
        if (strcmp(protection_vm(r->entries[i].protection), vm) == 0)
            return &r->entries[i];
    return NULL;
}

static struct protection *find(struct remusd *r, const char *vm, struct control_error *err)
{
    struct entry *e = vm ? entry_of(r, vm) : NULL;

    if (!vm)
        control_fail(err, CONTROL_USAGE, "the request names no VM");
    else if (!e && config_vm(r->daemon->config, vm))
        control_fail(err, CONTROL_UNKNOWN_VM, "%s has a section without backup in remusd.conf: this host is its backup, and "
                     "this is for its primary", vm);
    else if (!e)
        control_fail(err, CONTROL_UNKNOWN_VM, "remusd knows no VM \"%s\"; remusctl list shows them, and remusctl protect "
                     "%s --to HOST begins with one that runs here", vm, vm);
    return e ? e->protection : NULL;
}

/* Owns kept, also when it fails. */
static int add(struct remusd *r, const struct vm_config *section, struct vm_config *kept, struct error *err)
{
    struct entry *entries = reallocarray(r->entries, r->count + 1, sizeof(*entries));
    struct protection *p = NULL;

    if (entries)
        r->entries = entries;
    else
        error_set(err, "no memory");
    if (entries)
        p = protection_start(section, err);
    if (!p) {
        config_free_section(kept);
        return -1;
    }
    r->entries[r->count++] = (struct entry){p, kept};
    r->kept += kept != NULL;
    return 0;
}

static int add_kept(void *arg, struct vm_config *kept, struct error *err)
{
    return add(arg, kept, kept, err);
}

/* HOST or HOST:PORT. */
static int complete_address(const char *to, char address[300], struct control_error *err)
{
    static const char good[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]%";
    char host[256], port[16];

    if (!to[strspn(to, good)] && strlen(to) < 256) {
        snprintf(address, 300, "%s", to);
        if (config_split_address(address, host, port, &err->text) == 0)
            return 0;
        snprintf(address, 300, "%s:" PROTO_PORT, to);
        if (config_split_address(address, host, port, &err->text) == 0)
            return 0;
    }
    return control_fail(err, CONTROL_USAGE, "--to \"%.80s\": want HOST, HOST:PORT or [IPV6]:PORT", to);
}

/* The keys of a section for a guest that runs here and has none. */
static int draft(struct remusd *r, const char *vm, const char *backup, char keys[600], struct control_error *err)
{
    const struct config *cfg = r->daemon->config;
    const char *platform;
    char size[64] = "";
    uint64_t memory;

    if (!config_good_name(vm))
        return control_fail(err, CONTROL_USAGE, "\"%.80s\" is not the name of a VM", vm);
    if (config_vm(cfg, vm))
        return control_fail(err, CONTROL_REFUSED, "%s has a section in remusd.conf, without backup: this host is its backup", vm);
    if (vm_adopt(cfg->run_dir, vm, &platform, &memory, &err->text) < 0)
        return error_prefix(&err->text, "%s has no section in remusd.conf, and none can be made for it", vm);
    if (memory)
        snprintf(size, sizeof(size), "memory = %" PRIu64 "\n", memory >> 20);
    snprintf(keys, 600, "platform = %s\nbackup = '%s'\nprotect = yes\n%s", platform, backup, size);
    return 0;
}

/* Protects it, under that section. */
static int learn(struct remusd *r, const char *vm, const char *backup, struct control_error *err)
{
    const struct config *cfg = r->daemon->config;
    struct vm_config *kept;
    char keys[600];

    if (r->kept >= KEPT_MAX)
        return control_fail(err, CONTROL_REFUSED, "%d VMs are protected without a section: remusctl forget one, or give %s "
                            "a section", KEPT_MAX, vm);
    if (draft(r, vm, backup, keys, err) < 0)
        return -1;
    kept = kept_make(cfg, r->daemon->ops->name, vm, keys, &err->text);
    if (!kept)
        return -1;
    if (add(r, kept, kept, &err->text) < 0) {
        kept_forget(cfg, r->daemon->ops->name, vm, NULL);
        return -1;
    }
    log_info(vm, "has no section: %s knows it, its backup is %s, and remusd keeps that in %s", kept->platform, backup, cfg->state_dir);
    return 0;
}

/* {} and nothing else */
static int no_args(const json_t *args, struct control_error *err)
{
    if (json_object_size(args))
        return control_fail(err, CONTROL_USAGE, "this verb takes no arguments");
    return 0;
}

static int request(struct remusd *r, const char *vm, const json_t *args,
                   enum protection_request what, struct control_error *err)
{
    struct protection *p = find(r, vm, err);

    if (!p || (args && no_args(args, err) < 0))
        return -1;
    if (protection_request(p, what, &err->text) < 0) {
        err->code = CONTROL_REFUSED;
        return -1;
    }
    return 0;
}

static int verb_protect(void *arg, const char *vm, const json_t *args, json_t **result,
                        struct control_error *err)
{
    struct entry *e = vm ? entry_of(arg, vm) : NULL;
    const char *to = NULL;
    char address[300];
    json_error_t why;

    (void)result;
    if (json_unpack_ex((json_t *)args, &why, 0, "{s?s !}", "to", &to) < 0)
        return control_fail(err, CONTROL_USAGE, "protect: %s", why.text);
    if (to && complete_address(to, address, err) < 0)
        return -1;
    if (vm && !e && to)
        return learn(arg, vm, address, err);
    if (e && to && strcmp(address, protection_backup(e->protection)) != 0)
        return control_fail(err, CONTROL_REFUSED, "%s has backup %s, not %s: %s", vm, protection_backup(e->protection), address,
                            e->kept ? "remusctl forget it first, or leave --to out"
                                    : "change its section in remusd.conf, or leave --to out");
    return request(arg, vm, NULL, REQUEST_PROTECT, err);
}

static int verb_forget(void *arg, const char *vm, const json_t *args, json_t **result,
                       struct control_error *err)
{
    struct remusd *r = arg;
    struct protection *p = find(r, vm, err);
    struct entry *e = p ? entry_of(r, vm) : NULL;

    if (!p || no_args(args, err) < 0)
        return -1;
    for (size_t i = 0; i < PREFLIGHTS_MAX; i++)
        if (r->preflights[i].later && r->preflights[i].cfg == e->kept)
            return control_fail(err, CONTROL_BUSY, "%s: a preflight is under way: try again", vm);
    err->code = CONTROL_REFUSED;
    if (!e->kept)
        return control_fail(err, CONTROL_REFUSED, "%s has a section in remusd.conf: remove it there, and restart remusd", vm);
    if (protection_may_forget(p, &err->text) < 0 || kept_forget(r->daemon->config, r->daemon->ops->name, vm, &err->text) < 0)
        return -1;
    *result = json_pack("{s:s}", "vm", vm);
    log_info(vm, "forgotten");
    protection_stop(p, true);
    config_free_section(e->kept);
    *e = r->entries[--r->count];
    r->kept--;
    return 0;
}

static int verb_unprotect(void *arg, const char *vm, const json_t *args, json_t **result,
                          struct control_error *err)
{
    (void)result;
    return request(arg, vm, args, REQUEST_UNPROTECT, err);
}

static int verb_switchover(void *arg, const char *vm, const json_t *args, json_t **result,
                           struct control_error *err)
{
    (void)result;
    return request(arg, vm, args, REQUEST_SWITCHOVER, err);
}

static int verb_verify(void *arg, const char *vm, const json_t *args, json_t **result,
                       struct control_error *err)
{
    struct protection *p = find(arg, vm, err);
    json_error_t why;
    int repair = 0;

    (void)result;
    if (!p)
        return -1;
    if (json_unpack_ex((json_t *)args, &why, 0, "{s?b !}", "repair", &repair) < 0)
        return control_fail(err, CONTROL_USAGE, "verify: %s", why.text);
    if (protection_verify(p, repair, &err->text) < 0) {
        err->code = CONTROL_REFUSED;
        return -1;
    }
    log_info(vm, "comparing the disks with the backup's%s", repair ? ", sending again what differs" : "");
    return 0;
}

static int verb_set(void *arg, const char *vm, const json_t *args, json_t **result,
                    struct control_error *err)
{
    struct protection *p = find(arg, vm, err);
    json_error_t why;
    int ms;

    (void)result;
    if (!p)
        return -1;
    if (json_unpack_ex((json_t *)args, &why, 0, "{s:i !}", "interval", &ms) < 0)
        return control_fail(err, CONTROL_USAGE, "set: %s; what can be set is \"interval\"",
                            why.text);
    if (ms < CONFIG_INTERVAL_MIN || ms > CONFIG_INTERVAL_MAX)
        return control_fail(err, CONTROL_USAGE, "interval %d ms: must be %d to %d", ms,
                            CONFIG_INTERVAL_MIN, CONFIG_INTERVAL_MAX);
    protection_set_interval(p, (unsigned)ms);
    log_info(vm, "interval set to %d ms", ms);
    return 0;
}

static int verb_status(void *arg, const char *vm, const json_t *args, json_t **result,
                       struct control_error *err)
{
    struct remusd *r = arg;
    struct protection *p = vm ? find(r, vm, err) : NULL;

    if ((vm && !p) || no_args(args, err) < 0)
        return -1;
    if (p) {
        *result = protection_status(p);
        return 0;
    }
    *result = json_array();
    for (size_t i = 0; i < r->count; i++)
        json_array_append_new(*result, protection_status(r->entries[i].protection));
    return 0;
}

/* In the event loop's thread, or behind its end. */
static void preflight_done(evutil_socket_t fd, short what, void *arg)
{
    struct preflight_job *job = arg;

    (void)fd;
    (void)what;
    pthread_join(job->thread, NULL);
    event_free(job->done);
    control_answer(job->later, 0, job->report, NULL);
    job->later = NULL;
    config_free_section(job->draft);
    job->draft = NULL;
}

static void *preflight_run(void *arg)
{
    struct preflight_job *job = arg;

    job->report = preflight_both(job->cfg, job->to, job->needs);
    event_active(job->done, 0, 0);
    return NULL;
}

static int verb_preflight(void *arg, const char *vm, const json_t *args, json_t **result,
                          struct control_error *err)
{
    struct entry *e = vm ? entry_of(arg, vm) : NULL;
    struct preflight_job *job = NULL;
    struct remusd *r = arg;
    const char *to = NULL;
    json_error_t why;
    char keys[600];

    (void)result;
    if (json_unpack_ex((json_t *)args, &why, 0, "{s?s !}", "to", &to) < 0)
        return control_fail(err, CONTROL_USAGE, "preflight: %s", why.text);
    if (!e && (!vm || !to) && !find(r, vm, err))
        return -1;
    for (size_t i = 0; i < PREFLIGHTS_MAX; i++)
        if (!r->preflights[i].later)
            job = &r->preflights[i];
    if (!job)
        return control_fail(err, CONTROL_BUSY, "%d preflights are under way: try again", PREFLIGHTS_MAX);
    if (complete_address(to ? to : protection_backup(e->protection), job->to, err) < 0)
        return -1;
    if (e) {
        protection_preflight(e->protection, &job->cfg, &job->needs);
    } else {
        if (draft(r, vm, job->to, keys, err) < 0 || !(job->draft = kept_draft(r->daemon->config, vm, keys, &err->text)))
            return -1;
        job->cfg = job->draft;
        job->needs = 0;
    }
    job->done = event_new(r->daemon->base, -1, 0, preflight_done, job);
    job->later = job->done ? control_later(r->daemon->control) : NULL;
    if (!job->later) {
        if (job->done)
            event_free(job->done);
        config_free_section(job->draft);
        job->draft = NULL;
        return -1;
    }
    if (pthread_create(&job->thread, NULL, preflight_run, job)) {
        control_answer(job->later, control_fail(err, CONTROL_FAILED, "cannot start a thread"), NULL, err);
        job->later = NULL;
        event_free(job->done);
        config_free_section(job->draft);
        job->draft = NULL;
    }
    return CONTROL_LATER;
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
    struct remusd *r = calloc(1, sizeof(*r));

    d->arg = r;
    if (!r)
        return error_set(err, "no memory");
    r->daemon = d;
    for (size_t i = 0; i < d->config->vm_count; i++) {
        const struct vm_config *vm = &d->config->vms[i];

        if (!vm->backup[0]) /* this host is the VM's backup: remus-backupd's */
            continue;
        if (add(r, vm, NULL, err) < 0)
            return -1;
    }
    if (kept_each(d->config, d->ops->name, add_kept, r, err) < 0)
        return -1;
    control_register(d->control, "protect", verb_protect, r);
    control_register(d->control, "forget", verb_forget, r);
    control_register(d->control, "unprotect", verb_unprotect, r);
    control_register(d->control, "switchover", verb_switchover, r);
    control_register(d->control, "set", verb_set, r);
    control_register(d->control, "verify", verb_verify, r);
    control_register(d->control, "preflight", verb_preflight, r);
    control_register(d->control, "status", verb_status, r);
    control_register(d->control, "list", verb_list, r);
    return 0;
}

static void stop(struct daemon *d)
{
    daemon_exit(d, 0);
}

static void free_all(struct daemon *d)
{
    struct remusd *r = d->arg;

    if (!r)
        return;
    for (size_t i = 0; i < PREFLIGHTS_MAX; i++)
        if (r->preflights[i].later) /* nobody waits for it any more */
            preflight_done(-1, 0, &r->preflights[i]);
    for (size_t i = 0; i < r->count; i++) {
        protection_stop(r->entries[i].protection, false);
        config_free_section(r->entries[i].kept);
    }
    free(r->entries);
    free(r);
}

int main(int argc, char **argv)
{
    static const struct daemon_ops ops = {
        .name = "remusd",
        .summary = "replicates running VMs to a backup host",
        .start = start,
        .stop = stop,
        .free = free_all,
    };

    return daemon_main(&ops, argc, argv);
}
