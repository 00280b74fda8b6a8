/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The packet gate: transcripts (gate.transcript), random schedules against a model of a few lines
 * (R1, R6, R9), the network state's format (R2, R10) and the announcements.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <arpa/inet.h>
#include <cmocka.h>

#include "common/clock.h"
#include "gate-frames.h"
#include "netbuf/announce.h"
#include "netbuf/gate.h"

static const char *const verdicts[] = {"held", "passed", "full", "refused"};
static uint8_t frame[GATE_FRAME_MAX + 64];

static int barrier(struct gate *g, uint64_t epoch)
{
    static struct buffer net_state;

    buffer_clear(&net_state);
    return gate_barrier(g, epoch, &net_state);
}

/* Transcripts */

struct run {
    struct gate *g;
    uint64_t now;
    char out[4096];
};

static void say(struct run *r, const char *fmt, ...)
{
    size_t at = strlen(r->out);
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(r->out + at, sizeof(r->out) - at, fmt, ap);
    va_end(ap);
}

/* A frame that carries its name; named '#' by `fill`. */
static enum gate_verdict send_named(struct run *r, char name, size_t len)
{
    memset(frame, name, len);
    put_header(frame, station, NULL, 0, 0x88b5);
    return gate_send(r->g, frame, len, r->now);
}

static void do_out(struct run *r, unsigned max)
{
    struct iovec v;
    unsigned plain = 0;
    const char *space = "";

    for (; max > 0 && gate_peek(r->g, &v, 1) == 1; max--) {
        char name = ((char *)v.iov_base)[v.iov_len - 1];
        if (name == '#') {
            plain++;
        } else {
            if (plain)
                say(r, "%u frames ", plain);
            say(r, "%s%c", space, name);
            space = " ";
            plain = 0;
        }
        gate_pop(r->g, 1, r->now);
    }
    if (plain)
        say(r, "%u frames", plain);
    say(r, "%s\n", r->out[0] ? "" : "nothing");
}

static void do_addresses(struct run *r)
{
    const struct net_addresses *t = gate_addresses(r->g);

    for (unsigned i = 0; i < t->count; i++) {
        const struct net_address *a = &t->entry[i];
        char ip[INET6_ADDRSTRLEN] = "";

        if (a->family)
            inet_ntop(a->family == 4 ? AF_INET : AF_INET6, a->ip, ip, sizeof(ip));
        say(r, "%02x:%02x:%02x:%02x:%02x:%02x", a->mac[0], a->mac[1], a->mac[2], a->mac[3],
            a->mac[4], a->mac[5]);
        say(r, "%s%s", *ip ? " " : "", ip);
        for (unsigned k = 0; k < a->tags; k++)
            say(r, " vlan %u", get_be16(a->tag + 4 * k + 2));
        say(r, "\n");
    }
}

static void do_addressed(struct run *r, const char *word, char *args)
{
    unsigned m[6], vlan[2] = {0}, count = 1;
    uint8_t mac[6], ip[16];
    char text[64];
    int n = sscanf(args, "%x:%x:%x:%x:%x:%x %63s vlan %u vlan %u", &m[0], &m[1], &m[2], &m[3],
                   &m[4], &m[5], text, &vlan[0], &vlan[1]);
    bool range = strcmp(word, "ip4-range") == 0;
    int family = word[0] == 'a' ? 1 : word[2] - '0';

    assert_true(n >= 7);
    for (int i = 0; i < 6; i++)
        mac[i] = (uint8_t)m[i];
    assert_int_equal(inet_pton(family == 6 ? AF_INET6 : AF_INET, text, ip), 1);
    if (range)
        sscanf(args, "%*s %*s %u", &count);
    for (unsigned i = 0; i < count; i++, ip[3]++) {
        size_t len = put_addressed(frame, family, mac, ip, vlan, (unsigned)n - 7);
        enum gate_verdict v = gate_send(r->g, frame, len, r->now++);
        if (!range)
            say(r, "%s\n", verdicts[v]);
    }
}

static void command(struct run *r, char *line)
{
    unsigned long a = 0, b = 0, n = 0;
    char word[32], name = 0;
    struct gate_stats st;
    int at = 0;

    assert_int_equal(sscanf(line, "%31s %n", word, &at), 1);
    line += at;
    if (strcmp(word, "send") == 0) {
        a = 60;
        sscanf(line, "%c %lu", &name, &a);
        say(r, "%s\n", verdicts[send_named(r, name, a)]);
        return;
    }
    sscanf(line, "%lu %lu", &a, &b);
    if (strcmp(word, "barrier") == 0) {
        if (barrier(r->g, a) < 0)
            say(r, "refused\n");
    } else if (strcmp(word, "barriers") == 0) {
        while (a <= b)
            assert_int_equal(barrier(r->g, a++), 0);
    } else if (strcmp(word, "release") == 0) {
        gate_release(r->g, a);
    } else if (strcmp(word, "out") == 0) {
        do_out(r, a ? (unsigned)a : 10000);
    } else if (strcmp(word, "hold") == 0) {
        gate_hold(r->g);
    } else if (strcmp(word, "pass") == 0) {
        gate_pass(r->g);
    } else if (strcmp(word, "time") == 0) {
        r->now += a * NS_PER_MS;
    } else if (strcmp(word, "fill") == 0) {
        while (send_named(r, '#', a) == GATE_HELD)
            n++;
        say(r, "%lu held, then full\n", n);
    } else if (strcmp(word, "room") == 0) {
        say(r, "%s\n", gate_room(r->g) ? "yes" : "no");
    } else if (strcmp(word, "stats") == 0) {
        gate_stats(r->g, r->now, &st);
        say(r,
            "held %lu frames %lu octets, most %lu, out %lu frames %lu octets, refused %lu, full "
            "%.1f ms\n",
            st.held_frames, st.held_bytes, st.held_frames_max, st.out_frames, st.out_bytes,
            st.refused, (double)st.full_ns / 1e6);
    } else if (strcmp(word, "hold-time") == 0) {
        gate_stats(r->g, r->now, &st);
        say(r, "p50 %.0f ms p99 %.0f ms\n", (double)st.hold_p50_ns / 1e6,
            (double)st.hold_p99_ns / 1e6);
    } else if (strcmp(word, "addresses") == 0) {
        do_addresses(r);
    } else {
        do_addressed(r, word, line);
    }
}

static void test_transcripts(void **state)
{
    const char *dir = getenv("top_srcdir");
    char path[4096], line[512], cmd[512] = "", want[4096] = "";
    struct run r = {0};
    unsigned number = 0, cmd_number = 0, cases = 0;
    FILE *f;
    bool more;

    (void)state;
    snprintf(path, sizeof(path), "%s/tests/gate.transcript", dir ? dir : "..");
    f = fopen(path, "r");
    if (!f)
        fail_msg("%s: cannot open", path);
    do {
        more = fgets(line, sizeof(line), f) != NULL;
        number++;
        if (more && line[0] != '>' && line[0] != '#' && line[0] != '\n' &&
            strncmp(line, "case ", 5) != 0) {
            strcat(want, line);
            continue;
        }
        if (cmd[0]) {
            r.out[0] = 0;
            command(&r, cmd);
            if (strcmp(r.out, want) != 0)
                fail_msg("gate.transcript:%u: %sexpected\n%sgot\n%s", cmd_number, cmd, want, r.out);
        }
        cmd[0] = want[0] = 0;
        if (more && line[0] == '>') {
            strcpy(cmd, line + 2);
            cmd_number = number;
        } else if (more && line[0] == 'c') {
            gate_free(r.g);
            r.g = gate_new(GATE_QUEUE_MIN, 0);
            r.now = NS_PER_MS;
            cases++;
        }
    } while (more);
    gate_free(r.g);
    fclose(f);
    assert_true(cases > 10);
}

/* Random schedules */

enum { FRAMES = 20000, OPEN_EPOCHS = 16 };

struct model {
    struct {
        size_t len;
        uint64_t epoch; /* that it was closed in, UINT64_MAX while open */
        bool may_leave;
    } f[FRAMES];
    unsigned sent, left;
    uint64_t open[OPEN_EPOCHS]; /* closed and not released */
    unsigned opens;
    bool passing;
};

static uint64_t seed;

static unsigned rnd(unsigned n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (unsigned)((seed >> 20) % n);
}

/* Contents that tell one frame from any other. */
static void fill_frame(uint8_t *p, unsigned id, size_t len)
{
    put_header(p, station, NULL, 0, 0x88b5);
    for (size_t i = ETH_HEADER; i < len; i++)
        p[i] = (uint8_t)(id * 2654435761u >> (8 * (i % 4)));
}

static void model_barrier(struct model *m, uint64_t epoch)
{
    if (m->opens == OPEN_EPOCHS) {
        for (unsigned i = m->left; i < m->sent; i++)
            if (m->f[i].epoch == m->open[OPEN_EPOCHS - 1])
                m->f[i].epoch = epoch;
        m->opens--;
    }
    m->open[m->opens++] = epoch;
    for (unsigned i = m->left; i < m->sent; i++)
        if (m->f[i].epoch == UINT64_MAX)
            m->f[i].epoch = epoch;
}

static void model_release(struct model *m, uint64_t epoch)
{
    unsigned n = 0;

    for (unsigned i = m->left; i < m->sent; i++)
        if (m->f[i].epoch <= epoch)
            m->f[i].may_leave = true;
    while (n < m->opens && m->open[n] <= epoch)
        n++;
    m->opens -= n;
    memmove(m->open, m->open + n, m->opens * sizeof(m->open[0]));
}

static void model_mode(struct model *m, bool passing)
{
    m->passing = passing;
    m->opens = 0;
    for (unsigned i = m->left; i < m->sent; i++) {
        m->f[i].may_leave |= passing;
        m->f[i].epoch = UINT64_MAX;
    }
}

static void model_send(struct model *m, struct gate *g, uint64_t now)
{
    size_t len =
        rnd(8) ? ETH_HEADER + rnd(1600) : ETH_HEADER + rnd(GATE_FRAME_MAX - ETH_HEADER + 1);
    size_t room = gate_room(g);
    enum gate_verdict v;

    fill_frame(frame, m->sent, len);
    v = gate_send(g, frame, len, now);
    if (v == GATE_FULL) {
        assert_int_equal(room, 0);
        return;
    }
    assert_int_equal(v, m->passing ? GATE_PASSED : GATE_HELD);
    m->f[m->sent].len = len;
    m->f[m->sent].epoch = UINT64_MAX;
    m->f[m->sent++].may_leave = m->passing;
}

/* Takes a few frames out, with something else happening between peek and pop. */
static void model_out(struct model *m, struct gate *g, uint64_t now)
{
    struct iovec v[40];
    unsigned max = 1 + rnd(40), ready = 0, n, pop;

    n = gate_peek(g, v, max);
    while (ready < max && m->left + ready < m->sent && m->f[m->left + ready].may_leave)
        ready++;
    assert_int_equal(n, ready); /* R1: no frame more; and no frame is kept back for nothing */
    if (rnd(2) && m->sent < FRAMES)
        model_send(m, g, now);
    for (unsigned i = 0; i < n; i++) {
        /* R6: this very frame, whole; none lost, repeated or overtaken */
        assert_int_equal(v[i].iov_len, m->f[m->left + i].len);
        fill_frame(frame, m->left + i, v[i].iov_len);
        assert_memory_equal(v[i].iov_base, frame, v[i].iov_len);
    }
    pop = rnd(4) ? n : rnd(n + 1);
    gate_pop(g, pop, now);
    m->left += pop;
}

static void schedule(uint64_t with_seed)
{
    struct model *m = calloc(1, sizeof(*m));
    struct gate *g = gate_new(GATE_QUEUE_MIN, 0);
    uint64_t epoch = 0, now = 1;
    struct gate_stats st;

    seed = with_seed * 0x9e3779b97f4a7c15u | 1;
    while (m->sent < FRAMES) {
        unsigned what = rnd(100);

        now += rnd(1000);
        if (what < 70)
            model_send(m, g, now);
        else if (what < 79) {
            epoch += 1 + rnd(2);
            assert_int_equal(barrier(g, epoch), 0);
            model_barrier(m, epoch);
        } else if (what < 88) {
            uint64_t e = epoch + 1 - rnd(epoch > 6 ? 6 : (unsigned)epoch + 1);
            gate_release(g, e);
            model_release(m, e);
        } else if (what < 98)
            model_out(m, g, now);
        else if (rnd(10) == 0) {
            bool passing = rnd(3) == 0;
            passing ? gate_pass(g) : gate_hold(g);
            model_mode(m, passing);
        }
    }
    gate_pass(g);
    model_mode(m, true);
    while (m->left < m->sent)
        model_out(m, g, now);
    gate_stats(g, now, &st);
    assert_int_equal(st.out_frames, FRAMES);
    assert_int_equal(st.held_bytes, 0);
    gate_free(g);
    free(m);
}

static void test_schedules(void **state)
{
    (void)state;
    for (uint64_t s = 1; s <= 12; s++)
        schedule(s);
}

/* Network state */

static void learn_at(struct net_addresses *t, int family, const char *text, unsigned vlans, uint64_t now)
{
    static const unsigned vlan[2] = {7, 8};
    uint8_t ip[16];
    struct packet p;
    size_t len;

    inet_pton(family == 4 ? AF_INET : AF_INET6, text, ip);
    len = put_addressed(frame, family, station, ip, vlan, vlans);
    assert_true(packet_parse(&p, frame, len));
    net_addresses_learn(t, &p, now);
}

static void learn(struct net_addresses *t, int family, const char *text, unsigned vlans)
{
    learn_at(t, family, text, vlans, 1);
}

static void learn_number(struct net_addresses *t, unsigned i, uint64_t now)
{
    char ip[32];

    snprintf(ip, sizeof(ip), "10.0.0.%u", i);
    learn_at(t, 4, ip, 0, now);
}

/* The last octet of each; 0 where there is no address. */
static void expect_numbers(const struct net_addresses *t, const char *numbers)
{
    char text[200] = "";

    for (unsigned i = 0; i < t->count; i++)
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "%u ", t->entry[i].ip[3]);
    assert_string_equal(text, numbers);
}

/* What a takeover announces. */
static void test_net_addresses_learned(void **state)
{
    struct net_addresses t = {0};
    struct packet p;

    (void)state;
    memset(frame, 0, 64);
    memcpy(frame + 6, station, 6);
    put_be16(frame + 12, 0x88cc); /* says nothing about an IP address */
    assert_true(packet_parse(&p, frame, 64));
    net_addresses_learn(&t, &p, 1);
    expect_numbers(&t, "0 ");
    learn_number(&t, 1, 2); /* the same station, and more of it */
    expect_numbers(&t, "1 ");
    learn_number(&t, 2, 3);
    memset(frame, 0, 64);
    memcpy(frame + 6, station, 6);
    put_be16(frame + 12, 0x88cc);
    assert_true(packet_parse(&p, frame, 64));
    net_addresses_learn(&t, &p, 4); /* less is nothing new */
    learn_number(&t, 1, 5);
    net_addresses_learn(&t, &p, 6);
    expect_numbers(&t, "1 2 ");

    for (unsigned i = 3; i <= NET_ADDRESSES_MAX; i++)
        learn_number(&t, i, 10 + i);
    learn_number(&t, NET_ADDRESSES_MAX, 100);
    for (unsigned i = 1; i < NET_ADDRESSES_MAX; i++)
        learn_number(&t, i, 50 + (i * 5) % 16);
    expect_numbers(&t, "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 ");
    learn_number(&t, 200, 101); /* in place of those that said nothing for the longest time */
    learn_number(&t, 201, 102);
    expect_numbers(&t, "1 2 3 4 5 6 7 8 9 201 11 12 200 14 15 16 ");
}

static void some_addresses(struct net_addresses *t)
{
    *t = (struct net_addresses){0};
    learn(t, 4, "10.1.2.3", 0);
    learn(t, 6, "2001:db8::5", 1);
    learn(t, 6, "fe80::5", 2);
}

static void test_net_state_format(void **state)
{
    static const uint8_t golden[] = {
        0,    1, 0, 2, 0, 0, 0, 0, 4,    0, 2,   0,    0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0,
        10,   1, 2, 3, 0, 0, 0, 0, 0,    0, 0,   0,    0, 0, 0, 0, 6, 1, 2, 0, 0, 0, 0, 1,
        0x81, 0, 0, 7, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5,
    };
    struct net_addresses t = {0};
    struct buffer b = {0};
    uint8_t *data;

    (void)state;
    learn(&t, 4, "10.1.2.3", 0);
    learn(&t, 6, "2001:db8::5", 1);
    assert_int_equal(net_state_encode(&b, &t, 0), 0);
    assert_int_equal(b.len, sizeof(golden));
    assert_memory_equal(b.data, golden, sizeof(golden));

    /* R8: no allocation in later epochs */
    data = b.data;
    buffer_clear(&b);
    for (unsigned i = 0; i < 20; i++) {
        char ip[32];
        snprintf(ip, sizeof(ip), "10.0.0.%u", i);
        learn(&t, 4, ip, 0);
    }
    assert_int_equal(net_state_encode(&b, &t, 0), 0);
    assert_ptr_equal(b.data, data);
    buffer_free(&b);
}

static struct net_flow some_flow(void)
{
    return (struct net_flow){.family = 4,
                             .tags = 1,
                             .mac = {2, 0, 0, 0, 0, 1},
                             .peer_mac = {2, 0, 0, 0, 0, 2},
                             .tag = {0x81, 0, 0, 7},
                             .ip = {10, 1, 2, 3},
                             .peer_ip = {10, 1, 2, 4},
                             .port = 5432,
                             .peer_port = 40000,
                             .seq = 0x01020304,
                             .ack = 0x05060708};
}

static void test_net_state_decode(void **state)
{
    static const uint8_t golden[72] = {
        4, 1,  2, 0, 0, 0, 0, 1, 2, 0, 0,  0,  0,   2,  0, 0, 0x81, 0,  0, 7, 0, 0, 0,
        0, 10, 1, 2, 3, 0, 0, 0, 0, 0, 0,  0,  0,   0,  0, 0, 0,    10, 1, 2, 4, 0, 0,
        0, 0,  0, 0, 0, 0, 0, 0, 0, 0, 21, 56, 156, 64, 1, 2, 3,    4,  5, 6, 7, 8,
    };
    struct net_addresses t;
    struct net_state s = {0};
    struct net_flow flow = some_flow(), back;
    struct buffer b = {0};
    struct error err;

    (void)state;
    some_addresses(&t);
    assert_int_equal(net_state_encode(&b, &t, 2), 0);
    net_state_add_flow(&b, 0, &flow);
    flow.family = 6;
    net_state_add_flow(&b, 0, &flow);
    assert_memory_equal(b.data + 8 + 3 * 32, golden, 72);
    assert_int_equal(net_state_decode(&s, b.data, b.len, &err), 0);
    assert_int_equal(s.addresses.count, 3);
    assert_memory_equal(s.addresses.entry, t.entry, 3 * sizeof(t.entry[0]));
    assert_int_equal(s.flows, 2);
    net_state_flow(&s, 1, &back);
    assert_memory_equal(&back, &flow, offsetof(struct net_flow, port)); /* there is padding behind the ports */
    assert_int_equal(back.port, flow.port);
    assert_int_equal(back.peer_port, flow.peer_port);
    assert_int_equal(back.seq, flow.seq);
    assert_int_equal(back.ack, flow.ack);
    assert_int_equal(net_state_decode(&s, NULL, 0, &err), 0);
    assert_int_equal(s.flows, 0);
    s.flows = 9;
    for (size_t len = 1; len < b.len; len++) {
        assert_int_equal(net_state_decode(&s, b.data, len, &err), -1);
        assert_int_equal(s.flows, 9);
    }
    buffer_clear(&b);

    /* R3: as many as there may be are taken, and none at all */
    t = (struct net_addresses){0};
    assert_int_equal(net_state_encode(&b, &t, 0), 0);
    assert_int_equal(net_state_decode(&s, b.data, b.len, &err), 0);
    assert_int_equal(s.addresses.count + s.flows, 0);
    buffer_clear(&b);
    for (unsigned i = 0; i < NET_ADDRESSES_MAX; i++)
        learn_number(&t, i + 1, i);
    assert_int_equal(net_state_encode(&b, &t, NET_FLOWS_MAX), 0);
    for (unsigned i = 0; i < NET_FLOWS_MAX; i++)
        net_state_add_flow(&b, 0, &flow);
    assert_int_equal(net_state_decode(&s, b.data, b.len, &err), 0);
    assert_int_equal(s.addresses.count, NET_ADDRESSES_MAX);
    assert_int_equal(s.flows, NET_FLOWS_MAX);
    buffer_free(&b);
}

/* R10: one clear error each. */
static void test_net_state_bad(void **state)
{
    static const struct {
        size_t at;
        uint8_t value;
        const char *text;
    } bad[] = {
        {1, 2, "network state: version 2, this build knows 1"},
        {3, 17, "network state: 17 addresses, at most 16"},
        {3, 2, "network state: 176 octets, 2 addresses and 1 flows make 144"},
        {7, 2, "network state: 176 octets, 3 addresses and 2 flows make 248"},
        {6, 17, "network state: 4353 flows, at most 4096"},
        {8, 5, "network state: address 0 has family 5, not 0, 4 or 6"},
        {9, 3, "network state: address 0 has 3 VLAN tags, at most 2"},
        {10, 3, "network state: address 0 is not one that a station can have"},
        {24, 255, "network state: address 0 is not one that a station can have"},
        {49, 4, "network state: address 1 has a VLAN tag of type 0x8104"},
        {104, 0, "network state: flow 0 has family 0, not 4 or 6"},
        {105, 3, "network state: flow 0 has 3 VLAN tags, at most 2"},
        {112, 1, "network state: flow 0 is not between two stations"},
        {121, 1, "network state: flow 0 has a VLAN tag of type 0x8101"},
        {144, 0, "network state: flow 0 is not between two stations"},
    };
    struct net_addresses t;
    struct net_state u;
    struct net_flow flow = some_flow();
    struct buffer b = {0};
    struct error err;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        some_addresses(&t);
        buffer_clear(&b);
        assert_int_equal(net_state_encode(&b, &t, 1), 0);
        net_state_add_flow(&b, 0, &flow);
        b.data[bad[i].at] = bad[i].value;
        assert_int_equal(net_state_decode(&u, b.data, b.len, &err), -1);
        assert_string_equal(err.text, bad[i].text);
    }
    buffer_free(&b);
}

/* Announcements */

static void test_announce_arp(void **state)
{
    static const uint8_t golden[60] = {
        255, 255, 255, 255, 255, 255, 2, 0,  0, 0, 0, 1, 8, 6, 0, 1, 8, 0,  6, 4, 0,
        1,   2,   0,   0,   0,   0,   1, 10, 1, 2, 3, 0, 0, 0, 0, 0, 0, 10, 1, 2, 3,
    };
    struct net_addresses t;
    uint8_t f[ANNOUNCE_FRAME_MAX];

    (void)state;
    some_addresses(&t);
    assert_int_equal(announce_frame(&t.entry[0], 0, f), 60);
    assert_memory_equal(f, golden, 60);
    assert_int_equal(announce_frame(&t.entry[0], 1, f), 60);
    assert_int_equal(f[21], 2);
    assert_memory_equal(f + 32, station, 6);
    assert_int_equal(announce_frame(&t.entry[0], 2, f), 0);
}

static void test_announce_neighbour(void **state)
{
    static const uint8_t head[] = {
        0x33, 0x33, 0, 0,    0,    1,    2, 0, 0, 0, 0,  1,  0x81,
        0,    0,    7, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255,
    };
    struct net_addresses t;
    uint8_t f[ANNOUNCE_FRAME_MAX];
    const uint8_t *icmp = f + 18 + 40;
    uint32_t sum = 58 + 32;

    (void)state;
    some_addresses(&t);
    assert_int_equal(announce_frame(&t.entry[1], 0, f), 90);
    assert_memory_equal(f, head, sizeof(head));
    assert_int_equal(icmp[0], 136);
    assert_int_equal(icmp[4], 0x20);
    assert_memory_equal(icmp + 8, t.entry[1].ip, 16);
    assert_memory_equal(icmp + 24, "\2\1\2\0\0\0\0\1", 8);
    for (unsigned i = 8; i < 72; i += 2)
        sum += get_be16(f + 18 + i);
    assert_int_equal((sum & 0xffff) + (sum >> 16), 0xffff);
    assert_int_equal(announce_frame(&t.entry[1], 1, f), 0);
    assert_int_equal(announce_frame(&t.entry[2], 0, f), 94);
}

static void test_announce_mac(void **state)
{
    struct net_address a = {.mac = {2, 0, 0, 0, 0, 1}};
    uint8_t f[ANNOUNCE_FRAME_MAX];

    (void)state;
    assert_int_equal(announce_frame(&a, 0, f), 60);
    assert_memory_equal(f,
                        "\377\377\377\377\377\377\2\0\0\0\0\1\x80\x35\0\1\x8\0\6\4\0\3\2\0\0\0\0\1",
                        28);
    assert_int_equal(announce_frame(&a, 1, f), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_transcripts),        cmocka_unit_test(test_schedules),
        cmocka_unit_test(test_net_addresses_learned),
        cmocka_unit_test(test_net_state_format),   cmocka_unit_test(test_net_state_decode),
        cmocka_unit_test(test_net_state_bad),      cmocka_unit_test(test_announce_arp),
        cmocka_unit_test(test_announce_neighbour), cmocka_unit_test(test_announce_mac),
    };

    return cmocka_run_group_tests_name("gate", tests, NULL, NULL);
}
