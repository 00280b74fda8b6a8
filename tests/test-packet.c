/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is read from the headers of a frame (R3, R10).  Whose connection a TCP segment belongs to must never be guessed: a
 * fragment, or one that lies about a length, is TCP of no known connection.  Each frame is also cut at every place, in memory
 * of just that size.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "netbuf/packet.h"

#define MACS "ff ff ff ff ff ff 02 00 00 00 00 01 "
#define PORTS "04 d2 15 38 01 02 03 04 05 06 07 08 "   /* 1234 5432 seq ack */
#define SEGMENT PORTS "50 18 00 00 00 00 00 00 61 62 " /* PSH ACK, "ab" */
#define IP4 "00 07 00 00 40 06 00 00 0a 00 00 01 0a 00 00 02 "
#define IP4_OF(flags) "00 07 " flags " 40 06 00 00 0a 00 00 01 0a 00 00 02 "
#define IP6 "20 01 00 00 00 00 00 00 00 00 00 00 00 00 00 01 20 01 00 00 00 00 00 00 00 00 00 00 00 00 00 02 "
#define OPTIONS8(next) next " 00 01 04 00 00 00 00 "

static const struct {
    const char *what, *frame;
    unsigned family;
    enum packet_tcp tcp;
    unsigned data_len, dscp, tags;
} frames[] = {
    {"IPv4", MACS "08 00 45 00 00 2a " IP4 SEGMENT, 4, PACKET_TCP, 2, 0, 0},
    {"padding behind it", MACS "08 00 45 00 00 2a " IP4 SEGMENT "00 00 00 00", 4, PACKET_TCP, 2, 0, 0},
    {"a VLAN", MACS "81 00 00 05 08 00 45 00 00 2a " IP4 SEGMENT, 4, PACKET_TCP, 2, 0, 1},
    {"two VLANs", MACS "88 a8 00 05 81 00 00 06 08 00 45 00 00 2a " IP4 SEGMENT, 4, PACKET_TCP, 2, 0, 2},
    {"three VLANs", MACS "88 a8 00 05 81 00 00 06 81 00 00 07 08 00 45 00 00 2a " IP4 SEGMENT, 0, PACKET_NOT_TCP, 0, 0, 2},
    {"options of IPv4", MACS "08 00 46 00 00 2e " IP4 "01 01 01 01 " SEGMENT, 4, PACKET_TCP, 2, 0, 0},
    {"options of TCP", MACS "08 00 45 00 00 2e " IP4 PORTS "60 18 00 00 00 00 00 00 01 01 01 01 61 62", 4, PACKET_TCP, 2, 0, 0},
    {"no data", MACS "08 00 45 00 00 28 " IP4 PORTS "50 10 00 00 00 00 00 00", 4, PACKET_TCP, 0, 0, 0},
    {"don't fragment", MACS "08 00 45 00 00 2a " IP4_OF("40 00") SEGMENT, 4, PACKET_TCP, 2, 0, 0},
    {"first fragment", MACS "08 00 45 00 00 2a " IP4_OF("20 00") SEGMENT, 4, PACKET_TCP_UNPLACED, 0, 0, 0},
    {"a later fragment", MACS "08 00 45 00 00 2a " IP4_OF("00 b9") SEGMENT, 4, PACKET_TCP_UNPLACED, 0, 0, 0},
    {"DSCP 46, ECN", MACS "08 00 45 bb 00 2a " IP4 SEGMENT, 4, PACKET_TCP, 2, 46, 0},
    {"version 5", MACS "08 00 55 00 00 2a " IP4 SEGMENT, 0, PACKET_NOT_TCP, 0, 0, 0},
    {"IPv4 header of 16", MACS "08 00 44 00 00 2a " IP4 SEGMENT, 4, PACKET_TCP_UNPLACED, 0, 0, 0},
    {"total less than the header", MACS "08 00 45 00 00 13 " IP4 SEGMENT, 4, PACKET_TCP_UNPLACED, 0, 0, 0},
    {"total is the header", MACS "08 00 45 00 00 14 " IP4 SEGMENT, 4, PACKET_TCP_UNPLACED, 0, 0, 0},
    {"more than there is", MACS "08 00 45 00 00 2b " IP4 SEGMENT, 4, PACKET_TCP_UNPLACED, 0, 0, 0},
    {"TCP header of 16", MACS "08 00 45 00 00 2a " IP4 PORTS "40 18 00 00 00 00 00 00 61 62", 4, PACKET_TCP_UNPLACED, 0, 0, 0},
    {"TCP header of 24 in 22", MACS "08 00 45 00 00 2a " IP4 PORTS "60 18 00 00 00 00 00 00 61 62", 4, PACKET_TCP_UNPLACED, 0, 0, 0},
    {"UDP", MACS "08 00 45 00 00 2a 00 07 00 00 40 11 00 00 0a 00 00 01 0a 00 00 02 " SEGMENT, 4, PACKET_NOT_TCP, 0, 0, 0},

    {"a header alone", MACS "08 00 45 00 00 14 00 07 00 00 40 fd 00 00 0a 00 00 01 0a 00 00 02", 4, PACKET_NOT_TCP, 0, 0, 0},

    {"IPv6", MACS "86 dd 60 00 00 00 00 16 06 40 " IP6 SEGMENT, 6, PACKET_TCP, 2, 0, 0},
    {"padding behind IPv6", MACS "86 dd 60 00 00 00 00 16 06 40 " IP6 SEGMENT "00 00", 6, PACKET_TCP, 2, 0, 0},
    {"DSCP 46 of IPv6", MACS "86 dd 6b b0 00 00 00 16 06 40 " IP6 SEGMENT, 6, PACKET_TCP, 2, 46, 0},
    {"version 7", MACS "86 dd 70 00 00 00 00 16 06 40 " IP6 SEGMENT, 0, PACKET_NOT_TCP, 0, 0, 0},
    {"more than IPv6 has", MACS "86 dd 60 00 00 00 00 17 06 40 " IP6 SEGMENT, 6, PACKET_TCP_UNPLACED, 0, 0, 0},
    {"less than a TCP header", MACS "86 dd 60 00 00 00 00 13 06 40 " IP6 SEGMENT, 6, PACKET_TCP_UNPLACED, 0, 0, 0},
    {"hop by hop", MACS "86 dd 60 00 00 00 00 1e 00 40 " IP6 OPTIONS8("06") SEGMENT, 6, PACKET_TCP, 2, 0, 0},
    {"routing, destination", MACS "86 dd 60 00 00 00 00 26 2b 40 " IP6 OPTIONS8("3c") OPTIONS8("06") SEGMENT, 6, PACKET_TCP, 2, 0, 0},
    {"an extension of 16", MACS "86 dd 60 00 00 00 00 26 3c 40 " IP6 "06 01 01 0c 00 00 00 00 00 00 00 00 00 00 00 00 " SEGMENT,
     6, PACKET_TCP, 2, 0, 0},
    {"an extension beyond the end", MACS "86 dd 60 00 00 00 00 1e 3c 40 " IP6 "06 ff 01 04 00 00 00 00 " SEGMENT,
     6, PACKET_TCP_UNPLACED, 0, 0, 0},
    {"an extension beyond the payload", MACS "86 dd 60 00 00 00 00 06 3c 40 " IP6 OPTIONS8("06") SEGMENT, 6, PACKET_TCP_UNPLACED, 0, 0, 0},
    {"a fragment of TCP", MACS "86 dd 60 00 00 00 00 1e 2c 40 " IP6 "06 00 00 01 00 00 00 09 " SEGMENT, 6, PACKET_TCP_UNPLACED, 0, 0, 0},
    {"a fragment of UDP", MACS "86 dd 60 00 00 00 00 1e 2c 40 " IP6 "11 00 00 01 00 00 00 09 " SEGMENT, 6, PACKET_NOT_TCP, 0, 0, 0},
    {"eight extensions", MACS "86 dd 60 00 00 00 00 56 3c 40 " IP6 OPTIONS8("3c") OPTIONS8("3c") OPTIONS8("3c") OPTIONS8("3c")
     OPTIONS8("3c") OPTIONS8("3c") OPTIONS8("3c") OPTIONS8("06") SEGMENT, 6, PACKET_TCP, 2, 0, 0},
    {"nine extensions", MACS "86 dd 60 00 00 00 00 5e 3c 40 " IP6 OPTIONS8("3c") OPTIONS8("3c") OPTIONS8("3c") OPTIONS8("3c")
     OPTIONS8("3c") OPTIONS8("3c") OPTIONS8("3c") OPTIONS8("3c") OPTIONS8("06") SEGMENT, 6, PACKET_TCP_UNPLACED, 0, 0, 0},
    {"UDP behind an extension", MACS "86 dd 60 00 00 00 00 1e 00 40 " IP6 OPTIONS8("11") SEGMENT, 6, PACKET_NOT_TCP, 0, 0, 0},

    {"a header of IPv6 alone", MACS "86 dd 60 00 00 00 00 00 3b 40 " IP6, 6, PACKET_NOT_TCP, 0, 0, 0},

    {"ARP", MACS "08 06 00 01 08 00 06 04 00 01 02 00 00 00 00 01 0a 00 00 01 00 00 00 00 00 00 0a 00 00 02", 4, PACKET_NOT_TCP, 0, 0, 0},
    {"ARP for another", MACS "08 06 00 01 08 00 06 04 00 01 02 00 00 00 00 09 0a 00 00 01 00 00 00 00 00 00 0a 00 00 02",
     0, PACKET_NOT_TCP, 0, 0, 0},
    {"ARP not of IPv4", MACS "08 06 00 01 86 dd 06 04 00 01 02 00 00 00 00 01 0a 00 00 01 00 00 00 00 00 00 0a 00 00 02",
     0, PACKET_NOT_TCP, 0, 0, 0},
    {"something else", MACS "88 cc 45 00 00 2a " IP4 SEGMENT, 0, PACKET_NOT_TCP, 0, 0, 0},
};

static size_t octets_of(const char *text, uint8_t out[256])
{
    size_t n = 0;
    char *end;

    for (unsigned long v; v = strtoul(text, &end, 16), end != text; text = end)
        out[n++] = (uint8_t)v;
    return n;
}

static void test_frames(void **state)
{
    static const uint8_t ends[2][4] = {{10, 0, 0, 1}, {10, 0, 0, 2}};

    (void)state;
    for (size_t i = 0; i < sizeof(frames) / sizeof(frames[0]); i++) {
        uint8_t frame[256];
        size_t len = octets_of(frames[i].frame, frame);
        struct packet p;

        assert_true(packet_parse(&p, frame, len));
        if (p.family != frames[i].family || p.tcp != frames[i].tcp || p.dscp != frames[i].dscp || p.tags != frames[i].tags)
            fail_msg("%s: family %u, TCP %u, DSCP %u, tags %u", frames[i].what, p.family, p.tcp, p.dscp, p.tags);
        if (p.family == 4)
            assert_true(memcmp(p.src, ends[0], 4) == 0 && memcmp(p.dst, ends[1], 4) == 0);
        else if (p.family == 6)
            assert_true(p.src[0] == 0x20 && p.src[15] == 1 && p.dst[0] == 0x20 && p.dst[15] == 2);
        else
            assert_true(!p.src && !p.dst);
        if (p.tcp != PACKET_TCP)
            continue;
        if (p.sport != 1234 || p.dport != 5432 || p.seq != 0x01020304 || p.ack != 0x05060708 || (p.flags | 8) != 0x18 ||
            p.data_len != frames[i].data_len || memcmp(p.data, "ab", p.data_len) != 0)
            fail_msg("%s: ports %u %u, seq %x, ack %x, flags %x, %zu octets", frames[i].what, p.sport, p.dport, p.seq, p.ack,
                     p.flags, p.data_len);
    }
}

/* A frame that was cut is never a segment with a place; but for padding that was cut off. */
static void test_cut(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(frames) / sizeof(frames[0]); i++) {
        uint8_t frame[256];
        size_t len = octets_of(frames[i].frame, frame);

        for (size_t cut = 0; cut < len; cut++) {
            uint8_t *part = malloc(cut + !cut);
            struct packet p;

            memcpy(part, frame, cut);
            if (packet_parse(&p, part, cut) != (cut >= ETH_HEADER))
                fail_msg("%s, cut at %zu: a frame?", frames[i].what, cut);
            if (cut >= ETH_HEADER && p.tcp == PACKET_TCP && !strstr(frames[i].what, "padding"))
                fail_msg("%s, cut at %zu: a segment", frames[i].what, cut);
            if (cut >= ETH_HEADER && p.tcp == PACKET_TCP)
                assert_true(p.data + p.data_len <= part + cut);
            free(part);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frames),
        cmocka_unit_test(test_cut),
    };

    return cmocka_run_group_tests_name("packet", tests, NULL, NULL);
}
