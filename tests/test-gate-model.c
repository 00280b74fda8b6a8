/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Commit protection in the real gate, with the real PostgreSQL parser (R1, R3, R6).
 *
 * First every schedule of up to DEPTH steps of one connection: the guest sends something, a
 * checkpoint is taken (two in flight at most), acknowledged, frames leave.  Then long random
 * schedules with many connections. After each step: whichever checkpoint the backup may hold whole,
 * it covers everything that the client has, or lists the flow; and it covers every commit that the
 * client has.
 *
 * The sources are included, so that a state of the gate can be saved and put back.
 */
#include "netbuf/flows.c"
#include "netbuf/frame-ring.c"
#include "netbuf/gate.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#include "gate-frames.h"

#define PORT 5432u

static const char row[] = "D\0\0\0\x0b\0\1\0\0\0\1x";
static const char insert[] = "C\0\0\0\x0fINSERT 0 1\0Z\0\0\0\5T";
static const char begin_[] = "C\0\0\0\x0a"
                             "BEGIN\0Z\0\0\0\5T";
static const char commit[] = "C\0\0\0\x0b"
                             "COMMIT\0Z\0\0\0\5I";
static const char chain[] = "C\0\0\0\x0b"
                            "COMMIT\0Z\0\0\0\5T";
static const char greeting[] = "R\0\0\0\x8\0\0\0\0Z\0\0\0\5I";

/* Every short schedule */

enum step { SEND_ROW, SEND_BEGIN, SEND_COMMIT, SEND_CHAIN, WISH, TAKE, ACK, OUT, STEPS };
#ifdef __SANITIZE_THREAD__
enum { DEPTH = 6 }; /* there are no threads to watch, and it takes a minute longer */
#else
enum { DEPTH = 8 };
#endif
enum { MAX_SENT = DEPTH + 4, MAX_TAKEN = 64 };

static const struct {
    const char *name, *data;
    size_t len;
    bool commits;
} kinds[] = {
    {"row", row, sizeof(row) - 1, false},
    {"begin", begin_, sizeof(begin_) - 1, false},
    {"commit", commit, sizeof(commit) - 1, true},
    {"chain", chain, sizeof(chain) - 1, true},
};

struct world {
    unsigned sent, received; /* frames */
    bool commits[MAX_SENT];  /* the frame carries the end of a transaction */
    unsigned taken, acked;
    unsigned covers[MAX_TAKEN]; /* frames that checkpoint i covers */
    bool lists[MAX_TAKEN];
    bool block;    /* by what was sent last */
    bool in_block; /* that, or wished */
    uint32_t seq;
};

static struct gate *g;
static struct world w;
static struct buffer net_state;
static bool out_at_once, lingers;
static unsigned long schedules, passed;
static enum step path[DEPTH];

struct saved {
    struct gate gate;
    struct flow flow;
    struct flows flows;
    uint32_t bucket, active;
    uint8_t queue[64 + 160 * MAX_SENT], express[64 + 160 * MAX_SENT];
    struct world w;
};

static void save(struct saved *s)
{
    memcpy(&s->gate, g, offsetof(struct gate, addresses));
    s->flows = *g->flows;
    s->flow = *g->flows->flow;
    s->bucket = *g->flows->bucket;
    s->active = *g->flows->active;
    memcpy(s->queue, g->queue.mem, sizeof(s->queue));
    memcpy(s->express, g->express.mem, sizeof(s->express));
    s->w = w;
}

static void restore(const struct saved *s)
{
    memcpy(g, &s->gate, offsetof(struct gate, addresses));
    *g->flows = s->flows;
    *g->flows->flow = s->flow;
    *g->flows->bucket = s->bucket;
    *g->flows->active = s->active;
    memcpy(g->queue.mem, s->queue, sizeof(s->queue));
    memcpy(g->express.mem, s->express, sizeof(s->express));
    w = s->w;
}

static void broken(const char *what, unsigned depth)
{
    static const char *const names[] = {"row",  "begin", "commit", "chain",
                                        "wish", "take",  "ack",    "out"};

    print_message("# %s after:", what);
    for (unsigned i = 0; i < depth; i++)
        print_message(" %s", names[path[i]]);
    print_message("\n");
    fail();
}

static void check(unsigned depth)
{
    for (unsigned k = w.acked; k <= w.taken; k++) {
        if (w.received > w.covers[k] && !w.lists[k])
            broken("R3: the client has more than a checkpoint that does not list the flow", depth);
        for (unsigned i = w.covers[k]; i < w.received; i++)
            if (w.commits[i])
                broken("R1: the client has a commit that is not in a checkpoint", depth);
    }
}

static void send_data(const char *data, size_t len, bool commits, uint8_t flags)
{
    uint8_t f[160];
    size_t n = put_tcp(f, (uint16_t)w.sent, PORT, 40000, w.seq, flags, data, len);

    passed += gate_send(g, f, n, 1) == GATE_PASSED;
    w.commits[w.sent++] = commits;
    w.seq += (uint32_t)len + (flags & TCP_SYN ? 1 : 0);
}

static void out(unsigned depth)
{
    struct iovec v;

    while (gate_peek(g, &v, 1) == 1) {
        if (get_be16((uint8_t *)v.iov_base + ETH_HEADER + 4) != w.received++)
            broken("R6: a frame was lost, repeated or overtaken", depth);
        gate_pop(g, 1, 1);
    }
}

/* Lists a flow that is in a transaction, and none that has been idle for longer than it lingers: a
 * takeover would reset it for nothing. */
static void take_checkpoint(void)
{
    struct net_state s;

    buffer_clear(&net_state);
    assert_int_equal(gate_barrier(g, ++w.taken, &net_state), 0);
    assert_int_equal(net_state_decode(&s, net_state.data, net_state.len, NULL), 0);
    w.covers[w.taken] = w.sent;
    w.lists[w.taken] = s.flows == 1;
    if (w.in_block || !lingers)
        assert_int_equal(w.lists[w.taken], w.in_block);
}

static bool step(enum step s, unsigned depth)
{
    struct flow *fl = g->flows->flow;

    switch (s) {
    case WISH: /* as a way of marking packets might that holds none back itself */
        if (fl->mode != HELD || fl->wish)
            return false;
        fl->wish = fl->block = w.in_block = true;
        set_active(g->flows, fl);
        break;
    case TAKE:
        if (w.taken - w.acked == 2)
            return false;
        take_checkpoint();
        break;
    case ACK:
        if (w.taken == w.acked)
            return false;
        gate_release(g, ++w.acked);
        break;
    case OUT:
        if (out_at_once)
            return false;
        out(depth);
        break;
    default:
        send_data(kinds[s].data, kinds[s].len, kinds[s].commits, TCP_ACK);
        if (s != SEND_ROW)
            w.block = s != SEND_COMMIT;
        w.in_block = w.block; /* a row outside of a transaction ends a wish */
    }
    if (out_at_once)
        out(depth);
    return true;
}

static void explore(unsigned depth)
{
    struct saved s;

    schedules++;
    if (depth == (lingers ? DEPTH - 1u : DEPTH))
        return;
    save(&s);
    for (unsigned i = 0; i < STEPS; i++) {
        path[depth] = i;
        if (!step(i, depth + 1))
            continue;
        check(depth + 1);
        explore(depth + 1);
        restore(&s);
    }
}

/* From a connection that has just begun, or from one that is open already. */
static void explore_from(bool open)
{
    g = gate_new(GATE_QUEUE_MIN, 1);
    assert_int_equal(gate_add_service(g, PORT, &parser_pgsql), 0);
    gate_linger(g, lingers);
    w = (struct world){.seq = UINT32_MAX - 20};
    send_data(NULL, 0, false, TCP_SYN | TCP_ACK);
    send_data(greeting, sizeof(greeting) - 1, false, TCP_ACK);
    if (open)
        send_data(begin_, sizeof(begin_) - 1, false, TCP_ACK);
    w.block = w.in_block = open;
    take_checkpoint();
    gate_release(g, ++w.acked);
    out(0);
    assert_int_equal(w.received, 2 + open);
    passed = schedules = 0;
    explore(0);
    assert_true(passed > 0);
    print_message("# %lu schedules hold, %lu frames passed at once\n", schedules, passed);
    gate_free(g);
}

static void test_every_schedule(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 8; i++) {
        out_at_once = i & 1;
        lingers = i & 4;
        explore_from(i & 2);
    }
    lingers = false;
    buffer_free(&net_state);
}

/* Long random schedules */

enum { CONNS = 24, EPOCHS = 4, STREAM = 1 << 16 };

struct conn {
    uint8_t stream[512]; /* what the server still has to send */
    size_t begin, end;
    /* The octet completes a message that ends a transaction; its length.  What it tells of happened
     * before its first octet was sent. */
    uint8_t ends[STREAM];
    uint32_t sent, received; /* octets */
    uint32_t next_out;       /* frames: their order */
    uint32_t frames;
    uint32_t covers[EPOCHS];
    bool lists[EPOCHS];
    bool in_block, lost, was_open;
    bool finished; /* a FIN was sent: no more data */
};

static struct conn conn[CONNS];
static uint64_t seed;
static uint64_t taken, acked;

static unsigned rnd(unsigned n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (unsigned)((seed >> 20) % n);
}

static void say(struct conn *c, const char *data, size_t len, bool ends)
{
    memcpy(c->stream + c->end, data, len);
    c->end += len;
    if (ends)
        c->ends[c->sent + c->end - c->begin - 1] = (uint8_t)len;
}

/* What the server says next. */
static void speak(struct conn *c)
{
    static const char notice[] = "N\0\0\0\x15SNOTICE\0VNOTICE\0\0",
                      error[] = "E\0\0\0\x13SFEHLER\0VERROR\0Z\0\0\0\5E";
    static const char notification[] = "A\0\0\0\x0c\0\0\0\1x\0y\0", ready[] = "Z\0\0\0\5I";
    static const char call[] = "V\0\0\0\x8\0\0\0\0",
                      failed[] = "E\0\0\0\x13SFEHLER\0VERROR\0Z\0\0\0\5I";
    unsigned what = rnd(24);

    c->begin = c->end = 0;
    if (!c->in_block) {
        if (what < 12) {
            say(c, begin_, sizeof(begin_) - 1, false);
            c->in_block = true;
        } else if (what < 14) {
            say(c, what < 13 ? notification : notice,
                what < 13 ? sizeof(notification) - 1 : sizeof(notice) - 1, true);
        } else if (what < 16) {
            say(c, call, sizeof(call) - 1, false);
            say(c, ready, sizeof(ready) - 1, true);
        } else {
            say(c, insert, sizeof(insert) - 7, true);
            say(c, ready, sizeof(ready) - 1, true);
        }
    } else if (what < 12) {
        for (unsigned i = rnd(8); i > 0; i--)
            say(c, row, sizeof(row) - 1, false);
        say(c, insert, sizeof(insert) - 1, false);
    } else if (what < 14) {
        say(c, notice, sizeof(notice) - 1, false);
    } else if (what < 15) {
        say(c, notification, sizeof(notification) - 1, true);
    } else if (what < 16) {
        say(c, failed, sizeof(failed) - 1, false);
        c->in_block = false;
    } else if (what < 17) {
        say(c, error, sizeof(error) - 1, false);
    } else if (what < 20) {
        say(c, chain, sizeof(chain) - 7, true);
        say(c, chain + sizeof(chain) - 7, 6, false);
    } else {
        say(c, commit, sizeof(commit) - 7, true);
        say(c, ready, sizeof(ready) - 1, true);
        c->in_block = false;
    }
}

static uint16_t port_of(const struct conn *c)
{
    return (uint16_t)(30000 + (c - conn));
}

static uint32_t isn_of(const struct conn *c)
{
    return 0u - (uint32_t)(c - conn) * 400;
}

/* One frame of the connection; the octets that it brings are [c->sent, c->sent + len). */
static void send_frame(struct conn *c, uint32_t from, const uint8_t *data, size_t len,
                       uint8_t flags)
{
    uint8_t f[700];
    size_t n =
        put_tcp(f, (uint16_t)c->frames++, PORT, port_of(c), isn_of(c) + from, flags, data, len);

    if (gate_send(g, f, n, 1) == GATE_PASSED) {
        passed++;
        c->was_open = true;
        assert_false(c->lost);
    }
}

static void conn_sends(struct conn *c)
{
    static const uint8_t nothing[16];
    unsigned what = rnd(40);
    size_t len;

    if (c->finished || c->sent > STREAM - 600)
        return;
    if (what == 0) {
        send_frame(c, c->sent, NULL, 0, TCP_ACK);
    } else if (what == 1 && c->sent > 16) { /* again what was sent: the content matters to nobody */
        send_frame(c, c->sent - 16, nothing, 16, TCP_ACK);
    } else if (what == 2 && rnd(300) == 0) { /* a gap: out of step for ever */
        c->lost = true;
        send_frame(c, c->sent + 7, nothing, 3, TCP_ACK);
    } else if (what == 3 && rnd(300) == 0) {
        c->finished = true;
        send_frame(c, c->sent, NULL, 0, TCP_ACK | TCP_FIN);
    } else {
        if (c->begin == c->end)
            speak(c);
        len = 1 + rnd(rnd(4) ? 300 : 12);
        if (len > c->end - c->begin)
            len = c->end - c->begin;
        send_frame(c, c->sent, c->stream + c->begin, len, TCP_ACK);
        c->begin += len;
        c->sent += (uint32_t)len;
    }
}

static void many_out(unsigned max)
{
    struct iovec v[4];
    unsigned n;

    while (max-- > 0 && (n = gate_peek(g, v, 1 + rnd(4))) > 0) {
        for (unsigned i = 0; i < n; i++) {
            struct packet p;
            struct conn *c;
            assert_true(packet_parse(&p, v[i].iov_base, v[i].iov_len));
            c = &conn[p.dport - 30000];
            assert_int_equal(get_be16((uint8_t *)v[i].iov_base + ETH_HEADER + 4),
                             (uint16_t)c->next_out++); /* R6 */
            if (!(p.flags & TCP_SYN) && p.seq + p.data_len - isn_of(c) > c->received &&
                p.seq - isn_of(c) <= c->received)
                c->received = (uint32_t)(p.seq + p.data_len - isn_of(c));
        }
        gate_pop(g, n, 1);
    }
}

static void many_take(void)
{
    struct net_state s;
    struct net_flow flow;

    buffer_clear(&net_state);
    assert_int_equal(gate_barrier(g, ++taken, &net_state), 0);
    assert_int_equal(net_state_decode(&s, net_state.data, net_state.len, NULL), 0);
    for (unsigned i = 0; i < CONNS; i++) {
        conn[i].covers[taken % EPOCHS] = conn[i].sent;
        conn[i].lists[taken % EPOCHS] = false;
    }
    for (uint32_t i = 0; i < s.flows; i++) {
        net_state_flow(&s, i, &flow);
        assert_int_equal(flow.seq,
                         isn_of(&conn[flow.peer_port - 30000]) + conn[flow.peer_port - 30000].sent);
        conn[flow.peer_port - 30000].lists[taken % EPOCHS] = true;
    }
}

/* What flows_urgent() counts is what there is. */
static void check_parts(void)
{
    const struct flows *f = g->flows;
    unsigned waits = 0, busy = 0;

    for (unsigned i = 0; i < f->max; i++) {
        const struct flow *fl = &f->flow[i];
        bool counts = fl->mode != FREE && fl->mode != STRICT && !fl->closed;
        waits += counts && fl->waits;
        busy += counts && !fl->waits && (fl->block || fl->linger);
        assert_false(fl->waits && fl->queued == 0 && counts);
    }
    assert_int_equal(f->parts[WAITS], waits);
    assert_int_equal(f->parts[BUSY], busy);
    assert_int_equal(f->parts[IDLE], f->max - waits - busy);
}

static void many_check(void)
{
    check_parts();
    for (uint64_t k = acked; k <= taken; k++)
        for (unsigned i = 0; i < CONNS; i++) {
            struct conn *c = &conn[i];
            if (c->received > c->covers[k % EPOCHS] && !c->lists[k % EPOCHS])
                fail_msg("R3: connection %u has %u octets, checkpoint covers %u, not listed", i,
                         c->received, c->covers[k % EPOCHS]);
            for (uint32_t at = c->covers[k % EPOCHS]; at < c->received; at++)
                if (c->ends[at] && at + 1 - c->ends[at] >= c->covers[k % EPOCHS])
                    fail_msg("R1: connection %u has the end at %u, checkpoint covers %u", i, at,
                             c->covers[k % EPOCHS]);
        }
}

static void many_schedule(uint64_t with_seed)
{
    struct gate_stats st;

    seed = with_seed * 0x9e3779b97f4a7c15u | 1;
    memset(conn, 0, sizeof(conn));
    taken = acked = 0;
    g = gate_new(1 << 22, CONNS - 2); /* two find no place: they stay strict */
    assert_int_equal(gate_add_service(g, PORT, &parser_pgsql), 0);
    gate_linger(g, (uint8_t)(with_seed % 3));
    for (unsigned i = 0; i < CONNS; i++) {
        struct conn *c = &conn[i];
        send_frame(c, UINT32_MAX, NULL, 0, TCP_SYN | TCP_ACK);
        say(c, greeting, sizeof(greeting) - 7, false);
        say(c, greeting + sizeof(greeting) - 7, 6, true);
    }
    for (unsigned n = 0; n < 60000; n++) {
        unsigned what = rnd(100);

        if (what < 80) {
            conn_sends(&conn[rnd(CONNS)]);
        } else if (what < 84 && taken - acked < 2) {
            many_take();
            many_check();
        } else if (what < 88 && acked < taken) {
            gate_release(g, ++acked);
            many_check();
        } else {
            many_out(rnd(3) ? 100 : 2);
            if (rnd(8) == 0)
                many_check();
        }
    }
    gate_stats(g, 1, &st);
    assert_true(st.flows.untracked > 0);
    assert_true(st.by[FLOW_OPEN] > 1000);
    gate_free(g);
}

static void test_random_schedules(void **state)
{
    unsigned open = 0;

    (void)state;
    passed = 0;
    for (uint64_t s = 1; s <= 20; s++) {
        many_schedule(s);
        for (unsigned i = 0; i < CONNS; i++)
            open += conn[i].was_open;
    }
    assert_true(open > 20 * CONNS / 2);
    print_message("# %lu frames passed at once\n", passed);
    buffer_free(&net_state);
}

/* What makes a flow strict, and what a flood of connections does not */

static size_t segment(uint8_t *f, struct world *world, uint8_t flags)
{
    size_t n = put_tcp(f, 0, PORT, 40000, world->seq, flags, row, sizeof(row) - 1);

    world->seq += sizeof(row) - 1;
    return n;
}

/* Whatever may leave does, unseen. */
static void all_out(void)
{
    while (gate_peek(g, &(struct iovec){0}, 1))
        gate_pop(g, 1, 1);
}

static void open_flow(unsigned flows)
{
    g = gate_new(GATE_QUEUE_MIN, flows);
    assert_int_equal(gate_add_service(g, PORT, &parser_pgsql), 0);
    w = (struct world){.seq = 1000, .in_block = true};
    send_data(NULL, 0, false, TCP_SYN | TCP_ACK);
    send_data(greeting, sizeof(greeting) - 1, false, TCP_ACK);
    send_data(begin_, sizeof(begin_) - 1, false, TCP_ACK);
    take_checkpoint();
    gate_release(g, ++w.acked);
    out(0);
}

static enum gate_verdict send_row(uint8_t flags)
{
    uint8_t f[160];
    size_t n = segment(f, &w, flags);

    return gate_send(g, f, n, 1);
}

/* R10: after each of these the flow is held, and never open again. */
static void test_strict(void **state)
{
    enum { FRAGMENT, FIRST_FRAGMENT, FRAGMENT6, LYING, GAP, URGENT, MULTICAST, DATA_IN_SYN, WAYS };
    struct gate_stats st;
    uint8_t f[200];
    size_t n;

    (void)state;
    for (unsigned way = 0; way < WAYS; way++) {
        open_flow(4);
        assert_int_equal(send_row(TCP_ACK), GATE_PASSED);
        if (way == GAP)
            w.seq++;
        n = segment(f, &w,
                    way == URGENT        ? TCP_ACK | TCP_URG
                    : way == DATA_IN_SYN ? TCP_ACK | TCP_SYN
                                         : TCP_ACK);
        if (way == FRAGMENT)
            put_be16(f + ETH_HEADER + 6, 5);
        if (way == FIRST_FRAGMENT)
            put_be16(f + ETH_HEADER + 6, 0x2000);
        if (way == LYING)
            put_be16(f + ETH_HEADER + 2, 1500);
        if (way == MULTICAST)
            f[0] |= 1;
        if (way == FRAGMENT6) {
            n = put_addressed(f, 6, station,
                              (const uint8_t *)"\xfe\x80\0\0\0\0\0\0\0\0\0\0\0\0\0\1", NULL, 0) +
                16;
            f[ETH_HEADER + 6] = 44;
            memset(f + n - 16, 0, 16);
            f[n - 16] = 6;
        }
        if (way <= LYING) /* sent again as a whole: the stream has no gap */
            w.seq -= sizeof(row) - 1;
        assert_int_equal(gate_send(g, f, n, 1), GATE_HELD);
        w.in_block = false;
        for (unsigned i = 0; i < 4; i++) {
            assert_int_equal(send_row(TCP_ACK), GATE_HELD);
            take_checkpoint();
            gate_release(g, ++w.acked);
            gate_pop(g, gate_peek(g, (struct iovec[16]){{0}}, 16), 1);
        }
        gate_stats(g, 1, &st);
        assert_int_equal(st.flows.lost[way == GAP ? FLOW_LOST_GAP : FLOW_LOST_PACKET], 1);
        assert_int_equal(st.by[FLOW_OPEN], 1);
        assert_in_range(st.by[FLOW_STRICT], 4, 5); /* a fragment is no flow's */
        gate_free(g);
    }
    buffer_free(&net_state);
}

/* R3: after a new protection has begun no flow is open until a checkpoint of it lists the flow and is acknowledged,
 * whatever was taken before. */
static void test_new_protection(void **state)
{
    (void)state;
    for (unsigned between = 0; between < 3; between++) {
        open_flow(1);
        assert_int_equal(send_row(TCP_ACK), GATE_PASSED);
        take_checkpoint(); /* in flight when the link is lost */
        if (between == 1)
            gate_pass(g);
        gate_hold(g);
        if (between == 2)
            gate_release(g, w.taken);
        assert_int_equal(send_row(TCP_ACK), GATE_HELD);
        take_checkpoint();
        assert_int_equal(send_row(TCP_ACK), GATE_HELD);
        assert_true(w.lists[w.taken]);
        gate_release(g, w.acked = w.taken);
        assert_int_equal(send_row(TCP_ACK), GATE_HELD); /* R6: behind those that have not left */
        take_checkpoint();
        gate_release(g, ++w.acked);
        all_out();
        assert_int_equal(send_row(TCP_ACK), GATE_PASSED);
        gate_free(g);
    }
    buffer_free(&net_state);
}

static void one_checkpoint(void)
{
    struct iovec v[16];

    buffer_clear(&net_state);
    gate_barrier(g, ++w.taken, &net_state);
    gate_release(g, w.taken);
    gate_pop(g, gate_peek(g, v, 16), 1);
}

static void conn_says(unsigned port, uint32_t *seq, const char *data, size_t len)
{
    uint8_t f[160];

    gate_send(g, f, put_tcp(f, 0, PORT, (uint16_t)port, *seq, data ? TCP_ACK : TCP_SYN | TCP_ACK, data, len), 1);
    *seq += data ? (uint32_t)len : 1;
}

static void covered(void)
{
    take_checkpoint();
    gate_release(g, ++w.acked);
    all_out();
}

/* R3: a connection between the same ports is another one, whatever the one before was. */
static void test_connection_anew(void **state)
{
    enum { IN_BLOCK, LOST, IN_A_MESSAGE, LINGERS, CLOSED, WAYS };

    (void)state;
    for (unsigned way = 0; way < WAYS; way++) {
        open_flow(1);
        if (way == LINGERS) {
            gate_linger(g, 3);
            send_data(commit, sizeof(commit) - 1, true, TCP_ACK);
            gate_linger(g, 0);
        }
        w.seq += way == LOST ? 7 : 0;
        send_data(row, sizeof(row) - (way == IN_A_MESSAGE ? 4 : 1), false, TCP_ACK | (way == CLOSED ? TCP_FIN : 0));
        passed = 0;
        w.seq = 70000;
        send_data(NULL, 0, false, TCP_SYN | TCP_ACK);
        send_data(greeting, sizeof(greeting) - 1, false, TCP_ACK);
        send_row(TCP_ACK);
        w.in_block = false;
        covered();
        send_row(TCP_ACK);
        send_data(begin_, sizeof(begin_) - 1, false, TCP_ACK);
        assert_int_equal(passed, 0);
        w.in_block = true;
        covered();
        assert_int_equal(send_row(TCP_ACK), GATE_PASSED);
        gate_free(g);
    }
    buffer_free(&net_state);
}

/* R3: what a connection leaves behind when it ends outside of any protection concerns no other. */
static void test_forgotten_without_checkpoint(void **state)
{
    uint8_t f[160];
    uint32_t seq = 0;

    (void)state;
    open_flow(2);
    conn_says(100, &seq, NULL, 0);
    conn_says(100, &seq, greeting, sizeof(greeting) - 1);
    conn_says(100, &seq, begin_, sizeof(begin_) - 1);
    gate_send(g, f, put_tcp(f, 0, PORT, 100, seq, TCP_ACK | TCP_FIN, NULL, 0), 1);
    gate_pass(g);
    all_out();
    gate_hold(g);
    assert_int_equal(send_row(TCP_ACK), GATE_HELD);
    covered();
    assert_int_equal(send_row(TCP_ACK), GATE_PASSED);
    gate_free(g);
    buffer_free(&net_state);
}

/* R9: a table that is full forgets, for a new connection, the one that was silent for longest, and no open one nor one of
 * which something waits. */
static void test_full_table(void **state)
{
    enum { OPENED, SILENT, SPEAKS, WAITING, N };
    struct gate_stats st;
    uint32_t seq[N + 1] = {0};
    uint8_t f[160];

    (void)state;
    g = gate_new(GATE_QUEUE_MIN, N);
    assert_int_equal(gate_add_service(g, PORT, &parser_pgsql), 0);
    w = (struct world){.in_block = true};
    for (unsigned i = 0; i < N; i++) {
        conn_says(100 + i, &seq[i], NULL, 0);
        conn_says(100 + i, &seq[i], greeting, sizeof(greeting) - 1);
    }
    conn_says(100 + OPENED, &seq[OPENED], begin_, sizeof(begin_) - 1);
    gate_send(g, f, put_tcp(f, 0, PORT, 100 + SPEAKS, seq[SPEAKS], TCP_ACK, NULL, 0), 5);
    covered();
    conn_says(100 + WAITING, &seq[WAITING], row, sizeof(row) - 1);
    gate_stats(g, 1, &st);
    assert_int_equal(st.flows.untracked, 0);
    conn_says(100 + N, &seq[N], NULL, 0); /* in the place of SILENT */
    conn_says(100 + SILENT, &seq[SILENT], row, sizeof(row) - 1);
    conn_says(100 + OPENED, &seq[OPENED], row, sizeof(row) - 1);
    gate_stats(g, 1, &st);
    assert_int_equal(st.flows.untracked, 0);
    assert_int_equal(st.by[FLOW_UNTRACKED], 1);
    assert_int_equal(st.by[FLOW_OPEN], 1);
    conn_says(100 + SILENT, &seq[SILENT], NULL, 0); /* in the place of SPEAKS */
    conn_says(100 + SPEAKS, &seq[SPEAKS], NULL, 0); /* all others are open or wait */
    gate_stats(g, 1, &st);
    assert_int_equal(st.flows.untracked, 1);
    check_parts();
    gate_free(g);
    buffer_free(&net_state);
}

/* The frame with a VLAN tag; its length. */
static size_t tag(uint8_t *f, size_t len, uint16_t tci)
{
    memmove(f + 16, f + 12, len - 12);
    put_be16(f + 12, ETHERTYPE_VLAN_);
    put_be16(f + 14, tci);
    return len + 4;
}

/* R3: addresses, ports and VLANs make a flow, and an open one opens no other. */
static void test_what_is_one_flow(void **state)
{
    enum { SAME, PRIORITY, NO_VLAN, OTHER_VLAN, TWO_VLANS, GUEST_IP, PEER_IP, PEER_PORT, WAYS };
    static const struct {
        const char *data;
        size_t len;
        uint8_t flags;
    } opens[] = {{NULL, 0, TCP_SYN | TCP_ACK}, {greeting, sizeof(greeting) - 1, TCP_ACK}, {begin_, sizeof(begin_) - 1, TCP_ACK}};
    struct gate_stats st;
    uint8_t f[200];
    size_t n;

    (void)state;
    for (unsigned way = 0; way < WAYS; way++) {
        uint32_t seq = 1;

        w = (struct world){.taken = 0};
        g = gate_new(GATE_QUEUE_MIN, 1);
        gate_add_service(g, PORT, &parser_pgsql);
        for (unsigned i = 0; i < 3; i++) {
            n = put_tcp(f, 0, PORT, 40000, seq, opens[i].flags, opens[i].data, opens[i].len);
            gate_send(g, f, tag(f, n, 5), 1);
            seq += (uint32_t)opens[i].len + (i == 0);
        }
        one_checkpoint();
        n = put_tcp(f, 0, PORT, way == PEER_PORT ? 40001 : 40000, seq, TCP_ACK, row, sizeof(row) - 1);
        f[ETH_HEADER + 15] ^= way == GUEST_IP;
        f[ETH_HEADER + 19] ^= way == PEER_IP;
        if (way == TWO_VLANS)
            n = tag(f, n, 5);
        if (way != NO_VLAN)
            n = tag(f, n, way == PRIORITY ? 0xe005 : way == OTHER_VLAN ? 6 : 5);
        assert_int_equal(gate_send(g, f, n, 1), way <= PRIORITY ? GATE_PASSED : GATE_HELD);
        gate_stats(g, 1, &st);
        assert_int_equal(st.flows.open, 1);
        gate_free(g);
    }
    buffer_free(&net_state);
}

/* With open-when = active the next transaction does not wait when it begins at once; it does when the
 * connection was idle for longer. */
static void test_linger(void **state)
{
    (void)state;
    for (unsigned idle = 0; idle < 3; idle++) {
        open_flow(1);
        gate_linger(g, 1);
        send_data(commit, sizeof(commit) - 1, true, TCP_ACK);
        lingers = true;
        w.in_block = false;
        take_checkpoint();
        assert_true(w.lists[w.taken]);
        take_checkpoint();
        assert_true(w.lists[w.taken]); /* the answer to COMMIT has not left */
        gate_release(g, w.acked = w.taken);
        out(0);
        for (unsigned i = 0; i < idle; i++) {
            take_checkpoint();
            gate_release(g, ++w.acked);
            assert_int_equal(w.lists[w.taken], i == 0);
        }
        passed = 0;
        send_data(begin_, sizeof(begin_) - 1, false, TCP_ACK);
        assert_int_equal(passed, idle < 2);
        w.in_block = true;
        take_checkpoint();
        assert_true(w.lists[w.taken]);
        gate_free(g);
    }
    /* An answer outside of a transaction waits all the same. */
    open_flow(1);
    gate_linger(g, 1);
    send_data(commit, sizeof(commit) - 1, true, TCP_ACK);
    w.in_block = false;
    take_checkpoint();
    gate_release(g, ++w.acked);
    out(0);
    assert_int_equal(send_row(TCP_ACK), GATE_HELD);
    lingers = false;
    gate_free(g);
    buffer_free(&net_state);
}

/* A checkpoint is urgent when a third of the connections in transactions wait for it with one, and until it is taken. */
static void test_urgent(void **state)
{
    enum { N = 6 };
    uint32_t seq[N] = {0};

    (void)state;
    g = gate_new(GATE_QUEUE_MIN, N);
    assert_int_equal(gate_add_service(g, PORT, &parser_pgsql), 0);
    gate_linger(g, 2);
    w = (struct world){.seq = 0};
    for (unsigned i = 0; i < N; i++) {
        conn_says(100 + i, &seq[i], NULL, 0);
        conn_says(100 + i, &seq[i], greeting, sizeof(greeting) - 1);
        conn_says(100 + i, &seq[i], row, sizeof(row) - 1);
    }
    assert_false(gate_urgent(g)); /* what is outside of transactions can wait */
    for (unsigned i = 0; i < N; i++)
        conn_says(100 + i, &seq[i], begin_, sizeof(begin_) - 1);
    assert_true(gate_urgent(g)); /* all wait with the beginning */
    take_checkpoint();
    assert_false(gate_urgent(g)); /* and are covered */
    gate_release(g, ++w.acked);
    all_out();
    for (unsigned i = 0; i < N; i++)
        conn_says(100 + i, &seq[i], row, sizeof(row) - 1);
    assert_false(gate_urgent(g));
    conn_says(100, &seq[0], commit, sizeof(commit) - 1);
    assert_false(gate_urgent(g)); /* one of six */
    conn_says(101, &seq[1], chain, sizeof(chain) - 1);
    assert_true(gate_urgent(g)); /* two */
    take_checkpoint();
    assert_false(gate_urgent(g));
    conn_says(102, &seq[2], commit, sizeof(commit) - 1);
    assert_false(gate_urgent(g)); /* one; those that the checkpoint before covers go on soon */
    gate_release(g, ++w.acked);
    all_out();
    for (unsigned i = 0; i < 3; i++) { /* the others end their connections, or are lost */
        uint8_t f[160];
        gate_send(g, f, put_tcp(f, 0, PORT, (uint16_t)(103 + i), seq[3 + i] + i, TCP_ACK | (i ? 0 : TCP_FIN), NULL, 0), 1);
    }
    assert_true(gate_urgent(g)); /* one of three */
    gate_pass(g);
    assert_false(gate_urgent(g)); /* nothing is held */
    gate_free(g);
    buffer_free(&net_state);
}

/* Each frame that waited is counted with its reason. */
static void test_reasons(void **state)
{
    struct gate_stats st, after;
    struct iovec v;
    uint8_t f[160];
    size_t n;

    (void)state;
    open_flow(1);
    send_row(TCP_ACK);
    send_data(commit, sizeof(commit) - 1, true, TCP_ACK);
    send_data(begin_, sizeof(begin_) - 1, false, TCP_ACK);
    send_data(row, sizeof(row) - 1, false, TCP_ACK);
    take_checkpoint();
    gate_release(g, ++w.acked);
    send_row(TCP_ACK); /* the flow is open again, and the released frames have not left */
    n = put_tcp(f, 0, PORT, 4711, 9, TCP_ACK, row, sizeof(row) - 1);
    gate_send(g, f, n, 1);
    n = put_tcp(f, 0, 80, 4711, 9, TCP_ACK, row, sizeof(row) - 1);
    gate_send(g, f, n, 1);
    gate_pass(g);
    send_row(TCP_ACK);
    gate_stats(g, 1, &st);
    assert_int_equal(st.by[FLOW_OTHER], 1);
    assert_int_equal(st.by[FLOW_UNTRACKED], 1);
    assert_int_equal(st.by[FLOW_STRICT], 0);
    assert_int_equal(st.by[FLOW_OUTSIDE], 3); /* SYN, greeting, COMMIT */
    assert_int_equal(st.by[FLOW_BEGUN], 3);
    assert_int_equal(st.by[FLOW_BEHIND], 1);
    assert_int_equal(st.by[FLOW_OPEN], 1);
    assert_int_equal(st.unprotected, 1);
    /* Those that pass others are counted too when they leave. */
    for (; gate_peek(g, &v, 1); gate_pop(g, 1, 1)) {
        st.out_frames++;
        st.out_bytes += v.iov_len;
    }
    gate_stats(g, 1, &after);
    assert_int_equal(after.out_frames, st.out_frames);
    assert_int_equal(after.out_bytes, st.out_bytes);
    gate_free(g);
    buffer_free(&net_state);
}

/* A frame of the client of `port`. */
static void client_says(uint16_t port, uint32_t seq, const void *data, size_t len)
{
    uint8_t f[400], swap[4];
    size_t n = put_tcp(f, 0, 40000, port, seq, TCP_ACK, data, len);

    memcpy(swap, f + 26, 4);
    memcpy(f + 26, f + 30, 4);
    memcpy(f + 30, swap, 4);
    gate_receive(g, f, n);
}

static enum gate_verdict guest_says(uint16_t port, uint32_t *seq, uint8_t flags, const void *data,
                                    size_t len)
{
    uint8_t f[400];
    size_t n = put_tcp(f, 0, port, 40000, *seq, flags, data, len);

    *seq += (uint32_t)len + (flags & TCP_SYN ? 1 : 0);
    return gate_send(g, f, n, 1);
}

/* Parsers that need the client's side: it is followed, also when it is sent again; a gap, and what comes
 * without a question, makes the flow strict. */
static void test_client_side(void **state)
{
    enum { AGAIN, LATE, GAP, SILENT, WAYS };
    static const char hello[] = "\x3c\0\0\0\x0a" "10.11.19\0\1\0\0\0saltsalt\0\xff\x77\x21\2\0\0\0\x15"
                                "\0\0\0\0\0\0\0\0\0\0xxxxxxxxxxxxxxxxxxx";
    static const char answer[] = "\x26\0\0\1\1\2\0\0\0\0\0\1\x21\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
                                 "\0\0\0\0\0root\0\0";
    static const char ok[] = "\7\0\0\2\0\0\0\2\0\0\0", inside[] = "\7\0\0\1\0\0\0\3\0\0\0";
    static const char begins[] = "\6\0\0\0\3BEGIN", query[] = "\7\0\0\0\3INSERT";
    enum gate_verdict verdict;
    struct gate_stats st;

    (void)state;
    for (unsigned way = 0; way < WAYS; way++) {
        uint32_t seq = 77, client = 1;

        w = (struct world){.taken = 0};
        g = gate_new(GATE_QUEUE_MIN, 4);
        gate_add_service(g, 3306, &parser_mysql);
        assert_true(gate_reads_clients(g));
        guest_says(3306, &seq, TCP_SYN | TCP_ACK, NULL, 0);
        guest_says(3306, &seq, TCP_ACK, hello, sizeof(hello) - 1);
        client_says(3306, client, answer, 20);
        client_says(3306, client, answer, sizeof(answer) - 1);
        client += sizeof(answer) - 1;
        guest_says(3306, &seq, TCP_ACK, ok, sizeof(ok) - 1);
        client_says(3306, client, begins, sizeof(begins) - 1);
        client += sizeof(begins) - 1;
        guest_says(3306, &seq, TCP_ACK, inside, sizeof(inside) - 1);
        one_checkpoint();
        if (way == GAP)
            client++;
        if (way != SILENT)
            client_says(3306, client, query, sizeof(query) - 1);
        if (way == AGAIN)
            client_says(3306, client, query, sizeof(query) - 1);
        if (way == LATE)
            client_says(3306, client - 5, "xxxxx", 5);
        verdict = guest_says(3306, &seq, TCP_ACK, inside, sizeof(inside) - 1);
        assert_int_equal(verdict, way < GAP ? GATE_PASSED : GATE_HELD);
        gate_stats(g, 1, &st);
        assert_int_equal(st.flows.lost[FLOW_LOST_GAP], way == GAP);
        assert_int_equal(st.flows.lost[FLOW_LOST_PROTOCOL], way == SILENT);
        gate_free(g);
    }
    buffer_free(&net_state);
}

/* The guest marks what is inside of a transaction: everything else ends one, and a flow without marks finds
 * no place in the table. */
static void test_mark(void **state)
{
    uint8_t f[160];
    uint32_t seq = 1;
    struct gate_stats st;
    size_t n;

    (void)state;
    w = (struct world){.taken = 0};
    g = gate_new(GATE_QUEUE_MIN, 4);
    gate_set_mark(g, 46);
    assert_false(gate_reads_clients(g));
    assert_int_equal(guest_says(8080, &seq, TCP_ACK, "x", 1), GATE_HELD);
    gate_stats(g, 1, &st);
    assert_int_equal(st.flows.held, 0);
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 3; i++) {
            n = put_tcp(f, 0, 8080, 40000, seq++, TCP_ACK, "x", 1);
            f[ETH_HEADER + 1] = 46 << 2;
            assert_int_equal(gate_send(g, f, n, 1), i ? GATE_PASSED : GATE_HELD);
            if (i == 0)
                one_checkpoint();
        }
        assert_int_equal(guest_says(8080, &seq, TCP_ACK, NULL, 0), GATE_PASSED); /* says nothing */
        n = put_tcp(f, 0, 8080, 40000, seq, TCP_ACK, "xx", 2);
        f[ETH_HEADER + 1] = 47 << 2;
        assert_int_equal(gate_send(g, f, n, 1), GATE_HELD);
        seq += 2;
        one_checkpoint();
        assert_int_equal(guest_says(8080, &seq, TCP_ACK, "x", 1), GATE_HELD);
        one_checkpoint();
        gate_stats(g, 1, &st);
        assert_int_equal(st.flows.open, 0);
    }
    gate_free(g);
    buffer_free(&net_state);
}

/* R9: a flood of new connections pushes no open one out, and the table stays as it is. */
static void test_flood(void **state)
{
    struct gate_stats st;
    uint8_t f[160];
    size_t n;

    (void)state;
    open_flow(16);
    for (unsigned i = 0; i < 20000; i++) {
        n = put_tcp(f, 0, PORT, (uint16_t)(1 + i), i, TCP_SYN | TCP_ACK, NULL, 0);
        gate_send(g, f, n, i);
        if (i % 500 == 0) {
            take_checkpoint();
            gate_release(g, ++w.acked);
            while ((n = gate_peek(g, (struct iovec[16]){{0}}, 16)) > 0)
                gate_pop(g, (unsigned)n, i);
            assert_int_equal(send_row(TCP_ACK), GATE_PASSED);
        }
    }
    gate_stats(g, 20000, &st);
    assert_int_equal(st.flows.open, 1);
    assert_true(st.flows.held + st.flows.open + st.flows.strict <= 16);
    assert_true(st.flows.untracked > 10000);
    gate_free(g);
    buffer_free(&net_state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_schedule),
        cmocka_unit_test(test_random_schedules),
        cmocka_unit_test(test_strict),
        cmocka_unit_test(test_new_protection),
        cmocka_unit_test(test_connection_anew),
        cmocka_unit_test(test_forgotten_without_checkpoint),
        cmocka_unit_test(test_full_table),
        cmocka_unit_test(test_what_is_one_flow),
        cmocka_unit_test(test_linger),
        cmocka_unit_test(test_urgent),
        cmocka_unit_test(test_reasons),
        cmocka_unit_test(test_client_side),
        cmocka_unit_test(test_mark),
        cmocka_unit_test(test_flood),
    };

    return cmocka_run_group_tests_name("gate-model", tests, NULL, NULL);
}
