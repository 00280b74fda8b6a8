/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The guest that is protected: found or started, with its disks and its port. */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/random.h"
#include "common/run-file.h"
#include "disk/image.h"
#include "disk/server.h"
#include "protection-impl.h"

/*
 * RUN_DIR/NAME.guest outlives the daemon: "SESSION held INSTANCE", or free, or handed when HANDOVER was
 * sent.  A daemon that comes after a crash finds there which run of the guest it looks after, and that nothing may
 * pass before the backup has spoken (R1, R7).
 */
int protection_save_identity(const struct protection *p, const char *word, struct error *err)
{
    char text[64];
    int n = snprintf(text, sizeof(text), "%016" PRIx64 " %s %016" PRIx64 "\n", p->session, word,
                     p->vm ? p->vm->instance : 0);

    return run_file_write(p->cfg, ".guest", text, (size_t)n, err);
}

/*
 * Of a guest that was found running; an unreadable file counts as handed over, which is the safe side.  A guest that
 * others start, and of whose run there is no record, was never protected.  False when there is none.
 */
static bool load_identity(struct protection *p, char word[8])
{
    char path[PATH_MAX];
    uint64_t instance = 0;
    FILE *f;
    int n = 0;

    run_path(p->cfg, ".guest", path, sizeof(path));
    f = fopen(path, "re");
    if (f) {
        n = fscanf(f, "%" SCNx64 " %7s %" SCNx64, &p->session, word, &instance);
        fclose(f);
    }
    if (p->vm->instance && (!f || (n == 3 && instance != p->vm->instance)))
        n = 0, strcpy(word, "free");
    else if (n < 2)
        strcpy(word, "handed");
    if (n < 2 || p->session == 0)
        p->session = random_id();
    return n >= 2;
}

void protection_disown_disks(struct protection *p)
{
    struct error err;

    if (!p->cfg->disk_count)
        return;
    if (disk_server_stop(p->cfg, &err) < 0)
        protection_note(p, "%s", err.text);
    for (unsigned i = 0; i < p->cfg->disk_count && p->lc.state != LC_STOPPED; i++)
        if (image_disown(p->cfg->disks[i], p->engine.pacer.acked, &err) < 0)
            protection_note(p, "%s", err.text);
}

static int open_port(struct protection *p, struct error *err)
{
    char guest[108] = "", port[108] = "";

    if (*p->cfg->tap && vm_net_paths(p->cfg, guest, port) < 0)
        return error_set(err, "run-dir '%s' is too long for a socket's name", p->cfg->run_dir);
    if (port_open(&p->port, p->cfg, guest, port, true, err) < 0)
        return -1;
    log_info(p->cfg->name, "packets are held by: %s%s%s", p->port->ops->name, err->text[0] ? ", because " : "", err->text);
    return 0;
}

/*
 * What the section leaves out and the running guest says.  Where the section names the guest's interface, or the way round it, the port
 * need not wait for the guest: *may_open.
 */
static int learn(struct protection *p, const struct vm_ops *ops, bool running, bool *may_open, struct error *err)
{
    const struct vm_config *s = p->section;
    struct vm_facts facts, before = p->learned.facts;
    int rc = 0;

    *may_open = !ops->facts || running || (*s->mac && (*s->vif || (*s->tap && *s->guest_bridge)));
    if (!ops->facts || !running)
        return 0;
    if (ops->facts(s, &facts, err) < 0)
        return -1;
    EVENT(p, rc = vm_learn(&p->learned, s, &facts, err));
    if (rc < 0)
        return error_prefix(err, "guest \"%s\"", s->name);
    if (p->port && (strcmp(facts.vif, before.vif) != 0 || strcmp(facts.bridge, before.bridge) != 0)) {
        p->port->ops->close(p->port); /* R1: it is not where this guest's packets come along */
        p->port = NULL;
    }
    return 0;
}

/* Does the backup run the VM, or wait to? */
static enum answer ask_backup(struct protection *p, struct error *err)
{
    struct proto_welcome welcome;
    struct link *link;
    enum answer answer = protection_dial(p, HELLO_QUERY, &link, &welcome, err);

    link_free(link);
    return answer;
}

/*
 * May a guest be started here, or does it run on the backup already (R7)?  Asks the backup; when that does
 * not answer, the arbiter; when there is none, whoever started remusd has given the word.
 */
static int may_start(struct protection *p, struct error *err)
{
    enum answer answer = ask_backup(p, err);
    enum arbiter_answer verdict;

    if (answer == ANSWER_WELCOME || answer == ANSWER_REFUSED)
        return 0;
    if (answer == ANSWER_ACTIVE)
        protection_disown_disks(p);
    if (answer != ANSWER_FAILED)
        return -1;
    if (!p->cfg->arbiter[0]) {
        log_warning(p->cfg->name, "%s; starting the guest all the same", err->text);
        return 0;
    }
    if (arbiter_ask(&p->arbiter, p->cfg->arbiter, p->cfg->name, "primary", 0,
                    p->cfg->arbiter_timeout_ms * NS_PER_MS, err) < 0)
        return -1;
    while ((verdict = arbiter_poll(&p->arbiter, clock_ns(), err)) == ARBITER_PENDING)
        clock_sleep_until(clock_ns() + 10 * NS_PER_MS);
    return verdict == ARBITER_GRANTED
               ? 0
               : error_prefix(err, "the backup does not answer, so the guest is not started");
}

/*
 * Somebody has started it without asking us: does the backup run it, or wait to (R7)?  When it does not answer, whoever started
 * the guest has given the word.
 */
static bool runs_elsewhere(struct protection *p, struct error *err)
{
    enum answer answer = ask_backup(p, err);

    return answer == ANSWER_ACTIVE || answer == ANSWER_TAKEN;
}

/* The guest's disks, before it needs them.  A running guest has its server; on Xen the server waits for xl to start the guest. */
static int open_disks(struct protection *p, bool running, struct error *err)
{
    if (p->cfg->disk_count == 0 || (p->engine.disk && disk_server_alive(p->cfg)))
        return 0;
    disk_close(p->engine.disk);
    p->engine.disk = NULL;
    if (!running &&
        (disk_server_stop(p->cfg, err) < 0 || disk_server_start(p->cfg, false, err) < 0))
        return -1;
    return disk_open(&p->engine.disk, p->cfg, err);
}

int protection_open_guest(struct protection *p, struct error *err)
{
    const struct vm_ops *ops = vm_platform(p->cfg->platform);
    char word[8] = "free";
    bool held, running, may_open;

    if (!ops)
        return error_set(err, "this build has no platform '%s'", p->cfg->platform);
    running = ops->running(p->cfg);
    if (learn(p, ops, running, &may_open, err) < 0 || (!p->port && may_open && open_port(p, err) < 0))
        return -1;
    if (!running && may_start(p, err) < 0)
        return -1;
    if (open_disks(p, running, err) < 0 || ops->open(&p->vm, p->cfg, err) < 0)
        return -1;
    if (!p->vm->attached) {
        p->session = random_id();
    } else if (!load_identity(p, word) && p->vm->instance && runs_elsewhere(p, err)) {
        p->vm->ops->close(p->vm);
        p->vm = NULL;
        return -1;
    }
    held = strcmp(word, "free") != 0;
    if (protection_save_identity(p, word, err) < 0 || engine_open(&p->engine, p->vm, p->port, err) < 0) {
        EVENT(p, engine_close(&p->engine));
        p->vm->ops->close(p->vm);
        p->vm = NULL;
        return -1;
    }
    if (!held)
        p->port->ops->pass(p->port);
    EVENT(p, lifecycle_init(&p->lc, p->cfg->degrade, p->cfg->arbiter[0] != '\0',
                            p->cfg->degrade_after_ms * NS_PER_MS, held, clock_ns()));
    if (strcmp(word, "handed") == 0)
        EVENT(p, lifecycle_handover_sent(&p->lc));
    log_info(p->cfg->name, "guest %s: %s, %s, %" PRIu64 " MiB, dirty pages by %s%s",
             p->vm->attached ? "found running" : "started", p->vm->ops->name, p->vm->accelerator,
             p->cfg->memory_bytes >> 20, p->vm->tracker,
             held ? "; its output is held until the backup answers" : "");
    return 0;
}

void protection_close_guest(struct protection *p)
{
    EVENT(p, p->ready = p->can_verify = false);
    p->vm->ops->close(p->vm);
    if (*p->cfg->vif && !p->learned.facts.vif_named && p->port->ops->leave)
        p->port->ops->leave(p->port); /* no other guest will have an interface of this name */
    p->port->ops->close(p->port);
    EVENT(p, engine_close(&p->engine));
    p->vm = NULL;
    p->port = NULL;
    p->session = 0;
    p->continuous = false;
}
