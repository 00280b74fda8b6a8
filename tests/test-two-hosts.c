/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * R7, R1: both decision machines (lifecycle on the primary, detector on the backup), joined by a
 * link that delays, loses its tail and is cut, with an arbiter that grants one side only, an
 * operator who acts as the manual allows, hosts that freeze or die and daemons that restart. Every
 * order of events is tried, breadth first, until no new state of the two is found. What the daemons
 * do around the machines (protection.c, standby.c) is modelled here in few lines.
 *
 *   two    the backup took over, and the guest's output passes on the primary
 *   early  output of an epoch leaves that the checkpoint taken over does not cover
 *   undead a guest that the primary must end is still there
 *   loose  held output was let go by nobody's word
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backup/detector.h"
#include "common/clock.h"
#include "remusd/lifecycle.h"

#define TICK (2 * NS_PER_S)  /* coarse: retries that are due in less are due now */
#define BASE (1000 * TICK)   /* `now` in every stored state */
#define TIMEOUT (2 * TICK)   /* of the detector */
#define DEGRADE TICK
#define QUEUE 3

static unsigned epochs = 2;  /* checkpoints of one run of remusd */
static unsigned mishaps = 1; /* deaths, restarts, refusals, discards in one story */

enum message { M_CHECKPOINT = 1, M_HANDOVER, M_ACK, M_ACTIVATED, M_GOODBYE };
enum question { Q_NONE, Q_ASKED, Q_GRANTED, Q_DENIED };
enum host { NOBODY, PRIMARY, BACKUP };

struct queue {
    uint8_t count, type[QUEUE], epoch[QUEUE];
};

struct world {
    struct lifecycle lc;
    struct detector d;
    uint64_t now;
    struct queue to_backup, to_primary;
    bool primary_dead, backup_dead;   /* the hosts */
    bool guest;                       /* there is one on the primary */
    bool passing;                     /* the primary's port lets everything out */
    bool suspended;                   /* the guest, for a switchover */
    bool handover_kept;               /* on the primary's disk: HANDOVER was sent */
    bool dialing, continuous, began;  /* began: the first checkpoint over this link */
    bool leaving;                     /* the primary has said goodbye and waits for the answer */
    bool link_primary, link_backup, cut;
    uint8_t taken, acked, committed;  /* epochs; committed 0: the backup has no whole replica */
    bool took_over;
    uint8_t took_epoch;
    bool spent;                       /* the guest taken over has ended */
    uint8_t owner;                    /* whom the arbiter has granted */
    uint8_t ask_primary, ask_backup;
    uint8_t mishaps;
};

static struct world w;
static const char *violation;

/* --- states as octets --- */

#define KEY 56

static uint8_t relative(uint64_t t, uint64_t past)
{
    if (t >= w.now)
        return (uint8_t)(128 + (t - w.now) / TICK);
    return (uint8_t)(128 - (w.now - t < past ? w.now - t : past) / TICK);
}

/* Packs w into key, or unpacks it.  Times are relative to now, as far back as they matter. */
static void code(uint8_t key[KEY], bool pack)
{
    uint8_t *k = key;
#define F(field) (void)(pack ? (*k++ = (uint8_t)w.field) : (w.field = *k++))
#define T(field, past)                                                                             \
    (void)(pack ? (*k++ = relative(w.field, past)) : (w.field = BASE + *k++ * TICK - 128 * TICK))
    if (pack)
        memset(key, 0, KEY);
    else
        w.now = w.lc.since = BASE, w.d.timeout = TIMEOUT, w.lc.retry = 0; /* each link breaks soon, and the first in a row */
    F(lc.state), F(lc.held), F(lc.pending), F(lc.handover_sent), F(lc.leaving);
    T(lc.next_connect, 0), T(lc.degrade_at, 0);
    F(d.state), F(d.pending);
    T(d.heard, TIMEOUT), T(d.ran, TIMEOUT), T(d.next_ask, 0);
    F(primary_dead), F(backup_dead), F(guest), F(passing), F(suspended), F(handover_kept);
    F(dialing), F(continuous), F(began), F(leaving);
    F(link_primary), F(link_backup), F(cut);
    F(taken), F(acked), F(committed), F(took_over), F(took_epoch), F(spent);
    F(owner), F(ask_primary), F(ask_backup), F(mishaps);
    F(to_backup.count), F(to_primary.count);
    for (int i = 0; i < QUEUE; i++)
        F(to_backup.type[i]), F(to_backup.epoch[i]), F(to_primary.type[i]), F(to_primary.epoch[i]);
    assert_true(k <= key + KEY);
}

/* --- the link --- */

static void push(struct queue *q, enum message type, uint8_t epoch)
{
    if (w.cut || q->count == QUEUE)
        return;
    q->type[q->count] = (uint8_t)type;
    q->epoch[q->count++] = epoch;
}

static enum message pop(struct queue *q, uint8_t *epoch)
{
    enum message type = q->type[0];

    *epoch = q->epoch[0];
    memmove(q->type, q->type + 1, QUEUE - 1);
    memmove(q->epoch, q->epoch + 1, QUEUE - 1);
    q->type[QUEUE - 1] = q->epoch[QUEUE - 1] = 0;
    q->count--;
    return type;
}

static void forget(struct queue *q)
{
    *q = (struct queue){0};
}

static void cut(void)
{
    w.cut = true;
    forget(&w.to_backup);
    forget(&w.to_primary);
}

/* --- what standby.c does --- */

static void drop_link_backup(void)
{
    w.link_backup = false;
    forget(&w.to_backup);
}

static void take_over(void)
{
    w.took_over = true;
    w.took_epoch = w.committed;
    detector_activated(&w.d, true, w.now);
    if (w.link_backup)
        push(&w.to_primary, M_ACTIVATED, w.committed);
}

static void run_backup(void)
{
    enum detector_action action;

    while ((action = detector_run(&w.d, w.now)) != DT_NOTHING)
        if (action == DT_ASK)
            w.ask_backup = Q_ASKED;
        else if (action == DT_CANCEL)
            w.ask_backup = Q_NONE;
        else
            take_over();
}

static bool runs_there(void)
{
    return w.d.state == DT_TAKING_OVER || w.d.state == DT_ACTIVE;
}

static void backup_receives(void)
{
    uint8_t epoch;
    enum message type = pop(&w.to_backup, &epoch);

    detector_heard(&w.d, w.now, w.now);
    if (runs_there())
        return;
    if (type == M_CHECKPOINT) {
        push(&w.to_primary, M_ACK, epoch);
        w.committed = epoch;
        detector_committed(&w.d, w.now);
    } else if (type == M_HANDOVER) {
        detector_handover(&w.d, w.now);
    } else {
        push(&w.to_primary, M_GOODBYE, 0);
        detector_goodbye(&w.d, w.now);
        drop_link_backup();
        w.committed = 0;
    }
}

static void backup_sees_close(void)
{
    drop_link_backup();
    detector_closed(&w.d, "closed", w.now);
    if (w.d.state == DT_WAITING)
        w.committed = 0;
}

static void discard(void)
{
    drop_link_backup();
    w.committed = 0;
    detector_goodbye(&w.d, w.now);
}

/* --- what protection.c does --- */

static void run_primary(void)
{
    while (w.guest && !w.dialing)
        switch (lifecycle_run(&w.lc, w.now)) {
        case LC_CONNECT:
            w.dialing = true;
            break;
        case LC_ASK_ARBITER:
            w.ask_primary = Q_ASKED;
            break;
        case LC_RELEASE:
            w.suspended = w.continuous = w.handover_kept = false;
            w.passing = true;
            break;
        case LC_DESTROY:
            w.guest = false;
            break;
        default:
            return;
        }
}

enum dial { DIAL_FAILS, DIAL_REFUSED, DIAL_WORKS, DIAL_WELCOME_LOST };

static void dial(enum dial how)
{
    bool resume = w.committed && w.continuous;

    w.dialing = false;
    if (how == DIAL_FAILS) {
        lifecycle_connect_failed(&w.lc, w.now);
        return;
    }
    if (runs_there() || w.spent) {
        lifecycle_peer_active(&w.lc, w.now);
        return;
    }
    if (how == DIAL_REFUSED) {
        lifecycle_refused(&w.lc, w.now);
        return;
    }
    if (!resume)
        w.committed = 0;
    forget(&w.to_backup);
    forget(&w.to_primary);
    detector_connected(&w.d, resume, TIMEOUT, w.now);
    w.link_backup = true;
    w.cut = how == DIAL_WELCOME_LOST;
    if (w.cut) {
        lifecycle_connect_failed(&w.lc, w.now);
        return;
    }
    w.link_primary = w.continuous = true;
    w.suspended = w.began = false;
    w.acked = w.taken;
    lifecycle_connected(&w.lc, w.now);
}

static void checkpoint(bool resume)
{
    if (!w.began)
        lifecycle_first_checkpoint(&w.lc, w.now);
    w.began = true;
    w.handover_kept = w.passing = false;
    w.suspended = !resume;
    push(&w.to_backup, M_CHECKPOINT, ++w.taken);
}

static void primary_loses_link(bool peer_active)
{
    w.link_primary = w.leaving = false;
    forget(&w.to_primary);
    if (peer_active && w.suspended)
        lifecycle_handed_over(&w.lc, w.now);
    else if (peer_active)
        lifecycle_peer_active(&w.lc, w.now);
    else
        lifecycle_link_lost(&w.lc, w.now);
}

static void primary_receives(void)
{
    uint8_t epoch;
    enum message type = pop(&w.to_primary, &epoch);

    if (type == M_ACK) {
        if (w.took_over && epoch > w.took_epoch)
            violation = "early";
        w.acked = epoch;
        lifecycle_acked(&w.lc, w.now);
    } else if (type == M_GOODBYE && w.leaving) {
        w.link_primary = w.leaving = false;
        lifecycle_unprotect(&w.lc, w.now);
    } else {
        primary_loses_link(type == M_ACTIVATED);
    }
}

static void primary_restarts(void)
{
    bool held = !w.passing || w.lc.held; /* what NAME.guest says */

    lifecycle_init(&w.lc, w.lc.degrade, w.lc.has_arbiter, DEGRADE, held, w.now);
    if (w.handover_kept)
        lifecycle_handover_sent(&w.lc);
    lifecycle_protect(&w.lc, w.now);
    w.passing = !held;
    w.dialing = w.continuous = w.began = w.leaving = w.link_primary = false;
    w.taken = w.acked = 0;
    w.ask_primary = Q_NONE;
    forget(&w.to_primary);
}

/* --- the arbiter --- */

static uint8_t decide(enum host who)
{
    if (w.owner != NOBODY && w.owner != who)
        return Q_DENIED;
    w.owner = (uint8_t)who;
    return Q_GRANTED;
}

/* --- what can happen --- */

static bool primary_alive(void)
{
    return !w.primary_dead && w.guest;
}

static bool primary_free(void) /* its thread waits for something to do, without a link */
{
    return primary_alive() && !w.dialing && !w.link_primary;
}

static bool primary_on_link(void)
{
    return primary_alive() && w.link_primary && !w.leaving && !w.suspended &&
           (w.lc.state == LC_SYNCING || w.lc.state == LC_PROTECTED);
}

/*
 * remusctl unprotect without a link lets the guest go on alone: with an arbiter that asks it;
 * without one, or when a switchover broke after its last word, the operator has made certain that
 * the guest does not run on the backup, nor will by itself.
 */
static bool may_unprotect(void)
{
    if (!w.lc.held || (w.lc.has_arbiter && !w.lc.handover_sent))
        return true;
    if (w.took_over || w.backup_dead)
        return !w.took_over;
    return (!w.d.automatic || (w.committed == 0 && !w.link_backup)) &&
           (!w.lc.handover_sent || !w.link_backup);
}

/* remusctl takeover, without an arbiter: nobody sees the guest on the primary. */
static bool may_take_over(void)
{
    return w.lc.has_arbiter || !primary_alive() || (w.lc.held && !w.passing);
}

enum event {
    E_TICK, E_TICK_PRIMARY, E_TICK_BACKUP, /* time passes; the other one is frozen */
    E_CUT, E_HEARTBEAT,
    E_DIAL_FAILS, E_DIAL_REFUSED, E_DIAL_WORKS, E_DIAL_WELCOME_LOST,
    E_CHECKPOINT, E_PRIMARY_RECEIVES, E_PRIMARY_LOSES_LINK,
    E_SWITCHOVER, E_HANDOVER, E_PROTECT, E_UNPROTECT,
    E_PRIMARY_RESTARTS, E_PRIMARY_DIES,
    E_BACKUP_RECEIVES, E_BACKUP_SEES_CLOSE, E_BACKUP_RESTARTS, E_BACKUP_DIES, E_BACKUP_GUEST_ENDS,
    E_TAKEOVER, E_DISCARD,
    E_ARBITER_PRIMARY, E_ARBITER_BACKUP, E_ARBITER_DENIES_PRIMARY, E_ARBITER_DENIES_BACKUP,
    E_ARBITER_RESET,
    E_ANSWER_PRIMARY, E_ANSWER_BACKUP,
    EVENTS
};

static const char *const event_names[] = {
    "500 ms pass", "500 ms pass, backup frozen", "500 ms pass, primary frozen",
    "link cut", "heartbeat",
    "dial fails", "dial refused", "connected", "connected, but the welcome is lost",
    "checkpoint", "primary receives", "primary loses the link",
    "switchover: last checkpoint", "handover sent", "operator: protect", "operator: unprotect",
    "remusd restarts", "primary dies",
    "backup receives", "backup sees the link closed", "backupd restarts", "backup dies",
    "guest on the backup ends",
    "operator: takeover", "operator: discard",
    "arbiter decides for the primary", "arbiter decides for the backup",
    "arbiter denies the primary", "arbiter denies the backup",
    "arbiter forgets: both are together again",
    "the primary gets the answer", "the backup gets the answer",
};

static bool mishap(enum event e)
{
    return e == E_DIAL_REFUSED || e == E_PRIMARY_RESTARTS || e == E_PRIMARY_DIES ||
           e == E_BACKUP_RESTARTS || e == E_BACKUP_DIES || e == E_BACKUP_GUEST_ENDS ||
           e == E_DISCARD;
}

/* False when it cannot happen now. */
static bool happen(enum event e)
{
    struct error err;

    if (mishap(e) && w.mishaps++ == mishaps)
        return false;
    switch (e) {
    case E_TICK:
    case E_TICK_PRIMARY:
    case E_TICK_BACKUP:
        w.now += TICK;
        if (e != E_TICK_BACKUP && !w.primary_dead && !w.link_primary)
            run_primary();
        if (e != E_TICK_PRIMARY && !w.backup_dead)
            run_backup();
        return true;
    case E_CUT:
        if (w.cut || (!w.link_primary && !w.link_backup))
            return false;
        cut();
        return true;
    case E_HEARTBEAT:
        if (w.backup_dead || !w.link_backup || w.cut || !w.link_primary || w.primary_dead)
            return false;
        detector_heard(&w.d, w.now, w.now);
        break;
    case E_DIAL_FAILS:
    case E_DIAL_REFUSED:
    case E_DIAL_WORKS:
    case E_DIAL_WELCOME_LOST:
        if (!primary_alive() || !w.dialing || (e != E_DIAL_FAILS && w.backup_dead))
            return false;
        dial((enum dial)(e - E_DIAL_FAILS));
        break;
    case E_CHECKPOINT:
        if (!primary_on_link() || w.taken - w.acked >= 2 || w.taken == epochs)
            return false;
        checkpoint(true);
        break;
    case E_PRIMARY_RECEIVES:
        if (!primary_alive() || !w.link_primary || !w.to_primary.count)
            return false;
        primary_receives();
        break;
    case E_PRIMARY_LOSES_LINK:
        if (!primary_alive() || !w.link_primary)
            return false;
        primary_loses_link(false);
        break;
    case E_SWITCHOVER:
        if (!primary_on_link() || w.lc.state != LC_PROTECTED || !w.began || w.taken != w.acked ||
            w.taken == epochs)
            return false;
        checkpoint(false);
        break;
    case E_HANDOVER:
        if (!primary_alive() || !w.link_primary || !w.suspended || w.taken != w.acked ||
            w.lc.handover_sent)
            return false;
        w.handover_kept = true;
        lifecycle_handover_sent(&w.lc);
        push(&w.to_backup, M_HANDOVER, w.taken);
        break;
    case E_PROTECT:
        if (!primary_free() || w.lc.state != LC_OFF)
            return false;
        lifecycle_protect(&w.lc, w.now);
        break;
    case E_UNPROTECT:
        if (primary_on_link()) {
            push(&w.to_backup, M_GOODBYE, 0);
            w.leaving = true;
        } else if (primary_free() && w.lc.state != LC_OFF && may_unprotect()) {
            lifecycle_unprotect(&w.lc, w.now);
            if (w.lc.state != LC_ASKING)
                w.ask_primary = Q_NONE;
        } else {
            return false;
        }
        break;
    case E_PRIMARY_RESTARTS:
        if (!primary_alive())
            return false;
        primary_restarts();
        break;
    case E_PRIMARY_DIES:
        if (!primary_alive())
            return false;
        w.primary_dead = true;
        w.link_primary = w.dialing = false;
        w.ask_primary = Q_NONE;
        break;
    case E_BACKUP_RECEIVES:
        if (w.backup_dead || !w.link_backup || !w.to_backup.count)
            return false;
        backup_receives();
        break;
    case E_BACKUP_SEES_CLOSE:
        if (w.backup_dead || !w.link_backup || (w.link_primary && !w.cut))
            return false;
        backup_sees_close();
        break;
    case E_BACKUP_RESTARTS:
        if (w.backup_dead)
            return false;
        drop_link_backup();
        if (!runs_there()) {
            detector_init(&w.d, w.d.has_arbiter, w.d.automatic, w.now);
            w.committed = 0;
        }
        w.ask_backup = Q_NONE;
        break;
    case E_BACKUP_DIES:
        if (w.backup_dead)
            return false;
        w.backup_dead = true;
        drop_link_backup();
        w.ask_backup = Q_NONE;
        break;
    case E_BACKUP_GUEST_ENDS:
        if (w.backup_dead || w.d.state != DT_ACTIVE)
            return false;
        drop_link_backup();
        detector_init(&w.d, w.d.has_arbiter, w.d.automatic, w.now);
        w.committed = 0;
        w.spent = true;
        break;
    case E_TAKEOVER:
        if (w.backup_dead || w.d.state != DT_SUSPECT || !may_take_over() ||
            detector_operator(&w.d, w.now, &err) < 0)
            return false;
        break;
    case E_DISCARD:
        if (w.backup_dead || w.d.state != DT_SUSPECT)
            return false;
        discard();
        break;
    case E_ARBITER_PRIMARY:
    case E_ARBITER_DENIES_PRIMARY:
        if (w.ask_primary != Q_ASKED)
            return false;
        w.ask_primary = e == E_ARBITER_PRIMARY ? decide(PRIMARY) : (uint8_t)Q_DENIED;
        return true;
    case E_ARBITER_BACKUP:
    case E_ARBITER_DENIES_BACKUP:
        if (w.ask_backup != Q_ASKED)
            return false;
        w.ask_backup = e == E_ARBITER_BACKUP ? decide(BACKUP) : (uint8_t)Q_DENIED;
        return true;
    case E_ARBITER_RESET:
        if (w.owner == NOBODY || w.ask_primary || w.ask_backup || w.primary_dead || w.backup_dead ||
            w.cut || !w.link_primary || !w.link_backup || w.lc.state != LC_PROTECTED || w.passing ||
            w.d.state != DT_READY)
            return false;
        w.owner = NOBODY;
        return true;
    case E_ANSWER_PRIMARY:
        if (!primary_free() || w.ask_primary < Q_GRANTED)
            return false;
        lifecycle_arbiter(&w.lc, w.ask_primary == Q_GRANTED, w.now);
        w.ask_primary = Q_NONE;
        break;
    case E_ANSWER_BACKUP:
        if (w.ask_backup < Q_GRANTED)
            return false;
        detector_arbiter(&w.d, w.ask_backup == Q_GRANTED, w.now);
        w.ask_backup = Q_NONE;
        break;
    default:
        return false;
    }
    if (e >= E_BACKUP_RECEIVES && e <= E_DISCARD && !w.backup_dead)
        run_backup();
    else if (e == E_HEARTBEAT || e == E_ANSWER_BACKUP)
        run_backup();
    else if (!w.primary_dead && !w.link_primary)
        run_primary();
    return true;
}

static void check(enum event e, const struct world *before)
{
    bool word = e == E_UNPROTECT || e == E_ANSWER_PRIMARY ||
                (e == E_PRIMARY_RECEIVES && before->leaving &&
                 before->to_primary.type[0] == M_GOODBYE);

    if (w.took_over && primary_alive() && (!w.lc.held || w.passing))
        violation = "two";
    if (primary_alive() && w.lc.state >= LC_HANDED_OVER)
        violation = "undead";
    if (!word && primary_alive() &&
        ((before->lc.held && !w.lc.held) || (!before->passing && w.passing)))
        violation = "loose";
}

/* --- breadth first --- */

#define SLOTS (1u << 22)

struct node {
    uint8_t key[KEY];
    uint32_t parent;
    uint8_t event;
};

static struct node *nodes;
static uint32_t node_count, node_max, *slots;

static bool add(const uint8_t key[KEY], uint32_t parent, enum event e)
{
    uint64_t h = 14695981039346656037u;

    for (int i = 0; i < KEY; i++)
        h = (h ^ key[i]) * 1099511628211u;
    h ^= h >> 29;
    for (h %= SLOTS; slots[h]; h = (h + 1) % SLOTS)
        if (memcmp(nodes[slots[h] - 1].key, key, KEY) == 0)
            return false;
    if (node_count == node_max) {
        node_max = node_max ? 2 * node_max : 1u << 16;
        nodes = realloc(nodes, node_max * sizeof(*nodes));
        assert_non_null(nodes);
        assert_true(node_max < SLOTS);
    }
    memcpy(nodes[node_count].key, key, KEY);
    nodes[node_count].parent = parent;
    nodes[node_count].event = (uint8_t)e;
    slots[h] = ++node_count;
    return true;
}

static void tell(uint32_t at, enum event last)
{
    uint32_t path[256];
    unsigned n = 0;

    for (; nodes[at].parent != UINT32_MAX && n < 256; at = nodes[at].parent)
        path[n++] = at;
    while (n-- > 0) {
        uint8_t key[KEY];
        memcpy(key, nodes[path[n]].key, KEY);
        code(key, false);
        print_message("# %-40s primary %s%s%s, backup %s\n", event_names[nodes[path[n]].event],
                      lifecycle_name(w.lc.state), w.lc.held ? " held" : "",
                      w.passing ? " passing" : "", detector_name(w.d.state));
    }
    print_message("# %s: %s\n", event_names[last], violation);
}

static void explore(enum degrade_policy degrade, bool arbiter, bool automatic)
{
    uint8_t key[KEY], next[KEY];

    violation = NULL;
    node_count = 0;
    memset(slots, 0, SLOTS * sizeof(*slots));
    memset(&w, 0, sizeof(w));
    w.now = BASE;
    w.guest = w.passing = true;
    lifecycle_init(&w.lc, degrade, arbiter, DEGRADE, false, w.now);
    detector_init(&w.d, arbiter, automatic, w.now);
    w.d.timeout = TIMEOUT;
    lifecycle_protect(&w.lc, w.now);
    run_primary();
    code(key, true);
    add(key, UINT32_MAX, E_TICK);
    for (uint32_t at = 0; at < node_count && !violation; at++) {
        struct world before;

        memcpy(key, nodes[at].key, KEY);
        code(key, false);
        before = w;
        for (enum event e = 0; e < EVENTS && !violation; e++) {
            w = before;
            if (!happen(e))
                continue;
            check(e, &before);
            if (violation) {
                tell(at, e);
                break;
            }
            code(next, true);
            add(next, at, e);
        }
    }
    print_message("# %u states\n", node_count);
    assert_null(violation);
}

static int setup(void **state)
{
    (void)state;
    slots = malloc(SLOTS * sizeof(*slots));
    return slots ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    free(slots);
    free(nodes);
    return 0;
}

#define CASE(name, degrade, arbiter, automatic)                                                    \
    static void name(void **state)                                                                 \
    {                                                                                              \
        (void)state;                                                                               \
        explore(degrade, arbiter, automatic);                                                      \
    }

CASE(r7_hold_with_arbiter, DEGRADE_HOLD, true, false)
CASE(r7_release_with_arbiter, DEGRADE_RELEASE, true, false)
CASE(r7_stop_with_arbiter, DEGRADE_STOP, true, false)
CASE(r7_hold_without_arbiter, DEGRADE_HOLD, false, false)
CASE(r7_release_without_arbiter, DEGRADE_RELEASE, false, false)
CASE(r7_hold_automatic, DEGRADE_HOLD, false, true)
CASE(r7_stop_automatic, DEGRADE_STOP, false, true)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(r7_hold_with_arbiter),       cmocka_unit_test(r7_release_with_arbiter),
        cmocka_unit_test(r7_stop_with_arbiter),       cmocka_unit_test(r7_hold_without_arbiter),
        cmocka_unit_test(r7_release_without_arbiter), cmocka_unit_test(r7_hold_automatic),
        cmocka_unit_test(r7_stop_automatic),
    };

    if (argc > 2) { /* a longer search by hand: test-two-hosts EPOCHS MISHAPS */
        epochs = (unsigned)atoi(argv[1]);
        mishaps = (unsigned)atoi(argv[2]);
    }
    return cmocka_run_group_tests(tests, setup, teardown);
}
