/* SPDX-License-Identifier: GPL-2.0-or-later */
/* R10: the cursors never pass the end, and say so once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "common/wire.h"

static const uint8_t octets[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

static void big_endian(void **state)
{
    struct wire_reader r = wire_reader(octets, sizeof(octets));

    (void)state;
    assert_int_equal(wire_get_u8(&r), 0x01);
    assert_int_equal(wire_get_u16(&r), 0x0203);
    assert_int_equal(wire_get_u32(&r), 0x04050607);
    assert_false(wire_reader_ok(&r)); /* something is left */
    assert_true(wire_get_u64(&r) == UINT64_C(0x08090a0b0c0d0e0f));
    assert_true(wire_reader_ok(&r));
}

/* Each field in a buffer that is one octet too short, allocated to its size so that ASan sees a touch behind it. */
static void r10_reader_stops_at_the_end(void **state)
{
    (void)state;
    for (size_t have = 0; have < 8; have++) {
        uint8_t *short_of = malloc(have + 1);
        struct wire_reader r = wire_reader(short_of, have);

        memset(short_of, 0xff, have + 1);
        assert_true(wire_get_uint(&r, have + 1) == 0);
        assert_true(r.failed);
        assert_int_equal(wire_get_u8(&r), 0); /* zeros from then on, also of what would fit */
        assert_null(wire_get(&r, 0));
        assert_false(wire_reader_ok(&r));
        free(short_of);
    }
}

static void r10_reader_refuses_huge_lengths(void **state)
{
    struct wire_reader r = wire_reader(octets, sizeof(octets));

    (void)state;
    assert_null(wire_get(&r, SIZE_MAX));
    assert_true(r.failed);
}

static void strings(void **state)
{
    uint8_t buf[16];
    char out[8];
    struct wire_writer w = wire_writer(buf, sizeof(buf));
    struct wire_reader r;

    (void)state;
    wire_put_string(&w, "");
    wire_put_string(&w, "seven77");
    assert_false(w.failed);
    assert_int_equal(w.at - buf, 9);
    r = wire_reader(buf, 9);
    wire_get_string(&r, out, sizeof(out));
    assert_string_equal(out, "");
    wire_get_string(&r, out, sizeof(out));
    assert_string_equal(out, "seven77");
    assert_true(wire_reader_ok(&r));
}

static void r10_string_refused(const char *raw, size_t len, size_t room)
{
    char out[8] = "before";
    struct wire_reader r = wire_reader(raw, len);

    wire_get_string(&r, out, room);
    assert_true(r.failed);
    assert_string_equal(out, "");
}

static void r10_bad_strings(void **state)
{
    (void)state;
    r10_string_refused("", 0, 8);             /* no length */
    r10_string_refused("\5four", 5, 8);       /* cut off */
    r10_string_refused("\10eight888", 9, 8);  /* no room for the NUL */
    r10_string_refused("\3a\0b", 4, 8);       /* a NUL inside hides the rest */
}

static void writer_refuses_what_does_not_fit(void **state)
{
    uint8_t buf[4] = {0, 0, 0, 0xee};
    char longer[258];
    uint8_t big[600];
    struct wire_writer w = wire_writer(buf, 3);

    (void)state;
    wire_put_uint(&w, 0x1122, 2);
    wire_put_uint(&w, 0x3344, 2);
    assert_true(w.failed);
    wire_put_uint(&w, 5, 1); /* would fit, but something before it is missing */
    assert_int_equal(w.at - buf, 2);
    assert_memory_equal(buf, "\x11\x22\0\xee", 4);

    memset(longer, 'x', sizeof(longer) - 1);
    longer[257] = '\0';
    w = wire_writer(big, sizeof(big));
    wire_put_string(&w, longer);
    assert_true(w.failed);
    w = wire_writer(big, sizeof(big));
    wire_put_string(&w, longer + 2); /* 255 */
    assert_false(w.failed);
    assert_int_equal(w.at - big, 256);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(big_endian),
        cmocka_unit_test(r10_reader_stops_at_the_end),
        cmocka_unit_test(r10_reader_refuses_huge_lengths),
        cmocka_unit_test(strings),
        cmocka_unit_test(r10_bad_strings),
        cmocka_unit_test(writer_refuses_what_does_not_fit),
    };

    return cmocka_run_group_tests_name("wire", tests, NULL, NULL);
}
