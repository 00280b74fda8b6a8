/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Input: network state (first octet even), or a schedule for the gate with frames made from the
 * input (odd). The gate must take any frame; what it lets out must be what went in, in order (R6),
 * and nothing that no release covers (R1).
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "netbuf/announce.h"
#include "netbuf/gate.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void check(int ok)
{
    if (!ok)
        abort();
}

static void fuzz_net_state(const uint8_t *data, size_t len)
{
    struct net_state t, u;
    struct net_flow flow;
    struct buffer b = {0};
    uint8_t frame[ANNOUNCE_FRAME_MAX];

    if (len == 0 || net_state_decode(&t, data, len, NULL) < 0)
        return;
    for (unsigned i = 0; i < t.addresses.count; i++)
        for (unsigned k = 0; k < ANNOUNCE_PER_ADDRESS; k++)
            announce_frame(&t.addresses.entry[i], k, frame);
    check(net_state_encode(&b, &t.addresses, t.flows) == 0);
    for (uint32_t i = 0; i < t.flows; i++) {
        net_state_flow(&t, i, &flow);
        net_state_add_flow(&b, 0, &flow);
    }
    check(net_state_decode(&u, b.data, b.len, NULL) == 0);
    check(b.len == len && u.flows == t.flows && u.addresses.count == t.addresses.count);
    buffer_free(&b);
}

struct sent {
    const uint8_t *data;
    size_t len;
};

/* How many frames went into the queue; one that may pass leaves at once. */
static unsigned fuzz_send(struct gate *g, const uint8_t *data, size_t len, uint64_t now,
                          struct sent *sent)
{
    enum gate_verdict verdict = gate_send(g, data, len, now);
    struct iovec v;

    if (verdict == GATE_PASSED) {
        check(gate_peek(g, &v, 1) == 1 && v.iov_len == len && memcmp(v.iov_base, data, len) == 0);
        gate_pop(g, 1, now);
    }
    if (verdict != GATE_HELD)
        return 0;
    *sent = (struct sent){data, len};
    return 1;
}

static void fuzz_gate(const uint8_t *data, size_t len, bool flows)
{
    static struct sent sent[4096];
    struct gate *g = gate_new(GATE_QUEUE_MIN, flows ? 8 : 0);
    unsigned in = 0, out = 0, may = 0, closed = 0;
    uint64_t epoch = 0, now = 1;
    struct buffer b = {0};
    struct net_state t;
    struct iovec v;

    for (uint16_t port = 0; flows && port < FLOWS_SERVICES_MAX; port++)
        check(gate_add_service(g, port, port % 2 ? &parser_mysql : &parser_pgsql) == 0);
    if (flows) {
        gate_set_mark(g, 46);
        gate_linger(g, 2);
    }
    while (len >= 2 && in < 4096) {
        unsigned what = data[0] % 8, n = data[1];

        data += 2;
        len -= 2;
        if (what == 6) {
            buffer_clear(&b);
            check(gate_barrier(g, ++epoch, &b) == 0);
            check(net_state_decode(&t, b.data, b.len, NULL) == 0);
            closed = in;
        } else if (what == 7) {
            gate_release(g, epoch);
            may = closed;
        } else if (what == 5) {
            for (; n && gate_peek(g, &v, 1) == 1; n--) {
                check(out < may && v.iov_len == sent[out].len);
                check(memcmp(v.iov_base, sent[out++].data, v.iov_len) == 0);
                gate_pop(g, 1, now);
            }
        } else {
            n = n > len ? (unsigned)len : n;
            if (flows && what == 4)
                gate_receive(g, data, n);
            else
                in += fuzz_send(g, data, n, now, sent + in);
            data += n;
            len -= n;
        }
        now++;
    }
    buffer_free(&b);
    gate_free(g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (len == 0)
        return 0;
    if (data[0] & 1)
        fuzz_gate(data + 1, len - 1, data[0] & 2);
    else
        fuzz_net_state(data + 1, len - 1);
    return 0;
}
