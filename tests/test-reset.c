/* SPDX-License-Identifier: GPL-2.0-or-later */
/* R3, R6, R7, R10: the connections that an activated checkpoint lists end on both sides, and no
 * other does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "netbuf/reset.h"

#define MS UINT64_C(1000000)
#define START (UINT64_C(7) * 1000 * MS)
#define SEQ 0xfffffff0u /* of the guest as listed: about to wrap */
#define ACK 5000u

static const uint8_t guest_mac[6] = {2, 0, 0, 0, 0, 1}, client_mac[6] = {2, 0, 0, 0, 0, 2};

/* Flow k of the tests: VLAN tags, family and ports differ. */
static struct net_flow flow(unsigned k)
{
    struct net_flow f = {.family = k % 2 ? 6 : 4,
                         .tags = (uint8_t)(k / 2 % 3),
                         .port = 5432,
                         .peer_port = (uint16_t)(40000 + k),
                         .seq = SEQ + k,
                         .ack = ACK + k};

    memcpy(f.mac, guest_mac, 6);
    memcpy(f.peer_mac, client_mac, 6);
    for (unsigned t = 0; t < f.tags; t++) {
        put_be16(f.tag + t * 4, t + 1 < f.tags ? ETHERTYPE_QINQ_ : ETHERTYPE_VLAN_);
        put_be16(f.tag + t * 4 + 2, (uint16_t)(100 + t));
    }
    if (f.family == 4) {
        memcpy(f.ip, (uint8_t[]){10, 0, 0, 1}, 4);
        memcpy(f.peer_ip, (uint8_t[]){10, 0, 0, 2}, 4);
    } else {
        memcpy(f.ip, (uint8_t[16]){0xfd, [15] = 1}, 16);
        memcpy(f.peer_ip, (uint8_t[16]){0xfd, [15] = 2}, 16);
    }
    return f;
}

/* What says nothing about a flow: priority bits, and what is not used of tags and addresses. */
static void dirty(struct net_flow *f)
{
    for (unsigned t = 0; t < f->tags; t++)
        f->tag[t * 4 + 2] |= 0xe0;
    memset(f->tag + f->tags * 4, 0xee, sizeof(f->tag) - f->tags * 4u);
    if (f->family == 4) {
        memset(f->ip + 4, 0xee, 12);
        memset(f->peer_ip + 4, 0xee, 12);
    }
}

static struct reset *listed(unsigned from, unsigned to)
{
    struct net_addresses none = {0};
    struct buffer b = {0};
    struct net_state s;
    struct error err;
    struct reset *r;

    assert_int_equal(net_state_encode(&b, &none, to - from), 0);
    for (unsigned k = to; k-- > from;) {
        struct net_flow f = flow(k);
        dirty(&f);
        net_state_add_flow(&b, 0, &f);
    }
    assert_int_equal(net_state_decode(&s, b.data, b.len, &err), 0);
    r = reset_new(&s, START);
    assert_non_null(r);
    buffer_free(&b);
    return r;
}

/* A packet of the flow, from one side; the priority bits of a VLAN tag are not the flow's. */
static size_t packet(uint8_t *frame, const struct net_flow *f, enum reset_side from, uint8_t flags,
                     uint32_t seq, uint32_t ack, size_t data)
{
    bool guest = from == RESET_GUEST;
    size_t at = 12 + f->tags * 4u, n = f->family == 4 ? 4 : 16, l4 = f->family == 4 ? 20 : 40;
    uint8_t *ip, *tcp;

    memset(frame, 0, 200);
    memcpy(frame, guest ? f->peer_mac : f->mac, 6);
    memcpy(frame + 6, guest ? f->mac : f->peer_mac, 6);
    memcpy(frame + 12, f->tag, f->tags * 4u);
    for (unsigned t = 0; t < f->tags; t++)
        frame[12 + t * 4 + 2] |= 0xa0;
    put_be16(frame + at, f->family == 4 ? ETHERTYPE_IPV4_ : ETHERTYPE_IPV6_);
    ip = frame + at + 2;
    tcp = ip + l4;
    if (f->family == 4) {
        ip[0] = 0x45;
        put_be16(ip + 2, (uint16_t)(40 + data));
        ip[9] = 6;
    } else {
        ip[0] = 0x60;
        put_be16(ip + 4, (uint16_t)(20 + data));
        ip[6] = 6;
    }
    memcpy(ip + (f->family == 4 ? 12 : 8), guest ? f->ip : f->peer_ip, n);
    memcpy(ip + (f->family == 4 ? 16 : 24), guest ? f->peer_ip : f->ip, n);
    put_be16(tcp, guest ? f->port : f->peer_port);
    put_be16(tcp + 2, guest ? f->peer_port : f->port);
    put_be32(tcp + 4, seq);
    put_be32(tcp + 8, ack);
    tcp[12] = 0x50;
    tcp[13] = flags;
    return (size_t)(tcp + 20 + data - frame);
}

/* Ones' complement sum over what has its checksum inside: 0xffff when that is right. */
static uint32_t sum(uint32_t s, const uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i += 2)
        s += get_be16(p + i);
    while (s >> 16)
        s = (s & 0xffff) + (s >> 16);
    return s;
}

/* The frame is a whole and right segment of f to that side. */
static struct packet checked(const struct reset_frame *r, const struct net_flow *f,
                             enum reset_side to)
{
    bool guest = to == RESET_GUEST;
    size_t n = f->family == 4 ? 4 : 16, at = ETH_HEADER + f->tags * 4u;
    struct packet p;

    assert_int_equal(r->to, to);
    assert_true(r->len >= ETH_MIN && r->len <= RESET_FRAME_MAX);
    assert_true(packet_parse(&p, r->data, r->len));
    assert_int_equal(p.tcp, PACKET_TCP);
    assert_int_equal(p.family, f->family);
    assert_int_equal(p.tags, f->tags);
    assert_memory_equal(r->data + 12, f->tag, f->tags * 4u);
    assert_memory_equal(p.dst_mac, guest ? f->mac : f->peer_mac, 6);
    assert_memory_equal(p.src_mac, guest ? f->peer_mac : f->mac, 6);
    assert_memory_equal(p.src, guest ? f->peer_ip : f->ip, n);
    assert_memory_equal(p.dst, guest ? f->ip : f->peer_ip, n);
    assert_int_equal(p.sport, guest ? f->peer_port : f->port);
    assert_int_equal(p.dport, guest ? f->port : f->peer_port);
    assert_int_equal(p.data_len, 0);
    assert_int_equal(r->data[at + (f->family == 4 ? 8 : 7)], 64); /* hops */
    if (f->family == 4)
        assert_int_equal(sum(0, r->data + at, 20), 0xffff);
    assert_int_equal(sum(sum(sum(6 + 20, p.src, n), p.dst, n), p.data - 20, 20), 0xffff);
    return p;
}

/* R3: any packet of a listed flow is taken, and answered by a RST built from its own ack number. */
static void test_r3_every_packet_is_answered(void **state)
{
    struct reset *r = listed(0, 12);
    struct reset_frame answer;
    uint8_t frame[300];

    (void)state;
    for (unsigned k = 0; k < 12; k++)
        for (unsigned side = 0; side < 2; side++) {
            struct net_flow f = flow(k);
            size_t len = packet(frame, &f, side, TCP_ACK, 77, 0xfffffffe + k, k * 5);
            struct packet p;

            assert_true(reset_take(r, side, frame, len, &answer));
            p = checked(&answer, &f, side);
            assert_int_equal(p.flags, TCP_RST);
            assert_int_equal(p.seq, 0xfffffffe + k);
        }
    reset_free(r);
}

/* R3: both sides are poked at once with RST at the listed number and a keep-alive probe below it,
 * again and again until they answer with RST. */
static void test_r3_poke(void **state)
{
    static const unsigned at_ms[] = {0, 50, 150, 350, 750};
    struct reset *r = listed(0, 6);
    struct reset_frame poke, answer;
    uint64_t now = START;
    uint8_t frame[300];

    (void)state;
    for (unsigned round = 0; round < 5; round++) {
        assert_int_equal(reset_due(r, now), START + at_ms[round] * MS);
        now = START + at_ms[round] * MS;
        assert_false(reset_poke(r, now - 1, &poke));
        for (unsigned k = 0; k < 6; k++)
            for (unsigned i = 0; i < 4; i++) {
                struct net_flow f = flow(k);
                enum reset_side to = i < 2 ? RESET_CLIENT : RESET_GUEST;
                uint32_t seq = i < 2 ? f.seq : f.ack, ack = i < 2 ? f.ack : f.seq;
                struct packet p;

                if (round == 2 && k == 3 && to == RESET_GUEST) {
                    if (i == 2)
                        assert_true(reset_take(r, RESET_GUEST, frame,
                                               packet(frame, &f, RESET_GUEST, TCP_RST, 1, 1, 0),
                                               &answer));
                    assert_int_equal(answer.len, 0);
                }
                if (round >= 2 && k == 3 && to == RESET_GUEST)
                    continue;
                assert_true(reset_poke(r, now, &poke));
                assert_true(reset_poke(r, now, &poke));
                p = checked(&poke, &f, to);
                assert_int_equal(p.flags, i % 2 ? TCP_ACK : TCP_RST);
                assert_int_equal(p.seq, i % 2 ? seq - 1 : seq);
                if (i % 2)
                    assert_int_equal(p.ack, ack);
                reset_poked(r);
            }
        assert_false(reset_poke(r, now, &poke));
    }
    reset_free(r);
}

/* R6: what is not listed passes untouched: another port, side, address, tag or protocol. */
static void test_r6_others_pass(void **state)
{
    struct reset *r = listed(0, 6);
    struct reset_frame answer;
    uint8_t frame[300], copy[300];

    (void)state;
    for (unsigned k = 0; k < 6; k++)
        for (unsigned what = 0; what < 7; what++)
            for (unsigned side = 0; side < 2; side++) {
                struct net_flow f = flow(k);
                size_t len;

                f.peer_port = (uint16_t)(f.peer_port + (what == 0) * 100);
                f.port = (uint16_t)(f.port + (what == 1));
                f.ip[3] ^= what == 2;
                f.peer_ip[3] ^= what == 3;
                if (what == 4 && f.tags)
                    f.tag[3] ^= 1;
                else if (what == 4)
                    f.family = 10 - f.family;
                len = packet(frame, &f, what == 5 ? 1 - side : side, TCP_ACK, 1, 2, 3);
                if (what == 6)
                    frame[ETH_HEADER + f.tags * 4u + (f.family == 4 ? 9 : 6)] = 17;
                memcpy(copy, frame, len);
                assert_false(reset_take(r, side, frame, len, &answer));
                assert_memory_equal(frame, copy, len);
                assert_int_equal(answer.len, 0);
            }
    reset_free(r);
}

/* R3: a fragment from the guest between two listed stations does not get out; from a client it may
 * come in. */
static void test_r3_fragments(void **state)
{
    struct reset *r = listed(0, 1);
    struct reset_frame answer;
    struct net_flow f = flow(0);
    uint8_t frame[300];
    size_t len = packet(frame, &f, RESET_GUEST, TCP_ACK, 1, 2, 3);

    (void)state;
    frame[ETH_HEADER + 7] = 1;
    assert_true(reset_take(r, RESET_GUEST, frame, len, &answer));
    frame[ETH_HEADER + 19] = 99;
    assert_false(reset_take(r, RESET_GUEST, frame, len, &answer));
    len = packet(frame, &f, RESET_CLIENT, TCP_ACK, 1, 2, 3);
    frame[ETH_HEADER + 7] = 1;
    assert_false(reset_take(r, RESET_CLIENT, frame, len, &answer));
    reset_free(r);
}

/* R7: never two: a new connection from the same client port begins only when the guest's side of
 * the old one is gone. */
static void test_r7_new_connection(void **state)
{
    struct reset *r = listed(0, 2);
    struct net_flow f = flow(1);
    struct reset_frame answer;
    uint8_t syn[300], frame[300];
    size_t syn_len = packet(syn, &f, RESET_CLIENT, TCP_SYN, 1, 0, 0), len;
    struct packet p;

    (void)state;
    assert_true(reset_take(r, RESET_CLIENT, syn, syn_len, &answer));
    p = checked(&answer, &f, RESET_GUEST);
    assert_int_equal(p.flags, TCP_ACK);
    assert_int_equal(p.seq, f.ack - 1);
    len = packet(frame, &f, RESET_GUEST, TCP_ACK, f.seq, 1234, 0);
    assert_true(reset_take(r, RESET_GUEST, frame, len, &answer));
    assert_int_equal(checked(&answer, &f, RESET_GUEST).seq, 1234);
    len = packet(frame, &f, RESET_GUEST, TCP_RST, f.seq, 0, 0);
    assert_true(reset_take(r, RESET_GUEST, frame, len, &answer));
    assert_int_equal(answer.len, 0);
    assert_false(reset_take(r, RESET_CLIENT, syn, syn_len, &answer));
    assert_false(reset_take(r, RESET_GUEST, frame, len, &answer));
    reset_free(r);
}

/* R9: the table ends when both sides of all are gone, or after its time. */
static void test_r9_end(void **state)
{
    struct reset *r = listed(0, 3);
    struct reset_frame answer;
    uint8_t frame[300];

    (void)state;
    assert_true(reset_due(r, START + RESET_FOR_NS - 1) != UINT64_MAX);
    assert_true(reset_due(r, START + RESET_FOR_NS) == UINT64_MAX);
    for (unsigned k = 0; k < 3; k++)
        for (unsigned side = 0; side < 2; side++) {
            struct net_flow f = flow(k);
            assert_true(reset_due(r, START) != UINT64_MAX);
            for (unsigned again = 0; again < 1 + (side == 0); again++)
                assert_true(reset_take(
                    r, side, frame, packet(frame, &f, side, TCP_RST, 1, 2, 0), &answer));
        }
    assert_true(reset_due(r, START) == UINT64_MAX);
    reset_free(r);
}

/* R10: cut off anywhere, with any octet changed: no crash, and no answer of a wrong size. */
static void test_r10_bad_frames(void **state)
{
    struct reset *r = listed(0, 12);
    struct reset_frame answer;

    (void)state;
    for (unsigned k = 0; k < 12; k++)
        for (unsigned side = 0; side < 2; side++) {
            struct net_flow f = flow(k);
            uint8_t frame[300], *cut;
            size_t len = packet(frame, &f, side, TCP_ACK, 1, 2, 0);

            for (size_t n = 0; n < len; n++) {
                cut = malloc(n + 1);
                memcpy(cut, frame, n);
                assert_true(!reset_take(r, side, cut, n, &answer) || answer.len == 0);
                free(cut);
                cut = malloc(len);
                memcpy(cut, frame, len);
                for (unsigned v = 0; v < 256; v++) {
                    cut[n] = (uint8_t)v;
                    if (n != len - 7) /* the flags: RST ends it */
                        reset_take(r, side, cut, len, &answer);
                    assert_true(answer.len <= RESET_FRAME_MAX);
                }
                free(cut);
            }
        }
    reset_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_r3_every_packet_is_answered),
        cmocka_unit_test(test_r3_poke),
        cmocka_unit_test(test_r6_others_pass),
        cmocka_unit_test(test_r3_fragments),
        cmocka_unit_test(test_r7_new_connection),
        cmocka_unit_test(test_r9_end),
        cmocka_unit_test(test_r10_bad_frames),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
