/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/fault.h"
#include "common/log.h"
#include "common/run-file.h"
#include "common/urgent.h"
#include "disk/server.h"
#include "protection-impl.h"

#define GOODBYE_NS NS_PER_S
#define HANDOVER_NS (60 * NS_PER_S) /* what is on its way comes first, then the backup takes over */
#define REOPEN_NS (5 * NS_PER_S)
#define APPEARED_NS NS_PER_S
#define HEALTH_NS (100 * NS_PER_MS)
#define URGENT_POLL_NS NS_PER_MS

/* Logs an error once and keeps it for the status. */
void protection_note(struct protection *p, const char *fmt, ...)
{
    char text[512];
    bool again;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    pthread_mutex_lock(&p->engine.lock);
    again = strcmp(p->last_error, text) == 0;
    memcpy(p->last_error, text, sizeof(text));
    p->last_error_at = clock_ns();
    pthread_mutex_unlock(&p->engine.lock);
    if (!again)
        log_warning(p->cfg->name, "%s", text);
}

static enum protection_request take_request(struct protection *p)
{
    SCOPED_LOCK(&p->engine.lock);
    enum protection_request r = p->request;

    p->request = REQUEST_NONE;
    return r;
}

static bool request_waits(struct protection *p)
{
    SCOPED_LOCK(&p->engine.lock);

    return p->request != REQUEST_NONE;
}

/* R2, R10: a backup that lacks what it has acknowledged, or holds what it never got, is believed nothing. */
static int check_committed(struct protection *p, bool continuous, uint64_t committed, struct error *err)
{
    const struct engine *e = &p->engine;
    uint64_t least = e->pacer.acked > e->taken_before ? e->pacer.acked : p->committed ? p->committed : e->taken_before + 1;

    if (committed == 0 || (continuous && committed >= least && committed <= e->pacer.taken))
        return 0;
    p->continuous = false;
    return error_set(err, "backup %s says that it holds checkpoint %" PRIu64 ", which cannot be: sending everything anew",
                     p->cfg->backup, committed);
}

/* True with a link attached to the engine; otherwise the lifecycle has been told why not. */
static bool connect_backup(struct protection *p, uint64_t *committed)
{
    struct engine *e = &p->engine;
    struct link *link;
    struct error err;
    struct proto_welcome welcome;
    /* What the backup lacks of the disks would be one checkpoint's, and must fit into its journal. */
    bool continuous = p->continuous &&
                      (!e->disk || disk_changed_since(e->disk, e->disk_acked) < p->cfg->disk_journal_bytes / 2);
    uint32_t flags = (continuous ? 0 : HELLO_RESYNC) | (p->lc.held ? HELLO_HELD : 0);
    enum answer answer = protection_dial(p, flags, &link, &welcome, &err);

    if (answer == ANSWER_WELCOME) {
        e->send_blocks = welcome.features & FEATURE_BLOCKS;
        if (check_committed(p, continuous, welcome.committed, &err) < 0) {
            link_free(link);
        } else if (link_start_heartbeats(link, p->cfg->heartbeat_ms * NS_PER_MS) < 0) {
            error_set(&err, "cannot start a thread");
            link_free(link);
        } else if (engine_attach(&p->engine, link, welcome.committed, &err) == 0) {
            *committed = welcome.committed;
            p->continuous = true;
            EVENT(p, p->can_verify = welcome.features & FEATURE_DISK_CHECKS);
            return true;
        }
        answer = ANSWER_FAILED;
    }
    protection_note(p, "%s", err.text);
    EVENT(p, answer == ANSWER_ACTIVE    ? lifecycle_peer_active(&p->lc, clock_ns())
             : answer == ANSWER_FAILED ? lifecycle_connect_failed(&p->lc, clock_ns())
                                       : lifecycle_refused(&p->lc, clock_ns()));
    return false;
}

/* --- one link --- */

/* Waits until the next checkpoint is due.  False when the link ended or somebody wants something. */
static bool wait_for_turn(struct protection *p)
{
    struct engine *e = &p->engine;
    SCOPED_LOCK(&e->lock);

    for (;;) {
        uint64_t now = clock_ns(), due = pacer_due(&e->pacer, now), early;

        if (e->pacer.acked > e->taken_before) {
            if (p->lc.state == LC_SYNCING)
                log_info(p->cfg->name, "protected");
            lifecycle_acked(&p->lc, now);
        }
        if (e->link_end != LINK_UP || p->request != REQUEST_NONE)
            return false;
        if (due <= now)
            return true;
        early = *p->cfg->services && p->port->ops->urgent ? pacer_early(&e->pacer) : TIME_NEVER;
        if (early <= now) {
            if (p->port->ops->urgent(p->port))
                return true;
            early = now + URGENT_POLL_NS;
        }
        engine_wait(e, early < due ? early : due);
    }
}

/* Waits until everything taken is acknowledged, but for `failed' at the end that never will be, or the link ended. */
static bool wait_for_acks(struct engine *e, unsigned failed)
{
    SCOPED_LOCK(&e->lock);

    while (e->link_end == LINK_UP && e->pacer.acked + failed < e->pacer.taken)
        engine_wait(e, TIME_NEVER);
    return e->link_end == LINK_UP;
}

/*
 * Sends GOODBYE and waits until the backup has answered in kind: it will not take over.  Nothing should be on its way: the
 * backup closes, and whoever is still sending might see that before the answer is read.
 */
static bool say_goodbye(struct protection *p, const char *why)
{
    struct engine *e = &p->engine;

    if (link_send_notice(e->link, PROTO_GOODBYE, 0, why) == 0)
        engine_await_end(e, GOODBYE_NS);
    engine_end_link(e, LINK_LOST, "the backup did not confirm the goodbye");
    return engine_link_state(e, NULL) == LINK_GOODBYE;
}

/*
 * The guest ended by itself: nothing must be taken over.  Its process died: the backup has the last checkpoint, or one
 * from before this link, since when output is held.
 */
static bool guest_gone(struct protection *p, enum vm_health health)
{
    struct engine *e = &p->engine;
    uint64_t epoch;

    if (health == VM_ALIVE)
        return false;
    EVENT(p, epoch = p->lc.state == LC_PROTECTED ? e->pacer.acked : p->committed);
    if (health == VM_DIED && e->link && epoch) {
        protection_note(p, "the guest's process died: handing over to the backup");
        if (link_send_empty(e->link, PROTO_HANDOVER, epoch) == 0)
            engine_await_end(e, HANDOVER_NS);
        EVENT(p, lifecycle_handed_over(&p->lc, clock_ns()));
        return true;
    }
    protection_note(p, health == VM_SHUT_DOWN ? "the guest shut down" : "the guest's process died");
    if (e->link && (health == VM_SHUT_DOWN || !p->lc.held)) /* else the backup may have an old checkpoint that counts */
        say_goodbye(p, "the guest shut down");
    EVENT(p, lifecycle_guest_gone(&p->lc, clock_ns()));
    return true;
}

/* A guest without its disks is as good as dead.  Both end together when it shuts down: ask the guest first and last. */
static enum vm_health guest_health(struct protection *p)
{
    enum vm_health health = p->vm->ops->health(p->vm);

    if (health != VM_ALIVE || !p->engine.disk || disk_server_alive(p->cfg))
        return health;
    health = p->vm->ops->health(p->vm);
    if (health != VM_ALIVE)
        return health;
    protection_note(p, "the disk server has ended: see %s/%s.nbdkit.log", p->cfg->run_dir, p->cfg->name);
    return VM_DIED;
}

/* Disks first, they take longest; false when the link ended or somebody wants something. */
static bool disks_synchronised(struct protection *p)
{
    struct engine *e = &p->engine;
    SCOPED_LOCK(&e->lock);

    while (e->disk && e->link_end == LINK_UP && p->request == REQUEST_NONE) {
        struct disk_sync sync;

        disk_sync_state(e->disk, &sync);
        if (sync.done)
            break;
        engine_wait(e, TIME_NEVER);
    }
    return e->link_end == LINK_UP && p->request == REQUEST_NONE;
}

/* After a checkpoint, or a round of synchronising, that failed.  A process that is just dying may still look alive. */
static enum vm_health health_in_the_end(struct protection *p)
{
    enum vm_health health;

    for (int i = 0; (health = p->vm->ops->health(p->vm)) == VM_ALIVE && i < 40; i++)
        clock_sleep_until(clock_ns() + 5 * NS_PER_MS);
    return health;
}

/*
 * The guest is well but takes no checkpoints for now.  The backup is told not to take over, and all of it begins again: what the
 * guest sends stays held, if it ever was.
 */
static void give_up_unwilling(struct protection *p, const struct error *why)
{
    bool told = say_goodbye(p, "the guest does not take checkpoints");

    p->continuous = false;
    protection_note(p, "checkpoint failed, protecting anew: %s", why->text);
    if (told && !p->held_before && !p->engine.holding) {
        EVENT(p, lifecycle_never_held(&p->lc));
        protection_save_identity(p, "free", NULL);
    }
    EVENT(p, lifecycle_link_lost(&p->lc, clock_ns()));
    EVENT(p, lifecycle_refused(&p->lc, clock_ns()));
}

/* Brings the backup so far that the next checkpoint can make it a replica. */
static bool synchronise(struct protection *p)
{
    struct engine *e = &p->engine;
    struct error err;

    if (!disks_synchronised(p))
        return false;
    if (!p->committed && engine_precopy(e, &err) < 0) {
        if (guest_gone(p, health_in_the_end(p)))
            return false;
        if (p->vm->unwilling)
            give_up_unwilling(p, &err);
        else
            engine_end_link(e, LINK_LOST, "%s", err.text);
        return false;
    }
    if (protection_save_identity(p, "held", &err) < 0) {
        engine_end_link(e, LINK_LOST, "%s", err.text);
        return false;
    }
    p->held_before = p->lc.held;
    EVENT(p, lifecycle_first_checkpoint(&p->lc, clock_ns()));
    p->synchronised = true;
    return true;
}

/*
 * The epoch loop (docs: "An epoch").  Runs until the link ends, the guest is gone, or a request comes.
 */
static void run_epochs(struct protection *p)
{
    struct error err;

    if (!p->synchronised && !synchronise(p))
        return;
    while (wait_for_turn(p)) {
        if (guest_gone(p, guest_health(p)))
            return;
        if (engine_checkpoint(&p->engine, true, &err) < 0) {
            if (guest_gone(p, health_in_the_end(p))) /* in the middle of it: no failure (R7) */
                return;
            if (p->vm->unwilling && wait_for_acks(&p->engine, 1)) { /* nor is this one (R7) */
                give_up_unwilling(p, &err);
                return;
            }
            engine_end_link(&p->engine, LINK_LOST, "checkpoint failed: %s", err.text);
            return;
        }
    }
}

/* Everything from the first octet of a new link to its end. */
static void protect_over_link(struct protection *p, uint64_t committed)
{
    struct engine *e = &p->engine;
    struct error err;

    EVENT(p, lifecycle_connected(&p->lc, clock_ns()));
    if (!p->lc.retry)
        log_info(p->cfg->name, "connected to backup %s, %s", link_peer(e->link),
                 committed ? "sending what changed since" : "synchronising");
    if (p->handing_over) { /* the backup never got the word: go on here */
        p->handing_over = false;
        p->vm->ops->resume(p->vm, &err);
    }
    p->committed = committed;
    p->synchronised = false;
    run_epochs(p);
}

/*
 * Planned: one more checkpoint, after which the guest stays suspended; its output leaves; then the backup is told to
 * activate.  The guest here ends only when the backup has said that it runs (R7).  Should the link break
 * after the word was given, the guest stays suspended until a new link shows what the backup did.
 */
static void switch_over(struct protection *p)
{
    struct engine *e = &p->engine;
    struct error err;
    uint64_t epoch;

    if (!wait_for_acks(e, 0))
        return;
    if (engine_checkpoint(e, false, &err) < 0) {
        engine_end_link(e, LINK_LOST, "checkpoint failed: %s", err.text);
        return;
    }
    p->handing_over = true;
    if (!wait_for_acks(e, 0))
        return;
    epoch = e->pacer.taken;
    if (protection_save_identity(p, "handed", &err) < 0) {
        engine_end_link(e, LINK_LOST, "%s", err.text);
        return;
    }
    EVENT(p, lifecycle_handover_sent(&p->lc));
    fault_crash("primary-before-handover", epoch);
    if (link_send_empty(e->link, PROTO_HANDOVER, epoch) < 0)
        return;
    fault_crash("primary-after-handover", epoch);
    SCOPED_LOCK(&e->lock);
    while (e->link_end == LINK_UP)
        engine_wait(e, TIME_NEVER);
}

/* A request while the link is up.  False when the link is to end. */
static bool serve_request(struct protection *p)
{
    switch (take_request(p)) {
    case REQUEST_UNPROTECT: /* not confirmed: the backup may take over, so output stays held (R7) */
        if (wait_for_acks(&p->engine, 0) && say_goodbye(p, "protection ended by the operator"))
            EVENT(p, lifecycle_unprotect(&p->lc, clock_ns()));
        return false;
    case REQUEST_STOP:
        if (wait_for_acks(&p->engine, 0) && say_goodbye(p, "remusd stops"))
            EVENT(p, lifecycle_unprotect(&p->lc, clock_ns()));
        EVENT(p, p->request = REQUEST_STOP);
        return false;
    case REQUEST_SWITCHOVER:
        switch_over(p);
        return false;
    default:
        return true;
    }
}

static void settle_link_end(struct protection *p)
{
    struct error why;
    enum link_end end = engine_link_state(&p->engine, &why);

    if (p->lc.state != LC_SYNCING && p->lc.state != LC_PROTECTED)
        return; /* settled: unprotected, handed over, or the guest is gone */
    protection_note(p, "%s", why.text);
    if (end == LINK_PEER_ACTIVE && p->handing_over)
        EVENT(p, lifecycle_handed_over(&p->lc, clock_ns()));
    else if (end == LINK_PEER_ACTIVE)
        EVENT(p, lifecycle_peer_active(&p->lc, clock_ns()));
    else
        EVENT(p, lifecycle_link_lost(&p->lc, clock_ns()));
}

static void connect_and_protect(struct protection *p)
{
    uint64_t committed;
    bool again; /* nothing new: not worth a line */

    if (!connect_backup(p, &committed))
        return;
    again = p->lc.retry;
    protect_over_link(p, committed);
    while (engine_link_state(&p->engine, NULL) == LINK_UP &&
           (p->lc.state == LC_SYNCING || p->lc.state == LC_PROTECTED) && serve_request(p))
        run_epochs(p);
    settle_link_end(p);
    engine_detach(&p->engine);
    if (!again || !p->lc.retry)
        log_info(p->cfg->name, "%s", lifecycle_name(p->lc.state));
}

/* --- without a link --- */

static void ask_arbiter(struct protection *p)
{
    struct error err;

    log_warning(p->cfg->name, "backup lost: asking the arbiter whether to go on alone");
    if (arbiter_ask(&p->arbiter, p->cfg->arbiter, p->cfg->name, "primary", p->engine.pacer.acked,
                    p->cfg->arbiter_timeout_ms * NS_PER_MS, &err) < 0) {
        protection_note(p, "%s", err.text);
        EVENT(p, lifecycle_arbiter(&p->lc, false, clock_ns()));
    }
}

static void poll_arbiter(struct protection *p)
{
    struct error err;
    enum arbiter_answer answer = arbiter_poll(&p->arbiter, clock_ns(), &err);

    if (answer == ARBITER_DENIED)
        protection_note(p, "%s: output stays held", err.text);
    if (answer != ARBITER_PENDING)
        EVENT(p, lifecycle_arbiter(&p->lc, answer == ARBITER_GRANTED, clock_ns()));
}

/* Goes on alone: what is held may leave, and the replica on the backup is void. */
static void release(struct protection *p)
{
    if (p->handing_over) {
        struct error err;
        p->handing_over = false;
        p->vm->ops->resume(p->vm, &err);
    }
    p->continuous = false;
    protection_save_identity(p, "free", NULL);
    p->port->ops->pass(p->port);
    p->engine.holding = false;
    log_warning(p->cfg->name, "output is released, the guest runs without protection");
}

static void destroy_guest(struct protection *p)
{
    log_warning(p->cfg->name, "ending the guest on this host: %s", lifecycle_name(p->lc.state));
    p->vm->ops->destroy(p->vm);
    EVENT(p, p->vm = NULL);
    protection_disown_disks(p);
}

/* Waits for the next thing to do; with a little patience, since the guest's health is polled. */
static void idle(struct protection *p)
{
    struct engine *e = &p->engine;
    uint64_t now = clock_ns(), when;
    SCOPED_LOCK(&e->lock);

    when = lifecycle_deadline(&p->lc);
    if (when > now + HEALTH_NS)
        when = now + (p->lc.state == LC_ASKING ? HEALTH_NS / 10 : HEALTH_NS);
    if (p->request == REQUEST_NONE && when > now)
        engine_wait(e, when);
}

/* Has somebody else started a guest of this name? */
static bool appeared(const struct protection *p)
{
    const struct vm_ops *ops = vm_platform(p->cfg->platform);

    return ops && ops->appeared && ops->appeared(p->cfg);
}

/* Does what is next.  False when the daemon stops, or when a guest that has shut down is wanted or there again. */
static bool step(struct protection *p)
{
    enum lifecycle_action action;

    if (request_waits(p))
        switch (take_request(p)) {
        case REQUEST_STOP:
            return false;
        case REQUEST_PROTECT:
            if (p->lc.state == LC_SHUT_DOWN) {
                EVENT(p, p->request = REQUEST_PROTECT);
                p->again = true;
                return false;
            }
            EVENT(p, lifecycle_protect(&p->lc, clock_ns()));
            break;
        case REQUEST_UNPROTECT:
            EVENT(p, lifecycle_unprotect(&p->lc, clock_ns()));
            if (p->lc.state != LC_ASKING)
                arbiter_cancel(&p->arbiter);
            break;
        default:
            break;
        }
    EVENT(p, action = lifecycle_run(&p->lc, clock_ns()));
    switch (action) {
    case LC_CONNECT:
        connect_and_protect(p);
        break;
    case LC_ASK_ARBITER:
        ask_arbiter(p);
        break;
    case LC_RELEASE:
        release(p);
        break;
    case LC_DESTROY:
        destroy_guest(p);
        break;
    case LC_NOTHING:
        if (p->arbiter.pid)
            poll_arbiter(p);
        if (p->lc.state == LC_SHUT_DOWN && clock_ns() >= p->look_at) {
            p->look_at = clock_ns() + APPEARED_NS;
            p->again = appeared(p);
            if (p->again)
                return false;
        }
        if (p->vm && !p->handing_over && p->lc.state < LC_HANDED_OVER)
            guest_gone(p, guest_health(p));
        idle(p);
        break;
    }
    return true;
}

/*
 * A guest that cannot be opened is tried again when the operator says protect, from time to time when the
 * configuration does, and when somebody else has started it.  False when the daemon stops.
 */
static bool wait_for_guest(struct protection *p)
{
    bool protect = false;
    struct error err;

    while (protection_open_guest(p, &err) < 0) {
        uint64_t now = clock_ns(), again = p->cfg->protect ? now + REOPEN_NS : TIME_NEVER;
        uint64_t look = now + (appeared(p) ? REOPEN_NS : APPEARED_NS);
        enum protection_request request;

        protection_note(p, "%s", err.text);
        do {
            pthread_mutex_lock(&p->engine.lock);
            if (p->request == REQUEST_NONE)
                engine_wait(&p->engine, again < look ? again : look);
            pthread_mutex_unlock(&p->engine.lock);
            request = take_request(p);
            if (request == REQUEST_STOP)
                return false;
            if (request != REQUEST_NONE)
                protect = request == REQUEST_PROTECT;
            now = clock_ns();
            if (now >= look && appeared(p))
                again = now;
            else if (now >= look)
                look = now + APPEARED_NS;
        } while (request != REQUEST_PROTECT && now < again);
    }
    EVENT(p, if (protect && p->request == REQUEST_NONE) p->request = REQUEST_PROTECT);
    EVENT(p, p->ready = true);
    return true;
}

static void *run(void *arg)
{
    struct protection *p = arg;

    while (wait_for_guest(p)) {
        p->again = false;
        while (step(p))
            ;
        if (!p->again) {
            if (lifecycle_run(&p->lc, clock_ns()) == LC_RELEASE)
                release(p);
            break;
        }
        protection_close_guest(p);
        if (p->cfg->protect)
            EVENT(p, p->request = REQUEST_PROTECT);
    }
    arbiter_cancel(&p->arbiter);
    return NULL;
}

struct protection *protection_start(const struct vm_config *cfg, struct error *err)
{
    struct protection *p = calloc(1, sizeof(*p));
    int rc;

    if (!p) {
        error_set(err, "no memory");
        return NULL;
    }
    p->section = cfg;
    vm_learned_init(&p->learned, cfg);
    p->cfg = &p->learned.cfg;
    engine_init(&p->engine, p->cfg);
    lifecycle_init(&p->lc, cfg->degrade, cfg->arbiter[0] != '\0',
                   cfg->degrade_after_ms * NS_PER_MS, false, clock_ns());
    if (cfg->protect)
        p->request = REQUEST_PROTECT;
    rc = pthread_create(&p->thread, NULL, run, p);
    if (rc) {
        error_set(err, "%s: cannot start a thread: %s", cfg->name, strerror(rc));
        engine_free(&p->engine);
        free(p);
        return NULL;
    }
    return p;
}

int protection_request(struct protection *p, enum protection_request request, struct error *err)
{
    SCOPED_LOCK(&p->engine.lock);
    enum lifecycle_state state = p->lc.state;

    if (request == REQUEST_SWITCHOVER && state != LC_PROTECTED)
        return error_set(err, "%s is %s: a switchover needs a protected VM", p->cfg->name,
                         lifecycle_name(state));
    if (request == REQUEST_UNPROTECT && state >= LC_HANDED_OVER)
        return error_set(err, "%s is %s: there is no guest here that could go on alone", p->cfg->name, lifecycle_name(state));
    if (request == REQUEST_PROTECT && !p->cfg->backup[0])
        return error_set(err, "%s has no backup: set backup = \"HOST:PORT\" in its section",
                         p->cfg->name);
    if (request == REQUEST_PROTECT && state >= LC_HANDED_OVER && state != LC_SHUT_DOWN)
        return error_set(err, "%s is %s: there is no guest here; restart remusd once it is certain "
                         "that it runs nowhere else", p->cfg->name, lifecycle_name(state));
    p->request = request;
    pthread_cond_broadcast(&p->engine.changed);
    return 0;
}

int protection_verify(struct protection *p, bool repair, struct error *err)
{
    SCOPED_LOCK(&p->engine.lock);

    if (p->cfg->disk_count == 0)
        return error_set(err, "%s has no disks: there is nothing to compare", p->cfg->name);
    if (p->lc.state != LC_PROTECTED)
        return error_set(err, "%s is %s: comparing disks needs a protected VM", p->cfg->name,
                         lifecycle_name(p->lc.state));
    if (!p->can_verify)
        return error_set(err, "%s: the backup's version cannot compare disks", p->cfg->name);
    if (disk_verify_start(p->engine.disk, repair, err) < 0)
        return -1;
    staging_poke(p->engine.staging);
    return 0;
}

void protection_set_interval(struct protection *p, unsigned ms)
{
    SCOPED_LOCK(&p->engine.lock);

    p->engine.pacer.interval = ms * NS_PER_MS;
    pthread_cond_broadcast(&p->engine.changed);
}

const char *protection_vm(const struct protection *p)
{
    return p->cfg->name;
}

const char *protection_backup(const struct protection *p)
{
    return p->section->backup;
}

int protection_may_forget(struct protection *p, struct error *err)
{
    SCOPED_LOCK(&p->engine.lock);
    enum lifecycle_state state = p->lc.state;

    if (state >= LC_HANDED_OVER && state != LC_SHUT_DOWN && p->vm)
        return error_set(err, "%s is %s: its guest here is just being ended: try again", p->cfg->name, lifecycle_name(state));
    if (state < LC_HANDED_OVER && (p->lc.held || (p->ready && (state == LC_CONNECTING || state == LC_SYNCING))))
        return error_set(err, "%s is %s: remusctl unprotect %s first", p->cfg->name, lifecycle_name(state), p->cfg->name);
    return 0;
}

void protection_preflight(struct protection *p, const struct vm_config **cfg, double *needs)
{
    const struct engine *e = &p->engine;
    SCOPED_LOCK(&p->engine.lock);

    *cfg = p->section;
    *needs = p->lc.state == LC_PROTECTED && e->stats.checkpoints > 1
                 ? (double)e->stats.sent[0] / (double)e->stats.checkpoints * 1e9 / (double)e->pacer.interval
                 : 0;
}

void protection_stop(struct protection *p, bool forget)
{
    struct error err;

    if (!p)
        return;
    protection_request(p, REQUEST_STOP, &err);
    pthread_join(p->thread, NULL);
    if (forget)
        run_file_remove(p->cfg, ".guest");
    if (p->port && forget && p->port->ops->leave)
        p->port->ops->leave(p->port);
    if (p->port)
        p->port->ops->close(p->port);
    if (p->vm)
        p->vm->ops->close(p->vm);
    else if (p->engine.disk && !vm_platform(p->cfg->platform)->running(p->cfg))
        disk_server_stop(p->cfg, &err); /* no guest came that would end it */
    engine_free(&p->engine);
    free(p);
}
