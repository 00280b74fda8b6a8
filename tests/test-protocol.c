/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Each record as docs/remus-protocol.pod draws it, and nothing else (R10). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/protocol.h"

static const struct proto_hello hello = {
    .version_min = 1,
    .version_max = 3,
    .features = UINT64_C(0x0102030405060708),
    .required = UINT64_C(0x1112131415161718),
    .session = UINT64_C(0x2122232425262728),
    .flags = HELLO_RESYNC,
    .pages = 32768,
    .page_size = 4096,
    .heartbeat_ms = 20,
    .timeout_ms = 200,
    .vm = "db1",
    .platform = "qemu",
    .profile = "qemu 7.2 microvm",
};

/* Runs a decoder on every proper beginning, in memory of exactly that size so that ASan sees a read behind it. */
#define REFUSES_TRUNCATION(get, msg, body, len)                                                    \
    do {                                                                                           \
        for (size_t cut = 0; cut < (len); cut++) {                                                 \
            uint8_t *part = malloc(cut + !cut);                                                    \
            struct error cut_err = {""};                                                           \
            memcpy(part, body, cut);                                                               \
            assert_int_equal(get(msg, part, cut, &cut_err), -1);                                   \
            assert_true(cut_err.text[0]);                                                          \
            free(part);                                                                            \
        }                                                                                          \
    } while (0)

static void header_as_drawn(void **state)
{
    static const uint8_t drawn[PROTO_HEADER_LEN] = {0, 5, 0x19, 0x68, 0, 0, 0x10, 0x20, 1, 2, 3, 4,
                                                    5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    struct proto_header h = {5, 0x1020, UINT64_C(0x0102030405060708), UINT64_C(0x090a0b0c0d0e0f10)}, got;
    uint8_t out[PROTO_HEADER_LEN];

    (void)state;
    proto_put_header(out, &h);
    assert_memory_equal(out, drawn, sizeof(drawn));
    assert_int_equal(proto_get_header(&got, out, NULL), 0);
    assert_true(got.type == h.type && got.length == h.length && got.epoch == h.epoch &&
                got.checksum == h.checksum);
}

static uint32_t maximum(unsigned type)
{
    bool large = type == PROTO_PAGES || type == PROTO_STATE || type == PROTO_NET || type == PROTO_DISK || type == PROTO_BLOCKS ||
                 type == PROTO_MACHINE;

    return large ? 2 * 1024 * 1024 : type == PROTO_PROBE ? 65536 : 1024;
}

static void r10_lengths_over_the_maximum_refused(void **state)
{
    uint8_t out[PROTO_HEADER_LEN];
    struct proto_header got;
    struct error err;

    (void)state;
    for (unsigned type = 1; type <= PROTO_TYPE_MAX; type++) {
        const uint32_t over[] = {maximum(type) + 1, 1u << 31, UINT32_MAX};
        struct proto_header h = {.type = (uint16_t)type, .length = maximum(type)};

        proto_put_header(out, &h);
        assert_int_equal(proto_get_header(&got, out, &err), 0);
        for (size_t i = 0; i < sizeof(over) / sizeof(*over); i++) {
            h.length = over[i];
            proto_put_header(out, &h);
            assert_int_equal(proto_get_header(&got, out, &err), -1);
            assert_non_null(strstr(err.text, proto_type_name(type)));
        }
    }
}

static void r10_unknown_types_refused(void **state)
{
    const unsigned types[] = {0, PROTO_TYPE_MAX + 1, 0x100 + PROTO_PAGES, UINT16_MAX};
    uint8_t out[PROTO_HEADER_LEN];
    struct proto_header got;
    struct error err;

    (void)state;
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++) {
        proto_put_header(out, &(struct proto_header){.type = (uint16_t)types[i]});
        assert_int_equal(proto_get_header(&got, out, &err), -1);
        assert_string_equal(proto_type_name(types[i]), "unknown");
    }
}

static void hello_as_drawn(void **state)
{
    static const uint8_t drawn[] =
        "remusd\r\n"
        "\0\1\0\3"
        "\1\2\3\4\5\6\7\10"
        "\x11\x12\x13\x14\x15\x16\x17\x18"
        "\x21\x22\x23\x24\x25\x26\x27\x28"
        "\0\0\0\0\0\0\x80\0"
        "\0\0\x10\0"
        "\0\0\0\x14"
        "\0\0\0\xc8"
        "\0\0\0\1"
        "\0\0\0\0\0\0\0\0"
        "\3db1"
        "\4qemu"
        "\x10qemu 7.2 microvm";
    uint8_t out[PROTO_SMALL_MAX];
    struct proto_hello got;

    (void)state;
    assert_int_equal(proto_put_hello(out, &hello), sizeof(drawn) - 1);
    assert_memory_equal(out, drawn, sizeof(drawn) - 1);
    memset(&got, 0, sizeof(got));
    assert_int_equal(proto_get_hello(&got, drawn, sizeof(drawn) - 1, NULL), 0);
    assert_int_equal(proto_put_hello(out, &got), sizeof(drawn) - 1);
    assert_memory_equal(out, drawn, sizeof(drawn) - 1);
}

/* A later version appends fields: this one must be able to answer it, if only with a refusal. */
static void hello_may_grow(void **state)
{
    uint8_t out[PROTO_SMALL_MAX];
    size_t len = proto_put_hello(out, &hello);
    struct proto_hello got;

    (void)state;
    memset(out + len, 0xab, sizeof(out) - len);
    assert_int_equal(proto_get_hello(&got, out, sizeof(out), NULL), 0);
    assert_string_equal(got.profile, hello.profile);
}

static void disks(void **state)
{
    static const uint8_t drawn[] = "\0\0\0\0\0\0\0\5"
                                   "\0\0\0\0\0\1\0\0"
                                   "\1\2\3\4\5\6\7\10";
    struct proto_disk_end end = {5, 65536, UINT64_C(0x0102030405060708)}, got_end;
    struct proto_compared checked = {5, 2, {{0, 4096, 0}}}, got_checked;
    uint64_t generations[] = {0, 7}, got[2];
    struct proto_hello m = hello, got_hello;
    uint8_t out[PROTO_SMALL_MAX];
    struct error err;
    size_t len;

    (void)state;
    assert_int_equal(proto_put_disk_end(out, &end), 24);
    assert_memory_equal(out, drawn, 24);
    assert_int_equal(proto_get_disk_end(&got_end, out, 24, NULL), 0);
    assert_memory_equal(&got_end, &end, sizeof(end));
    REFUSES_TRUNCATION(proto_get_disk_end, &got_end, out, 24);
    assert_int_equal(proto_get_disk_end(&got_end, out, 25, &err), -1);
    memset(out, 0, 8);
    assert_int_equal(proto_get_disk_end(&got_end, out, 24, &err), -1);

    assert_int_equal(proto_put_disks(out, generations, 2), 16);
    assert_int_equal(proto_get_disks(got, 2, out, 16, &err), 0);
    assert_memory_equal(got, generations, sizeof(got));
    assert_int_equal(proto_get_disks(got, 2, out, 15, &err), -1);
    assert_int_equal(proto_get_disks(got, 2, out, 17, &err), -1);

    checked.differ[1] = (struct proto_range){1, 65536, UINT64_C(0x0102030405060708)};
    len = proto_put_compared(out, &checked);
    assert_int_equal(len, 40);
    assert_int_equal(proto_get_compared(&got_checked, out, len, &err), 0);
    assert_memory_equal(&got_checked.differ[1], &checked.differ[1], sizeof(checked.differ[1]));
    assert_true(got_checked.octets == 5 && got_checked.count == 2);
    for (size_t n = 0; n < len; n++)
        assert_int_equal(proto_get_compared(&got_checked, out, n, &err), n % 16 == 8 ? 0 : -1);
    assert_int_equal(proto_get_compared(&got_checked, out, 8 + 61 * 16, &err), -1);

    checked.count = COMPARED_RANGES; /* as many as there may be */
    len = proto_put_compared(out, &checked);
    assert_int_equal(proto_get_compared(&got_checked, out, len, &err), 0);
    assert_int_equal(got_checked.count, COMPARED_RANGES);

    m.features = FEATURE_DISKS;
    m.disk_count = CONFIG_DISKS_MAX;
    for (int i = 0; i < CONFIG_DISKS_MAX; i++)
        m.disks[i] = (struct proto_disk){1 << 20, 3};
    len = proto_put_hello(out, &m);
    assert_int_equal(proto_get_hello(&got_hello, out, len, &err), 0);
    assert_int_equal(got_hello.disk_count, CONFIG_DISKS_MAX);
    m.disk_count = 2;
    m.disks[0] = (struct proto_disk){1 << 20, 3};
    m.disks[1] = (struct proto_disk){1 << 21, 4};
    len = proto_put_hello(out, &m);
    assert_int_equal(proto_get_hello(&got_hello, out, len, &err), 0);
    assert_int_equal(got_hello.disk_count, 2);
    assert_int_equal(got_hello.disks[1].size, 1 << 21);
    assert_int_equal(got_hello.disks[1].id, 4);
    REFUSES_TRUNCATION(proto_get_hello, &got_hello, out, len);
    out[len - 33] = CONFIG_DISKS_MAX + 1;
    assert_int_equal(proto_get_hello(&got_hello, out, sizeof(out), &err), -1);
    m.disks[1].id = 0;
    len = proto_put_hello(out, &m);
    assert_int_equal(proto_get_hello(&got_hello, out, len, &err), -1);
}

/* R2, R5: what they say is what the backup reads, and the order of the changes is part of what it checks. */
static void blocks_and_digest_as_drawn(void **state)
{
    static const uint8_t drawn[PROTO_BLOCK_LEN] = {0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10,
                                                   0, 0, 0, 11, 0, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22};
    struct proto_block got;
    uint8_t out[PROTO_BLOCK_LEN];

    (void)state;
    proto_get_block(&got, drawn);
    assert_true(got.pfn == 0x102 && got.generation == UINT64_C(0x030405060708090a) && got.disk == 11 &&
                got.block == 0x0c0d0e && got.hash == UINT64_C(0x0f10111213141516));
    assert_int_equal(proto_put_block(out, &got), PROTO_BLOCK_LEN);
    assert_memory_equal(out, drawn, sizeof(drawn));
    /* XXH3 of the octets 0 to 15, by xxHash itself */
    assert_true(proto_disk_digest(UINT64_C(0x0001020304050607), UINT64_C(0x08090a0b0c0d0e0f)) == UINT64_C(0x8355e3a6f61770db));
}

static void preflight_hello(void **state)
{
    static const uint8_t appended[] = "\21" "52:54:00:00:00:01" "\3" "br0" "\0" "\4" "plug";
    struct proto_hello m = hello, got;
    uint8_t out[PROTO_SMALL_MAX];
    struct error err;
    size_t len;

    (void)state;
    m.flags |= HELLO_PREFLIGHT;
    strcpy(m.mac, "52:54:00:00:00:01");
    strcpy(m.guest_bridge, "br0");
    strcpy(m.netbuf, "plug");
    len = proto_put_hello(out, &m);
    assert_memory_equal(out + len - (sizeof(appended) - 1), appended, sizeof(appended) - 1);
    assert_int_equal(proto_get_hello(&got, out, len, &err), 0);
    assert_string_equal(got.mac, m.mac);
    assert_string_equal(got.guest_bridge, "br0");
    assert_string_equal(got.vif, "");
    assert_string_equal(got.netbuf, "plug");
    REFUSES_TRUNCATION(proto_get_hello, &got, out, len);
    for (size_t back = 1; back < 28; back += back == 1 ? 6 : 9) { /* in each of them */
        uint8_t was = out[len - back];

        out[len - back] = '\n';
        assert_int_equal(proto_get_hello(&got, out, len, &err), -1);
        out[len - back] = was;
        assert_int_equal(proto_get_hello(&got, out, len, &err), 0);
    }
    out[len - 5] = 255;
    assert_int_equal(proto_get_hello(&got, out, sizeof(out), &err), -1);
}

static void probe_and_lack(void **state)
{
    static const uint8_t drawn[] = "\0\0\0\0\0\0\1\0" "\1\2\3\4\5\6\7\10";
    static const uint8_t hostile[] = "\5" "a\n\xc3\xa4~" "\2" "\177\033";
    struct proto_probe probe = {256, UINT64_C(0x0102030405060708)}, got_probe;
    struct proto_lack got;
    uint8_t out[PROTO_SMALL_MAX];
    char text[400];
    struct error err;
    size_t len;

    (void)state;
    assert_int_equal(proto_put_probe(out, &probe), 16);
    assert_memory_equal(out, drawn, 16);
    assert_int_equal(proto_get_probe(&got_probe, out, 16, &err), 0);
    assert_memory_equal(&got_probe, &probe, sizeof(probe));
    REFUSES_TRUNCATION(proto_get_probe, &got_probe, out, 16);
    assert_int_equal(proto_get_probe(&got_probe, out, 17, &err), -1);

    len = proto_put_lack(out, "no bridge", "ip link add");
    assert_memory_equal(out, "\11no bridge\13ip link add", len);
    assert_int_equal(proto_get_lack(&got, out, len, &err), 0);
    assert_string_equal(got.what, "no bridge");
    assert_string_equal(got.remedy, "ip link add");
    REFUSES_TRUNCATION(proto_get_lack, &got, out, len);
    assert_int_equal(proto_get_lack(&got, out, len + 1, &err), -1);
    assert_int_equal(proto_get_lack(&got, hostile, sizeof(hostile) - 1, &err), 0);
    assert_string_equal(got.what, "a???~"); /* it goes to terminals, and into JSON (R10) */
    assert_string_equal(got.remedy, "??");
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    len = proto_put_lack(out, text, text);
    assert_int_equal(len, 2 * 256);
    assert_int_equal(proto_get_lack(&got, out, len, &err), 0);
    assert_int_equal(strlen(got.remedy), 255);
}

static void r10_hello_refused(void **state)
{
    struct proto_hello got, bad = hello;
    uint8_t out[PROTO_SMALL_MAX];
    size_t len = proto_put_hello(out, &hello);
    struct error err;

    (void)state;
    REFUSES_TRUNCATION(proto_get_hello, &got, out, len);
    out[0] ^= 1;
    assert_int_equal(proto_get_hello(&got, out, len, &err), -1);
    assert_non_null(strstr(err.text, "magic"));

    /* a VM's name that is longer than a name may be, in a HELLO that is long enough */
    len = proto_put_hello(out, &hello);
    out[68] = CONFIG_NAME_MAX + 1;
    memset(out + 69, 'a', sizeof(out) - 69);
    assert_int_equal(proto_get_hello(&got, out, sizeof(out), &err), -1);

    for (size_t i = 0; i < 3; i++) { /* nothing that would write into a log by itself */
        bad = hello;
        (i == 0 ? bad.vm : i == 1 ? bad.platform : bad.profile)[1] = "\n\033\177"[i];
        len = proto_put_hello(out, &bad);
        assert_int_equal(proto_get_hello(&got, out, len, &err), -1);
        assert_non_null(strstr(err.text, "control"));
    }
}

static void welcome(void **state)
{
    static const uint8_t drawn[] = "\0\1\0\0"
                                   "\0\0\0\0\0\0\0\2"
                                   "\0\0\0\0\0\0\1\0";
    struct proto_welcome m = {1, 2, 256}, got;
    uint8_t out[PROTO_SMALL_MAX];
    struct error err;

    (void)state;
    assert_int_equal(proto_put_welcome(out, &m), 20);
    assert_memory_equal(out, drawn, 20);
    assert_int_equal(proto_get_welcome(&got, out, 20, NULL), 0);
    assert_true(got.version == 1 && got.features == 2 && got.committed == 256);
    REFUSES_TRUNCATION(proto_get_welcome, &got, out, 20);
    assert_int_equal(proto_get_welcome(&got, out, 21, &err), -1);
    for (unsigned v = 0; v < 4; v += 2) {
        out[1] = (uint8_t)v;
        assert_int_equal(proto_get_welcome(&got, out, 20, &err), -1);
        assert_non_null(strstr(err.text, "not offered"));
    }
}

static void end(void **state)
{
    static const uint8_t drawn[] = "\0\0\0\0\0\0\0\7"
                                   "\0\0\0\x10\0\0\0\x20"
                                   "\1\2\3\4\5\6\7\10";
    struct proto_end m = {7, 16, 32, UINT64_C(0x0102030405060708)}, got;
    uint8_t out[PROTO_SMALL_MAX];
    struct error err;

    (void)state;
    assert_int_equal(proto_put_end(out, &m), 24);
    assert_memory_equal(out, drawn, 24);
    assert_int_equal(proto_get_end(&got, out, 24, NULL), 0);
    assert_true(got.pages == 7 && got.state_length == 16 && got.net_length == 32 &&
                got.digest == m.digest);
    REFUSES_TRUNCATION(proto_get_end, &got, out, 24);
    assert_int_equal(proto_get_end(&got, out, 25, &err), -1);
}

static void notice(void **state)
{
    uint8_t out[PROTO_SMALL_MAX];
    struct proto_notice got;
    char text[400];
    size_t len = proto_put_notice(out, REFUSE_BUSY, "busy\n\033[2J\177");
    struct error err;

    (void)state;
    assert_memory_equal(out, "\0\5\12busy\n", 8);
    REFUSES_TRUNCATION(proto_get_notice, &got, out, len);
    assert_int_equal(proto_get_notice(&got, out, len + 1, &err), -1);
    assert_int_equal(proto_get_notice(&got, out, len, &err), 0);
    assert_int_equal(got.code, REFUSE_BUSY);
    assert_string_equal(got.text, "busy??[2J?"); /* it goes to terminals (R10) */

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    len = proto_put_notice(out, 0, text);
    assert_int_equal(len, 2 + 1 + 255);
    assert_int_equal(proto_get_notice(&got, out, len, &err), 0);
    assert_int_equal(strlen(got.text), 255);
}

static void version_chosen(void **state)
{
    static const struct {
        uint16_t min, max;
        unsigned chosen;
    } cases[] = {{1, 1, 1}, {1, 9, 1}, {0, 1, 1}, {2, 9, 0}, {0, 0, 0}, {1, 0, 0}, {UINT16_MAX, UINT16_MAX, 0}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct proto_hello h = {.version_min = cases[i].min, .version_max = cases[i].max};
        struct error err = {""};

        assert_int_equal(proto_choose_version(&h, &err), cases[i].chosen);
        if (!cases[i].chosen)
            assert_non_null(strstr(err.text, "no common protocol version"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(header_as_drawn),
        cmocka_unit_test(r10_lengths_over_the_maximum_refused),
        cmocka_unit_test(r10_unknown_types_refused),
        cmocka_unit_test(hello_as_drawn),
        cmocka_unit_test(hello_may_grow),
        cmocka_unit_test(disks),
        cmocka_unit_test(blocks_and_digest_as_drawn),
        cmocka_unit_test(preflight_hello),
        cmocka_unit_test(probe_and_lack),
        cmocka_unit_test(r10_hello_refused),
        cmocka_unit_test(welcome),
        cmocka_unit_test(end),
        cmocka_unit_test(notice),
        cmocka_unit_test(version_chosen),
    };

    return cmocka_run_group_tests_name("protocol", tests, NULL, NULL);
}
