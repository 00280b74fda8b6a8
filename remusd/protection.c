/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/fault.h"
#include "common/log.h"
#include "common/run-file.h"
#include "common/urgent.h"
#include "disk/image.h"
#include "disk/server.h"
#include "protection-impl.h"

#define CONNECT_NS NS_PER_S
#define WELCOME_SILENCE_NS (5 * NS_PER_S) /* the backup sends heartbeats while it prepares the replica */
#define GOODBYE_NS NS_PER_S
#define REOPEN_NS (5 * NS_PER_S)
#define HEALTH_NS (100 * NS_PER_MS)

static void note(struct protection *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Logs an error once and keeps it for the status. */
static void note(struct protection *p, const char *fmt, ...)
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

/*
 * RUN_DIR/NAME.guest outlives the daemon: "SESSION held INSTANCE", or free, or handed when HANDOVER was
 * sent.  A daemon that comes after a crash finds there which run of the guest it looks after, and that nothing may
 * pass before the backup has spoken (R1, R7).
 */
static int save_identity(const struct protection *p, const char *word, struct error *err)
{
    char text[64];
    int n = snprintf(text, sizeof(text), "%016" PRIx64 " %s %016" PRIx64 "\n", p->session, word,
                     p->vm ? p->vm->instance : 0);

    return run_file_write(p->cfg, ".guest", text, (size_t)n, err);
}

static void new_session(struct protection *p)
{
    do {
        if (getrandom(&p->session, sizeof(p->session), 0) != sizeof(p->session))
            p->session = clock_ns();
    } while (p->session == 0);
}

/*
 * Of a guest that was found running; an unreadable file counts as handed over, which is the safe side.  A guest that
 * others start, and of whose run there is no record, was never protected.
 */
static void load_identity(struct protection *p, char word[8])
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
        new_session(p);
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

#define EVENT(p, call)                                                                             \
    do {                                                                                           \
        pthread_mutex_lock(&(p)->engine.lock);                                                     \
        call;                                                                                      \
        pthread_mutex_unlock(&(p)->engine.lock);                                                   \
    } while (0)

/* --- the handshake --- */

static int send_hello(struct protection *p, struct link *link, uint32_t flags)
{
    struct proto_hello hello = {
        .version_min = PROTO_VERSION_MIN,
        .version_max = PROTO_VERSION_MAX,
        .session = p->session,
        .flags = flags,
        .pages = p->vm ? p->vm->pages : p->cfg->memory_bytes / PAGE_SIZE,
        .page_size = PAGE_SIZE,
        .heartbeat_ms = p->cfg->heartbeat_ms,
        .timeout_ms = p->cfg->timeout_ms,
    };
    uint8_t body[PROTO_SMALL_MAX];
    struct iovec iov = {.iov_base = body};

    snprintf(hello.vm, sizeof(hello.vm), "%s", p->cfg->name);
    snprintf(hello.platform, sizeof(hello.platform), "%s", p->cfg->platform);
    snprintf(hello.profile, sizeof(hello.profile), "%s", p->vm ? p->vm->profile : "");
    if (p->engine.disk) {
        hello.features |= FEATURE_DISKS | FEATURE_DISK_CHECKS | FEATURE_BLOCKS;
        hello.required |= FEATURE_DISKS;
        hello.disk_count = disk_count(p->engine.disk);
        for (unsigned i = 0; i < hello.disk_count; i++)
            hello.disks[i] = (struct proto_disk){disk_infos(p->engine.disk)[i].size,
                                                 disk_infos(p->engine.disk)[i].id};
    }
    if (p->vm && p->vm->description.len)
        hello.features |= FEATURE_MACHINE, hello.required |= FEATURE_MACHINE;
    iov.iov_len = proto_put_hello(body, &hello);
    if (link_send(link, PROTO_HELLO, 0, &iov, 1) < 0)
        return -1;
    if (!(hello.features & FEATURE_MACHINE) || flags & HELLO_QUERY)
        return 0;
    iov = (struct iovec){p->vm->description.data, p->vm->description.len};
    return link_send(link, PROTO_MACHINE, 0, &iov, 1);
}

enum answer {
    ANSWER_WELCOME,
    ANSWER_REFUSED, /* something must be mended */
    ANSWER_TAKEN,   /* another guest of this VM is, or may be, or waits to be somewhere else */
    ANSWER_ACTIVE,  /* the backup runs it */
    ANSWER_FAILED,  /* no answer that means anything */
};

static enum answer await_welcome(struct protection *p, struct link *link, bool query,
                                 struct proto_welcome *welcome, struct error *err)
{
    unsigned disks = p->engine.disk ? disk_count(p->engine.disk) : 0;

    struct proto_notice notice;
    struct record rec;

    do {
        enum link_result r = link_recv(link, &rec, link_last_heard(link) + WELCOME_SILENCE_NS, err);

        if (r == LINK_CLOSED)
            error_set(err, "it closed the connection");
        else if (r == LINK_TIMEOUT)
            error_set(err, "it did not answer; is that a remus-backupd?");
        if (r != LINK_RECORD)
            return ANSWER_FAILED;
        if (rec.type == PROTO_DISKS && disks) {
            if (proto_get_disks(p->engine.disk_base, disks, rec.body, rec.length, err) < 0)
                return ANSWER_FAILED;
            disks = 0;
            rec.type = PROTO_HEARTBEAT;
        }
    } while (rec.type == PROTO_HEARTBEAT);
    if (rec.type == PROTO_WELCOME && disks && !query) {
        error_set(err, "it did not say what it has of the disks");
        return ANSWER_FAILED;
    }
    if (rec.type == PROTO_WELCOME)
        return proto_get_welcome(welcome, rec.body, rec.length, err) < 0 ? ANSWER_FAILED
                                                                         : ANSWER_WELCOME;
    if (rec.type == PROTO_REFUSE) {
        if (proto_get_notice(&notice, rec.body, rec.length, err) < 0)
            return ANSWER_FAILED;
        error_set(err, "%s", notice.text);
        return notice.code == REFUSE_ACTIVE ? ANSWER_ACTIVE
               : notice.code == REFUSE_BUSY || notice.code == REFUSE_LATER ? ANSWER_TAKEN
                                                                           : ANSWER_REFUSED;
    }
    error_set(err, "it answered with %s", proto_type_name(rec.type));
    return ANSWER_FAILED;
}

/* Connects and says HELLO.  *link is NULL unless the answer is a welcome. */
static enum answer dial(struct protection *p, uint32_t flags, struct link **link,
                        struct proto_welcome *welcome, struct error *err)
{
    struct chan *chan = tcp_connect(p->cfg->backup, CONNECT_NS, err);
    enum answer answer = ANSWER_FAILED;

    *link = NULL;
    if (!chan)
        return answer;
    *link = link_new(chan);
    if (!*link || send_hello(p, *link, flags) < 0)
        error_set(err, "%s", strerror(errno));
    else
        answer = await_welcome(p, *link, flags & HELLO_QUERY, welcome, err);
    if (answer != ANSWER_WELCOME) {
        error_prefix(err, "backup %s", p->cfg->backup);
        link_free(*link);
        *link = NULL;
    }
    return answer;
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
    enum answer answer = dial(p, flags, &link, &welcome, &err);

    if (answer == ANSWER_WELCOME) {
        e->send_blocks = welcome.features & FEATURE_BLOCKS;
        if (link_start_heartbeats(link, p->cfg->heartbeat_ms * NS_PER_MS) < 0) {
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
    note(p, "%s", err.text);
    EVENT(p, answer == ANSWER_ACTIVE    ? lifecycle_peer_active(&p->lc, clock_ns())
             : answer == ANSWER_FAILED ? lifecycle_connect_failed(&p->lc, clock_ns())
                                       : lifecycle_refused(&p->lc, clock_ns()));
    return false;
}

/* R5: what the guest on the backup writes from now on is not in the images here. */
static void disown_disks(struct protection *p)
{
    struct error err;

    if (!p->cfg->disk_count)
        return;
    if (disk_server_stop(p->cfg, &err) < 0)
        note(p, "%s", err.text);
    for (unsigned i = 0; i < p->cfg->disk_count && p->lc.state != LC_STOPPED; i++)
        if (image_disown(p->cfg->disks[i], p->engine.pacer.acked, &err) < 0)
            note(p, "%s", err.text);
}

/* --- one link --- */

/* Waits until the next checkpoint is due.  False when the link ended or somebody wants something. */
static bool wait_for_turn(struct protection *p)
{
    struct engine *e = &p->engine;
    SCOPED_LOCK(&e->lock);

    for (;;) {
        uint64_t now = clock_ns(), due = pacer_due(&e->pacer, now);

        if (e->pacer.acked > e->taken_before)
            lifecycle_acked(&p->lc, now);
        if (e->link_end != LINK_UP || p->request != REQUEST_NONE)
            return false;
        if (due <= now)
            return true;
        engine_wait(e, due);
    }
}

/* Waits until everything taken is acknowledged, or the link ended. */
static bool wait_for_acks(struct engine *e)
{
    SCOPED_LOCK(&e->lock);

    while (e->link_end == LINK_UP && e->pacer.acked < e->pacer.taken)
        engine_wait(e, TIME_NEVER);
    return e->link_end == LINK_UP;
}

/* Waits until the backup has ended the link, for a while. */
static void wait_for_end(struct engine *e)
{
    uint64_t deadline = clock_ns() + GOODBYE_NS;
    SCOPED_LOCK(&e->lock);

    while (e->link_end == LINK_UP && clock_ns() < deadline)
        engine_wait(e, deadline);
}

/*
 * Sends GOODBYE and waits until the backup has answered in kind: it will not take over.  Nothing should be on its way: the
 * backup closes, and whoever is still sending might see that before the answer is read.
 */
static bool say_goodbye(struct protection *p, const char *why)
{
    struct engine *e = &p->engine;

    if (link_send_notice(e->link, PROTO_GOODBYE, 0, why) == 0)
        wait_for_end(e);
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
        note(p, "the guest's process died: handing over to the backup");
        if (link_send_empty(e->link, PROTO_HANDOVER, epoch) == 0)
            wait_for_end(e);
        EVENT(p, lifecycle_handed_over(&p->lc, clock_ns()));
        return true;
    }
    note(p, health == VM_SHUT_DOWN ? "the guest shut down" : "the guest's process died");
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
    note(p, "the disk server has ended: see %s/%s.nbdkit.log", p->cfg->run_dir, p->cfg->name);
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

/* Brings the backup so far that the next checkpoint can make it a replica. */
static bool synchronise(struct protection *p)
{
    struct engine *e = &p->engine;
    struct error err;

    if (!disks_synchronised(p))
        return false;
    if (!p->committed && engine_precopy(e, &err) < 0) {
        if (!guest_gone(p, health_in_the_end(p)))
            engine_end_link(e, LINK_LOST, "%s", err.text);
        return false;
    }
    if (save_identity(p, "held", &err) < 0) {
        engine_end_link(e, LINK_LOST, "%s", err.text);
        return false;
    }
    EVENT(p, lifecycle_first_checkpoint(&p->lc));
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
            if (p->vm->unwilling && wait_for_acks(&p->engine)) { /* nor is this one (R7) */
                note(p, "checkpoint failed, protecting anew: %s", err.text);
                p->continuous = false;
                say_goodbye(p, "the guest does not take checkpoints");
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

    if (!wait_for_acks(e))
        return;
    if (engine_checkpoint(e, false, &err) < 0) {
        engine_end_link(e, LINK_LOST, "checkpoint failed: %s", err.text);
        return;
    }
    p->handing_over = true;
    if (!wait_for_acks(e))
        return;
    epoch = e->pacer.taken;
    if (save_identity(p, "handed", &err) < 0) {
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
        if (wait_for_acks(&p->engine) && say_goodbye(p, "protection ended by the operator"))
            EVENT(p, lifecycle_unprotect(&p->lc, clock_ns()));
        return false;
    case REQUEST_STOP:
        if (wait_for_acks(&p->engine) && say_goodbye(p, "remusd stops"))
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
    note(p, "%s", why.text);
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

    if (!connect_backup(p, &committed))
        return;
    protect_over_link(p, committed);
    while (engine_link_state(&p->engine, NULL) == LINK_UP &&
           (p->lc.state == LC_SYNCING || p->lc.state == LC_PROTECTED) && serve_request(p))
        run_epochs(p);
    settle_link_end(p);
    engine_detach(&p->engine);
    log_info(p->cfg->name, "%s", lifecycle_name(p->lc.state));
}

/* --- without a link --- */

static void ask_arbiter(struct protection *p)
{
    struct error err;

    log_warning(p->cfg->name, "backup lost: asking the arbiter whether to go on alone");
    if (arbiter_ask(&p->arbiter, p->cfg->arbiter, p->cfg->name, "primary", p->engine.pacer.acked,
                    p->cfg->arbiter_timeout_ms * NS_PER_MS, &err) < 0) {
        note(p, "%s", err.text);
        EVENT(p, lifecycle_arbiter(&p->lc, false, clock_ns()));
    }
}

static void poll_arbiter(struct protection *p)
{
    struct error err;
    enum arbiter_answer answer = arbiter_poll(&p->arbiter, clock_ns(), &err);

    if (answer == ARBITER_DENIED)
        note(p, "%s: output stays held", err.text);
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
    save_identity(p, "free", NULL);
    p->port->ops->pass(p->port);
    p->engine.holding = false;
    log_warning(p->cfg->name, "output is released, the guest runs without protection");
}

static void destroy_guest(struct protection *p)
{
    log_warning(p->cfg->name, "ending the guest on this host: %s", lifecycle_name(p->lc.state));
    p->vm->ops->destroy(p->vm);
    EVENT(p, p->vm = NULL);
    disown_disks(p);
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

static bool step(struct protection *p)
{
    enum lifecycle_action action;

    if (request_waits(p))
        switch (take_request(p)) {
        case REQUEST_STOP:
            return false;
        case REQUEST_PROTECT:
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
        if (p->vm && !p->handing_over && p->lc.state < LC_HANDED_OVER)
            guest_gone(p, guest_health(p));
        idle(p);
        break;
    }
    return true;
}

static int open_port(struct protection *p, struct error *err)
{
    char guest[108], port[108];
    struct frames_port_config cfg = {
        .guest_path = guest,
        .guest_bridge = p->cfg->guest_bridge,
        .port_path = port,
        .tap = p->cfg->tap,
        .mac = p->cfg->mac,
        .queue_bytes = p->cfg->net_queue_bytes,
        .services = p->cfg->services,
        .open_active = p->cfg->open_when == OPEN_ACTIVE,
    };

    if (!p->cfg->tap[0]) {
        p->port = null_port_new();
        return p->port ? 0 : error_set(err, "no memory");
    }
    if (vm_net_paths(p->cfg, guest, port) < 0)
        return error_set(err, "run-dir '%s' is too long for a socket's name", p->cfg->run_dir);
    return frames_port_open(&p->port, &cfg, err);
}

/*
 * May a guest be started here, or does it run on the backup already (R7)?  Asks the backup; when that does
 * not answer, the arbiter; when there is none, whoever started remusd has given the word.
 */
static int may_start(struct protection *p, struct error *err)
{
    struct proto_welcome welcome;
    struct link *link;
    enum answer answer = dial(p, HELLO_QUERY, &link, &welcome, err);
    enum arbiter_answer verdict;

    link_free(link);
    if (answer == ANSWER_WELCOME || answer == ANSWER_REFUSED)
        return 0;
    if (answer == ANSWER_ACTIVE)
        disown_disks(p);
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

/* The guest's disks, before it needs them.  A running guest has its server. */
static int open_disks(struct protection *p, bool running, struct error *err)
{
    if (p->cfg->disk_count == 0)
        return 0;
    disk_close(p->engine.disk);
    p->engine.disk = NULL;
    if (!running &&
        (disk_server_stop(p->cfg, err) < 0 || disk_server_start(p->cfg, false, err) < 0))
        return -1;
    return disk_open(&p->engine.disk, p->cfg, err);
}

static int open_guest(struct protection *p, struct error *err)
{
    const struct vm_ops *ops = vm_platform(p->cfg->platform);
    char word[8] = "free";
    bool held;

    if (!ops)
        return error_set(err, "this build has no platform '%s'", p->cfg->platform);
    if (!p->port && open_port(p, err) < 0)
        return -1;
    if (!ops->running(p->cfg) && may_start(p, err) < 0)
        return -1;
    if (open_disks(p, ops->running(p->cfg), err) < 0 || ops->open(&p->vm, p->cfg, err) < 0)
        return -1;
    if (p->vm->attached)
        load_identity(p, word);
    else
        new_session(p);
    held = strcmp(word, "free") != 0;
    if (save_identity(p, word, err) < 0 || engine_open(&p->engine, p->vm, p->port, err) < 0)
        return -1;
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

/*
 * A guest that cannot be opened is tried again when the operator says protect, and from time to time when the
 * configuration does.  False when the daemon stops.
 */
static bool wait_for_guest(struct protection *p)
{
    bool protect = false;
    struct error err;

    while (open_guest(p, &err) < 0) {
        uint64_t again = p->cfg->protect ? clock_ns() + REOPEN_NS : TIME_NEVER;
        enum protection_request request;

        note(p, "%s", err.text);
        do {
            pthread_mutex_lock(&p->engine.lock);
            if (p->request == REQUEST_NONE)
                engine_wait(&p->engine, again);
            pthread_mutex_unlock(&p->engine.lock);
            request = take_request(p);
            if (request == REQUEST_STOP)
                return false;
            if (request != REQUEST_NONE)
                protect = request == REQUEST_PROTECT;
        } while (request != REQUEST_PROTECT && clock_ns() < again);
    }
    EVENT(p, if (protect && p->request == REQUEST_NONE) p->request = REQUEST_PROTECT);
    EVENT(p, p->ready = true);
    return true;
}

static void *run(void *arg)
{
    struct protection *p = arg;

    if (wait_for_guest(p)) {
        while (step(p))
            ;
        if (lifecycle_run(&p->lc, clock_ns()) == LC_RELEASE)
            release(p);
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
    p->cfg = cfg;
    engine_init(&p->engine, cfg);
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
    if (request == REQUEST_PROTECT && !p->cfg->backup[0])
        return error_set(err, "%s has no backup: set backup = \"HOST:PORT\" in its section",
                         p->cfg->name);
    if (request == REQUEST_PROTECT && state >= LC_HANDED_OVER)
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

void protection_stop(struct protection *p)
{
    struct error err;

    if (!p)
        return;
    protection_request(p, REQUEST_STOP, &err);
    pthread_join(p->thread, NULL);
    if (p->port)
        p->port->ops->close(p->port);
    if (p->vm)
        p->vm->ops->close(p->vm);
    engine_free(&p->engine);
    free(p);
}
