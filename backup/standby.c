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
#include "disk/server.h"
#include "standby-impl.h"
#include "vm/preflight.h"

#define TICK_NS (5 * NS_PER_MS)
#define HEALTH_NS (100 * NS_PER_MS)
#define LOOK_NS NS_PER_S
#define UNSEEN_MAX 3

void standby_note(struct standby *s, const char *fmt, ...)
{
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (strcmp(text, s->view.last_error) != 0)
        log_warning(s->cfg->name, "%s", text);
    memcpy(s->view.last_error, text, sizeof(text));
    s->view.last_error_at = clock_ns();
}

void standby_drop_link(struct standby *s)
{
    if (!s->link)
        return;
    s->bytes_before += link_bytes_received(s->link);
    link_free(s->link);
    s->link = NULL;
}

/* The disks of a guest that runs here stay; it holds on to their server. */
static void drop_disks(struct standby *s)
{
    struct error err;

    journal_close(s->journal);
    s->journal = NULL;
    if (s->cfg->disk_count && s->detector.state != DT_ACTIVE && disk_server_stop(s->cfg, &err) < 0)
        standby_note(s, "%s", err.text);
}

void standby_drop_replica(struct standby *s)
{
    receiver_free(s->receiver);
    s->receiver = NULL;
    if (s->replica)
        s->replica->ops->close(s->replica);
    s->replica = NULL;
    drop_disks(s);
    if (s->port && *s->cfg->vif && !s->learned.facts.vif_named && s->detector.state != DT_ACTIVE && s->port->ops->leave)
        s->port->ops->leave(s->port); /* no other replica will have an interface of this name */
    if (s->port)
        s->port->ops->close(s->port);
    s->port = NULL;
    s->session = 0;
}

struct receiver_checkpoint standby_held(const struct standby *s)
{
    struct receiver_checkpoint ck = {0};

    if (s->receiver)
        receiver_checkpoint(s->receiver, &ck);
    return ck;
}

int standby_open_port(struct standby *s, struct error *err)
{
    char guest[108] = "", port[108] = "";

    if (*s->cfg->tap && vm_net_paths(s->cfg, guest, port) < 0)
        return error_set(err, "run-dir '%s' is too long for a socket's name", s->cfg->run_dir);
    if (port_open(&s->port, s->cfg, guest, port, false, err) < 0)
        return -1;
    if (err->text[0])
        log_info(s->cfg->name, "packets are held by: %s, because %s", s->port->ops->name, err->text);
    return 0;
}

/* --- records --- */

static void whole_checkpoint(struct standby *s)
{
    uint64_t epoch = receiver_staged(s->receiver);

    fault_crash("backup-before-ack", epoch);
    if (!fault_hit("ack-held-back", epoch))
        link_send_empty(s->link, PROTO_ACK, epoch); /* a broken link shows in recv */
    fault_crash("backup-before-apply", epoch);
    receiver_apply(s->receiver);
    if (s->replica->ops->committed) {
        struct receiver_checkpoint ck = standby_held(s);

        s->replica->ops->committed(s->replica, ck.state, ck.state_length);
    }
    fault_crash("backup-after-apply", epoch);
    s->view.checkpoints++;
    s->greeted = NULL;
    if (s->detector.state == DT_SYNCING)
        log_info(s->cfg->name, "ready: checkpoint %" PRIu64 " is the first whole one", epoch);
    detector_committed(&s->detector, clock_ns());
}

/* A record of a checkpoint, or of no checkpoint yet. */
static int take_record(struct standby *s, const struct record *rec, struct error *err)
{
    uint64_t kept = receiver_keeps(s->receiver) ? standby_held(s).epoch : 0;
    enum receiver_result result = receiver_record(s->receiver, rec, err);

    if (kept && standby_held(s).epoch == 0) {
        standby_note(s, "too much has changed to keep checkpoint %" PRIu64 " until synchronising is whole", kept);
        detector_given_up(&s->detector, clock_ns());
    }
    if (result == RECEIVER_WHOLE)
        whole_checkpoint(s);
    return result == RECEIVER_ERROR ? -1 : 0;
}

static int handle(struct standby *s, const struct record *rec, struct error *err)
{
    struct proto_notice notice;

    if (s->detector.state == DT_ACTIVE)
        return 0; /* the primary lives and has not read ACTIVATED yet: its word counts no more (R7) */
    switch (rec->type) {
    case PROTO_HEARTBEAT:
        return 0;
    case PROTO_GOODBYE:
        if (proto_get_notice(&notice, rec->body, rec->length, err) < 0)
            return -1;
        log_info(s->cfg->name, "the primary says goodbye: %s", notice.text);
        link_send_notice(s->link, PROTO_GOODBYE, 0, "goodbye");
        detector_goodbye(&s->detector, clock_ns());
        standby_drop_link(s);
        standby_drop_replica(s);
        return 0;
    case PROTO_HANDOVER:
        if (rec->epoch == 0 || rec->epoch > standby_held(s).epoch || receiver_keeps(s->receiver))
            return error_set(err, "handover of checkpoint %" PRIu64 ", but %" PRIu64 " is held",
                             rec->epoch, standby_held(s).epoch);
        detector_handover(&s->detector, clock_ns());
        return 0;
    default:
        return take_record(s, rec, err);
    }
}

/* The link is of no use any more; whoever it was did not say goodbye. */
static void link_broken(struct standby *s, const char *why)
{
    if (s->detector.state != DT_ACTIVE) /* else it has ended its guest, as it should */
        standby_note(s, "primary %s: %s", link_peer(s->link), why);
    standby_drop_link(s);
    detector_closed(&s->detector, why, clock_ns());
    if (s->detector.state == DT_WAITING)
        standby_drop_replica(s);
}

static void receive(struct standby *s)
{
    struct record rec;
    struct error err;
    enum link_result r = link_recv(s->link, &rec, clock_ns() + TICK_NS, &err);

    detector_heard(&s->detector, link_last_heard(s->link), clock_ns());
    if (r == LINK_RECORD && handle(s, &rec, &err) < 0) {
        link_send_notice(s->link, PROTO_REFUSE, REFUSE_PROTOCOL, err.text);
        link_broken(s, err.text);
    } else if (r == LINK_CORRUPT) {
        link_send_notice(s->link, PROTO_REFUSE, REFUSE_CORRUPT, err.text);
        link_broken(s, err.text);
    } else if (r == LINK_CLOSED) {
        link_broken(s, "closed the connection without a goodbye");
    }
}

static void ask_arbiter(struct standby *s)
{
    struct error err;

    log_warning(s->cfg->name, "primary %s: asking the arbiter", s->detector.reason);
    if (arbiter_ask(&s->arbiter, s->cfg->arbiter, s->cfg->name, "backup",
                    standby_held(s).epoch, s->cfg->arbiter_timeout_ms * NS_PER_MS, &err) < 0) {
        standby_note(s, "%s", err.text);
        detector_arbiter(&s->detector, false, clock_ns());
    }
}

static void poll_arbiter(struct standby *s)
{
    struct error err;
    enum arbiter_answer answer = arbiter_poll(&s->arbiter, clock_ns(), &err);

    if (answer == ARBITER_DENIED)
        standby_note(s, "no takeover: %s", err.text);
    if (answer != ARBITER_PENDING)
        detector_arbiter(&s->detector, answer == ARBITER_GRANTED, clock_ns());
}

static void act(struct standby *s)
{
    enum detector_action action;

    if (s->arbiter.pid)
        poll_arbiter(s);
    while ((action = detector_run(&s->detector, clock_ns())) != DT_NOTHING)
        switch (action) {
        case DT_ASK:
            ask_arbiter(s);
            break;
        case DT_CANCEL:
            arbiter_cancel(&s->arbiter);
            break;
        case DT_ACTIVATE:
            standby_take_over(s);
            break;
        case DT_NOTHING:
            break;
        }
}

/* --- the thread --- */

static void take_wishes(struct standby *s)
{
    struct error err;
    bool takeover, discard;

    pthread_mutex_lock(&s->lock);
    takeover = s->want_takeover;
    discard = s->want_discard;
    s->want_takeover = s->want_discard = false;
    pthread_mutex_unlock(&s->lock);
    if (takeover && detector_operator(&s->detector, clock_ns(), &err) < 0)
        standby_note(s, "takeover refused: %s", err.text);
    if (discard && s->detector.state == DT_SUSPECT) {
        log_warning(s->cfg->name, "replica thrown away by the operator");
        standby_drop_link(s);
        standby_drop_replica(s);
        detector_goodbye(&s->detector, clock_ns());
    }
}

static void publish(struct standby *s)
{
    struct view *v = &s->view;

    v->state = s->detector.state;
    v->since = s->detector.since;
    v->heard = s->detector.heard;
    memcpy(v->reason, s->detector.reason, sizeof(v->reason));
    if (s->receiver)
        v->epoch = standby_held(s).epoch;
    v->keeps = s->receiver && receiver_keeps(s->receiver);
    v->bytes = s->bytes_before + (s->link ? link_bytes_received(s->link) : 0);
    v->memory_bytes = s->replica || v->state == DT_ACTIVE ? s->cfg->memory_bytes : 0;
    v->has_disks = s->journal;
    if (s->journal)
        journal_stats(s->journal, &v->disks);
    SCOPED_LOCK(&s->lock);
    s->published = *v;
}

/*
 * Of a guest that a daemon before this one activated there is no handle, only whether it is there; and a look that fails once
 * does not say that it is not (R7).
 */
static enum vm_health guest_health(struct standby *s)
{
    if (s->replica)
        return s->replica->ops->health(s->replica);
    s->unseen = vm_platform(s->cfg->platform)->running(s->cfg) ? 0 : s->unseen + 1;
    return s->unseen < UNSEEN_MAX ? VM_ALIVE : VM_DIED;
}

static void check_health(struct standby *s)
{
    enum vm_health health;
    uint64_t now = clock_ns();

    if (s->detector.state != DT_ACTIVE || now < s->next_health)
        return;
    s->next_health = now + (s->replica ? HEALTH_NS : LOOK_NS);
    health = guest_health(s);
    if (health == VM_ALIVE)
        return;
    standby_note(s, "the guest that was taken over %s on this host", health == VM_SHUT_DOWN ? "shut down" : "died");
    s->view.ended = true;
    standby_drop_link(s);
    standby_drop_replica(s);
    standby_mark_active(s, "ended");
    detector_init(&s->detector, s->detector.has_arbiter, s->detector.automatic, now);
}

/* `remusctl verify' on the primary, or synchronising with an image that was here before. */
static void report_checks(struct standby *s)
{
    uint8_t body[PROTO_SMALL_MAX];
    struct iovec iov = {.iov_base = body};
    struct proto_compared c;

    while (s->journal && s->link && s->detector.state != DT_ACTIVE && journal_compared(s->journal, &c)) {
        if (c.count && s->detector.state == DT_READY)
            standby_note(s, "disk %" PRIu32 " differs from the primary's: %" PRIu32 " octets at %" PRIu64
                 ", and perhaps elsewhere; remusctl verify on the primary says where", c.differ[0].disk,
                 c.differ[0].length, c.differ[0].offset);
        iov.iov_len = proto_put_compared(body, &c);
        link_send(s->link, PROTO_COMPARED, 0, &iov, 1); /* a broken link shows in recv */
    }
}

static int replica_lives(struct standby *s, struct error *err)
{
    uint64_t now = clock_ns();

    if (s->journal && journal_check(s->journal, err) < 0)
        return -1;
    if (now < s->next_health)
        return 0;
    s->next_health = now + HEALTH_NS;
    return s->replica->ops->health(s->replica) == VM_ALIVE
               ? 0 : error_set(err, "it has died while it waited; the host's kernel log says whether memory was short");
}

/* One that cannot be run is no replica: better none, and the primary knows it and has a new one made. */
static void check_replica(struct standby *s)
{
    struct error err;

    if (!s->replica || !s->link || s->detector.state == DT_ACTIVE || replica_lives(s, &err) == 0)
        return;
    standby_note(s, "the replica is thrown away: %s", err.text);
    link_send_notice(s->link, PROTO_REFUSE, REFUSE_RESOURCES, err.text);
    standby_drop_link(s);
    standby_drop_replica(s);
    detector_goodbye(&s->detector, clock_ns());
}

static void wait_a_little(struct standby *s)
{
    uint64_t when = clock_ns() + TICK_NS;
    struct timespec ts = {(time_t)(when / NS_PER_S), (long)(when % NS_PER_S)};
    SCOPED_LOCK(&s->lock);

    if (!s->offered && !s->stopping && !s->want_takeover)
        pthread_cond_timedwait(&s->changed, &s->lock, &ts);
}

static bool must_stop(struct standby *s)
{
    SCOPED_LOCK(&s->lock);

    return s->stopping;
}

static void *run(void *arg)
{
    struct standby *s = arg;

    standby_find_active(s);
    while (!must_stop(s)) {
        standby_take_offer(s);
        take_wishes(s);
        if (s->link)
            receive(s);
        else
            wait_a_little(s);
        act(s);
        report_checks(s);
        check_replica(s);
        check_health(s);
        publish(s);
    }
    arbiter_cancel(&s->arbiter);
    if (s->link)
        link_send_notice(s->link, PROTO_GOODBYE, 0, "remus-backupd stops");
    standby_drop_link(s);
    standby_drop_replica(s);
    return NULL;
}

/* --- from other threads --- */

struct standby *standby_start(const struct vm_config *cfg, struct error *err)
{
    struct standby *s = calloc(1, sizeof(*s));
    pthread_condattr_t attr;
    int rc;

    if (!s) {
        error_set(err, "no memory");
        return NULL;
    }
    s->section = cfg;
    vm_learned_init(&s->learned, cfg);
    s->cfg = &s->learned.cfg;
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &attr);
    pthread_condattr_destroy(&attr);
    detector_init(&s->detector, cfg->arbiter[0] != '\0', cfg->takeover == TAKEOVER_AUTOMATIC,
                  clock_ns());
    publish(s);
    rc = pthread_create(&s->thread, NULL, run, s);
    if (rc) {
        error_set(err, "%s: cannot start a thread: %s", cfg->name, strerror(rc));
        free(s);
        return NULL;
    }
    return s;
}

const char *standby_vm(const struct standby *s)
{
    return s->cfg->name;
}

json_t *standby_preflight(const struct standby *s)
{
    return preflight(s->section, false);
}

void standby_offer(struct standby *s, struct link *link, const struct proto_hello *hello)
{
    struct error err;

    pthread_mutex_lock(&s->lock);
    if (!s->offered && !s->stopping) {
        s->offered = link;
        s->offer = *hello;
        link = NULL;
        pthread_cond_signal(&s->changed);
    }
    pthread_mutex_unlock(&s->lock);
    if (link) {
        error_set(&err, "%s: another primary is just being answered: try again", s->cfg->name);
        standby_refuse(link, REFUSE_LATER, &err);
    }
}

int standby_takeover(struct standby *s, struct error *err)
{
    struct detector copy;
    SCOPED_LOCK(&s->lock);

    /* The same question to a copy, so that the operator hears a refusal at once. */
    detector_init(&copy, s->cfg->arbiter[0] != '\0', false, clock_ns());
    copy.state = s->published.state;
    copy.heard = s->published.heard;
    if (detector_operator(&copy, clock_ns(), err) < 0)
        return error_prefix(err, "%s", s->cfg->name);
    s->want_takeover = true;
    pthread_cond_signal(&s->changed);
    return 0;
}

int standby_discard(struct standby *s, struct error *err)
{
    SCOPED_LOCK(&s->lock);

    if (s->published.state != DT_SUSPECT)
        return error_set(err, "%s is %s: only the replica of a vanished primary can be thrown away",
                         s->cfg->name, detector_name(s->published.state));
    s->want_discard = true;
    pthread_cond_signal(&s->changed);
    return 0;
}

int standby_may_forget(struct standby *s, bool active, struct error *err)
{
    SCOPED_LOCK(&s->lock);
    enum detector_state state = s->published.state;

    if (!s->offered && state == (active ? DT_ACTIVE : DT_WAITING))
        return 0;
    return state == DT_ACTIVE
               ? error_set(err, "%s is active, it runs on this host: once it is certain that its old host does not run it any more, "
                           "remusctl forget --active %s makes it free to be protected from here", s->cfg->name, s->cfg->name)
               : error_set(err, "%s is %s on this host: only a VM that nobody protects here, and that does not run here, can be "
                           "forgotten", s->cfg->name, detector_name(state));
}

void standby_stop(struct standby *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->stopping = true;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    if (s->offered)
        link_free(s->offered);
    free(s);
}
