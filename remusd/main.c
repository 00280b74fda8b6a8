/* SPDX-License-Identifier: GPL-2.0-or-later */
/* remusd, the daemon on the primary: one protection for each VM of the configuration. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/daemon.h"
#include "common/log.h"
#include "common/protocol.h"
#include "preflight.h"
#include "protection.h"

#define PREFLIGHTS_MAX 4 /* at a time */

/* A preflight that is under way: it talks to the backup, which the event loop must not wait for. */
struct preflight_job {
    struct remusd *remusd;
    pthread_t thread;
    struct control_later *later; /* NULL: a free place */
    const struct vm_config *cfg;
    char to[300];
    double needs;
    json_t *report;
};

struct remusd {
    struct daemon *daemon;
    struct protection **protections;
    size_t count;
    struct preflight_job preflights[PREFLIGHTS_MAX];
};

static struct protection *find(struct remusd *r, const char *vm, struct control_error *err)
{
    if (!vm) {
        control_fail(err, CONTROL_USAGE, "the request names no VM");
        return NULL;
    }
    for (size_t i = 0; i < r->count; i++)
        if (strcmp(protection_vm(r->protections[i]), vm) == 0)
            return r->protections[i];
    control_fail(err, CONTROL_UNKNOWN_VM, "remusd knows no VM \"%s\"; remusctl list shows them",
                 vm);
    return NULL;
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

    if (!p || no_args(args, err) < 0)
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
    (void)result;
    return request(arg, vm, args, REQUEST_PROTECT, err);
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
        json_array_append_new(*result, protection_status(r->protections[i]));
    return 0;
}

/* In the event loop's thread. */
static void preflight_done(void *arg)
{
    struct preflight_job *job = arg;

    pthread_join(job->thread, NULL);
    control_answer(job->later, 0, job->report, NULL);
    job->later = NULL;
}

static void *preflight_run(void *arg)
{
    struct preflight_job *job = arg;

    job->report = preflight_both(job->cfg, job->to, job->needs);
    daemon_post(job->remusd->daemon, preflight_done, job);
    return NULL;
}

static bool ends_bracketed(const char *address)
{
    return *address && address[strlen(address) - 1] == ']';
}

static int verb_preflight(void *arg, const char *vm, const json_t *args, json_t **result,
                          struct control_error *err)
{
    struct protection *p = find(arg, vm, err);
    struct preflight_job *job = NULL;
    struct remusd *r = arg;
    char host[256], port[16];
    const char *to = NULL;
    json_error_t why;

    (void)result;
    if (!p)
        return -1;
    if (json_unpack_ex((json_t *)args, &why, 0, "{s?s !}", "to", &to) < 0)
        return control_fail(err, CONTROL_USAGE, "preflight: %s", why.text);
    for (size_t i = 0; i < PREFLIGHTS_MAX; i++)
        if (!r->preflights[i].later)
            job = &r->preflights[i];
    if (!job)
        return control_fail(err, CONTROL_BUSY, "%d preflights are under way: try again", PREFLIGHTS_MAX);
    protection_preflight(p, &job->cfg, &job->needs);
    if (!to)
        to = job->cfg->backup;
    if (snprintf(job->to, sizeof(job->to), "%s%s", to, strpbrk(to, ":") && !ends_bracketed(to) ? "" : ":" PROTO_PORT) >= (int)sizeof(job->to) ||
        config_split_address(job->to, host, port, &err->text) < 0)
        return control_fail(err, CONTROL_USAGE, "\"%.80s\": want HOST or HOST:PORT", to);
    job->remusd = r;
    job->later = control_later(r->daemon->control);
    if (!job->later)
        return -1;
    if (pthread_create(&job->thread, NULL, preflight_run, job)) {
        control_answer(job->later, control_fail(err, CONTROL_FAILED, "cannot start a thread"), NULL, err);
        job->later = NULL;
    }
    return CONTROL_LATER;
}

static int verb_list(void *arg, const char *vm, const json_t *args, json_t **result,
                     struct control_error *err)
{
    struct remusd *r = arg;

    (void)vm;
    if (no_args(args, err) < 0)
        return -1;
    *result = json_array();
    for (size_t i = 0; i < r->count; i++) {
        json_t *status = protection_status(r->protections[i]), *row = json_object();
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
    struct remusd *r = calloc(1, sizeof(*r));

    d->arg = r;
    if (r)
        r->daemon = d;
    if (!r || !(r->protections = calloc(d->config->vm_count + 1, sizeof(*r->protections))))
        return error_set(err, "no memory");
    for (size_t i = 0; i < d->config->vm_count; i++) {
        const struct vm_config *vm = &d->config->vms[i];

        if (!vm->backup[0]) /* this host is the VM's backup: remus-backupd's */
            continue;
        r->protections[r->count] = protection_start(vm, err);
        if (!r->protections[r->count])
            return -1;
        r->count++;
    }
    control_register(d->control, "protect", verb_protect, r);
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
            preflight_done(&r->preflights[i]);
    for (size_t i = 0; i < r->count; i++)
        protection_stop(r->protections[i]);
    free(r->protections);
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
