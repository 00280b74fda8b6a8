/* SPDX-License-Identifier: GPL-2.0-or-later */
/* vm/xen/stream.c: what is fed to libxl, and what is taken from the primary (R10). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include "vm/vm.h"
#include "vm/xen/feed.h"
#include "vm/xen/policy.h"
#include "vm/xen/stream.h"

static void check(const struct buffer *b, const void *want, size_t len)
{
    assert_int_equal(b->len, len);
    assert_memory_equal(b->data, want, len);
}

/* Octet by octet as Xen's specifications draw it. */
static void stream_as_specified(void **state)
{
    static const uint8_t begin[] = "LibxlFmt"
                                   "\0\0\0\2"
                                   "\0\0\0\0"
                                   "\1\0\0\0"
                                   "\0\0\0\0";
    static const uint8_t head[] = "\xff\xff\xff\xff\xff\xff\xff\xff"
                                  "XENF"
                                  "\0\0\0\3"
                                  "\0\0\0\0\0\0\0\0"
                                  "\2\0\0\0"
                                  "\x0c\0\0\0"
                                  "\4\0\0\0"
                                  "\x11\0\0\0";
    static const uint8_t record[] = "\x0a\0\0\0"
                                    "\3\0\0\0"
                                    "abc\0\0\0\0\0";
    static const uint8_t pages[] = "\1\0\0\0"
                                   "\x18\0\0\0"
                                   "\2\0\0\0"
                                   "\0\0\0\0"
                                   "\x34\x12\0\0\0\0\0\xe0"
                                   "\x35\x12\0\0\0\0\0\xe0";
    static const uint8_t end[16];
    struct buffer b = {0};

    (void)state;
    assert_int_equal(stream_put_begin(&b), 0);
    check(&b, begin, sizeof(begin) - 1);
    buffer_clear(&b);
    assert_int_equal(stream_put_head(&b, false, 4, 17), 0);
    check(&b, head, sizeof(head) - 1);
    buffer_clear(&b);
    assert_int_equal(stream_put_record(&b, STREAM_HVM_PARAMS, "abc", 3), 0);
    check(&b, record, sizeof(record) - 1);
    buffer_clear(&b);
    assert_int_equal(stream_put_pages(&b, (const uint64_t[]){0x1234, 0x1235}, 2, NULL), 0);
    check(&b, pages, sizeof(pages) - 1);
    buffer_clear(&b);
    assert_int_equal(stream_put_end(&b), 0);
    check(&b, end, sizeof(end));
    buffer_free(&b);
}

static void put_head(struct buffer *head)
{
    assert_int_equal(stream_put_head(head, false, 4, 17), 0);
    assert_int_equal(stream_put_record(head, STREAM_CPUID_POLICY, "0123456789abcdef01234567", 24),
                     0);
    assert_int_equal(stream_put_record(head, STREAM_MSR_POLICY, "0123456789abcdef", 16), 0);
    assert_int_equal(stream_put_record(head, STREAM_STATIC_DATA_END, NULL, 0), 0);
}

static void put_pv_head(struct buffer *head)
{
    assert_int_equal(stream_put_head(head, true, 4, 17), 0);
    assert_int_equal(stream_put_record(head, STREAM_PV_INFO, "\10\4\0\0\0\0\0\0", 8), 0);
    assert_int_equal(stream_put_record(head, STREAM_CPUID_POLICY, "0123456789abcdef01234567", 24), 0);
    assert_int_equal(stream_put_record(head, STREAM_MSR_POLICY, "", 0), 0);
    assert_int_equal(stream_put_record(head, STREAM_STATIC_DATA_END, NULL, 0), 0);
    assert_int_equal(stream_put_record(head, STREAM_PV_P2M_FRAMES, "\0\0\0\0\377\0\0\0abcdefgh", 16), 0);
}

static void describe(struct buffer *b, bool pv, struct xen_range *ranges, unsigned count)
{
    struct buffer head = {0};

    (pv ? put_pv_head : put_head)(&head);
    assert_int_equal(xen_machine_put(b,
                                     &(struct xen_machine){
                                         .pages = 1000,
                                         .ranges = ranges,
                                         .range_count = count,
                                         .head = head.data,
                                         .head_length = head.len,
                                         .config = "{}",
                                         .config_length = 2,
                                     }),
                     0);
    buffer_free(&head);
}

static void description(struct buffer *b, struct xen_range *ranges, unsigned count)
{
    describe(b, false, ranges, count);
}

static struct xen_range good_ranges[] = {{0, 100}, {100, 1}, {990, 10}};

static void description_there_and_back(void **state)
{
    struct buffer b = {0};
    struct xen_machine m;
    struct error err;

    (void)state;
    description(&b, good_ranges, 3);
    assert_int_equal(xen_machine_get(&m, b.data, b.len, &err), 0);
    assert_int_equal(m.pages, 1000);
    assert_int_equal(m.range_count, 3);
    assert_memory_equal(m.ranges, good_ranges, sizeof(good_ranges));
    assert_int_equal(xen_machine_present(&m), 111);
    assert_int_equal(m.config_length, 2);
    assert_false(m.pv);
    xen_machine_free(&m);
    buffer_clear(&b);
    describe(&b, true, good_ranges, 3);
    assert_int_equal(xen_machine_get(&m, b.data, b.len, &err), 0);
    assert_true(m.pv);
    xen_machine_free(&m);
    b.data[28 + 48 + 24] = 2; /* the head of a PVH domain, with what only a PV domain has */
    assert_int_equal(xen_machine_get(&m, b.data, b.len, &err), -1);
    xen_machine_free(&m);
    buffer_free(&b);
}

static void refused(const uint8_t *data, size_t len)
{
    uint8_t *copy = malloc(len + 1); /* so that a reader behind the end is seen */
    struct xen_machine m;
    struct error err = {""};

    memcpy(copy, data, len);
    assert_int_equal(xen_machine_get(&m, copy, len, &err), -1);
    assert_true(err.text[0]);
    xen_machine_free(&m);
    free(copy);
}

static void r10_descriptions_refused(void **state)
{
    static struct xen_range bad[][2] = {
        {{0, 100}, {99, 1}}, {{5, 1}, {4, 1}},          {{0, 1}, {999, 2}},        {{0, 0}, {1, 1}},
        {{0, 1}, {1000, 1}}, {{0, 1}, {2, UINT64_MAX}}, {{UINT64_MAX, 1}, {0, 1}},
    };
    struct buffer b = {0};

    (void)state;
    description(&b, good_ranges, 3);
    for (size_t len = 0; len < b.len; len++)
        refused(b.data, len);
    assert_int_equal(buffer_append(&b, "", 1), 0);
    refused(b.data, b.len); /* something behind it */
    b.len--;
    for (size_t i = 0; i < 28 + 48 + 24 + 8; i++) {
        if ((i >= 8 && i < 16) || (i >= 28 && i < 28 + 48))
            continue; /* numbers of pages: other ones may be as good */
        b.data[i] ^= 0x80;
        refused(b.data, b.len);
        b.data[i] ^= 0x80;
    }
    b.data[b.len - 1] = '\0'; /* a configuration with a NUL */
    refused(b.data, b.len);
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        buffer_clear(&b);
        description(&b, bad[i], 2);
        refused(b.data, b.len);
    }
    buffer_free(&b);
}

static void r10_states_refused(void **state)
{
    static const enum stream_record types[] = {STREAM_TSC_INFO, STREAM_HVM_CONTEXT,
                                               STREAM_HVM_PARAMS};
    struct buffer b = {0};
    struct error err;

    (void)state;
    for (size_t i = 0; i < 3; i++)
        stream_put_record(&b, types[i], "0123456789", 10);
    assert_int_equal(stream_check_state(b.data, b.len, false, &err), 0);
    for (size_t len = 0; len < b.len; len++)
        assert_int_equal(stream_check_state(b.data, len, false, &err), -1);
    b.data[4] = 0xff;
    assert_int_equal(stream_check_state(b.data, b.len, false, &err), -1);
    b.data[4] = 10;
    stream_put_record(&b, STREAM_TSC_INFO, "", 0); /* a second one */
    assert_int_equal(stream_check_state(b.data, b.len, false, &err), -1);
    b.len -= 8;
    stream_put_record(&b, STREAM_PAGE_DATA, "", 0); /* pages come by other ways */
    assert_int_equal(stream_check_state(b.data, b.len, false, &err), -1);
    buffer_free(&b);
}

static const uint8_t types[] = {0, 0, 0, 1, 9, 9, 15, 15, 4, 13, 14, 0};
#define PAGES (sizeof(types))

static void put_pv_state(struct buffer *b)
{
    assert_int_equal(stream_put_types(b, types, PAGES), 0);
    stream_put_record(b, STREAM_TSC_INFO, "0123456789", 10);
    stream_put_record(b, STREAM_SHARED_INFO, "0123456789", 10);
    for (int processor = 0; processor < 2; processor++)
        for (unsigned type = STREAM_PV_VCPU_BASIC; type <= STREAM_PV_VCPU_XSAVE; type++)
            stream_put_record(b, type, "0123456789", 10);
}

/* What pages are there and which of them are tables goes with the checkpoint. */
static void r4_types_of_pv_pages(void **state)
{
    struct buffer b = {0};
    uint8_t back[PAGES];
    struct error err;
    size_t length;

    (void)state;
    put_pv_state(&b);
    assert_int_equal(stream_check_state(b.data, b.len, true, &err), 0);
    assert_int_equal(stream_get_types(b.data, back, PAGES, &length, &err), 0);
    assert_memory_equal(back, types, PAGES);
    assert_int_equal(b.data[length], STREAM_TSC_INFO);
    buffer_clear(&b);
    assert_int_equal(stream_put_pages(&b, (const uint64_t[]){1, 2, 3, 4}, 4, (const uint8_t[]){0, 0, 1, 9, 15}), 0);
    /* its length is with three pages, which the caller puts behind it */
    check(&b, (uint8_t[]){1, 0, 0, 0, 40, 0x30, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0x10,
                          3, 0, 0, 0, 0, 0, 0, 0x90, 4, 0, 0, 0, 0, 0, 0, 0xf0}, 48);
    buffer_free(&b);
}

#define FED 5000u /* pages: more than a batch */

/* What a restore does with PAGE_DATA.  The memory that it is fed from says in each page which type it has in that checkpoint. */
struct fed {
    int pipe[2];
    struct buffer in;
    uint8_t types[FED], numbers[FED];
    unsigned pages;
};

static void read_some(struct fed *f, size_t most)
{
    static uint8_t octets[1 << 20];
    ssize_t n = read(f->pipe[0], octets, most < sizeof(octets) ? most : sizeof(octets));
    uint32_t head[4]; /* type, length, count, 0 */

    if (n > 0)
        assert_int_equal(buffer_append(&f->in, octets, (size_t)n), 0);
    while (f->in.len >= sizeof(head) && (memcpy(head, f->in.data, sizeof(head)), f->in.len >= head[1] + 8)) {
        const uint8_t *data = f->in.data + sizeof(head) + 8 * head[2];

        assert_int_equal(head[0], STREAM_PAGE_DATA);
        assert_in_range(head[2], 1, STREAM_PAGES_MAX);
        for (uint32_t i = 0; i < head[2]; i++) {
            uint64_t pfn;

            memcpy(&pfn, f->in.data + sizeof(head) + 8 * i, 8);
            assert_true((pfn & ~(UINT64_C(15) << STREAM_TYPE_SHIFT)) < FED);
            f->types[pfn % (1 << 20)] = (uint8_t)(pfn >> STREAM_TYPE_SHIFT);
            f->pages++;
            if (!stream_has_data((uint8_t)(pfn >> STREAM_TYPE_SHIFT)))
                continue;
            assert_int_equal(data[0], pfn >> STREAM_TYPE_SHIFT);
            assert_int_equal(data[PAGE_SIZE - 1], data[1]);
            f->numbers[pfn % (1 << 20)] = data[1];
            data += PAGE_SIZE;
        }
        assert_ptr_equal(data, f->in.data + 8 + head[1]);
        memmove(f->in.data, data, f->in.len -= 8 + head[1]);
    }
}

static void write_fed(struct xen_feed *f, uint8_t *memory, uint64_t pfn, uint8_t type, uint8_t number)
{
    uint8_t *page = memory + pfn * PAGE_SIZE;

    page[0] = type;
    page[1] = page[PAGE_SIZE - 1] = number;
    bitmap_set(&f->missing, pfn);
}

/* The domain gets each page as it is in the last checkpoint, with the type that it has there, however slowly its restore reads. */
static void r4_pv_pages_are_fed(void **state)
{
    static const uint8_t some[] = {0, 0, 0, 1, 9, 4, 13, 14, 15};
    uint8_t *memory = calloc(FED, PAGE_SIZE), now[FED];
    struct buffer b = {0};
    static struct fed out;
    struct xen_feed f;
    struct error err;
    size_t length;
    int rc = 0;

    (void)state;
    assert_int_equal(pipe2(out.pipe, O_NONBLOCK), 0);
    assert_int_equal(feed_init(&f, memory, FED), 0);
    srandom(1);
    memset(out.types, STREAM_XTAB, sizeof(out.types));
    for (unsigned pfn = 0; pfn < FED; pfn++)
        write_fed(&f, memory, pfn, now[pfn] = some[pfn % sizeof(some)], 1);
    for (uint8_t number = 2; number < 200; number++) {
        for (unsigned i = 0; i < (number < 190 ? 30 : 0); i++) {
            unsigned pfn = (unsigned)random() % FED;

            if (random() % 4 == 0) /* a type changes without data only where there is none */
                now[pfn] = some[(unsigned)random() % sizeof(some)];
            write_fed(&f, memory, pfn, now[pfn], number);
        }
        buffer_clear(&b);
        assert_int_equal(stream_put_types(&b, now, FED), 0);
        assert_int_equal(feed_checkpoint(&f, b.data, &length, &err), 0);
        assert_int_equal(length, b.len);
        rc = feed_some(&f, out.pipe[1]);
        assert_true(rc >= 0);
        if (number > 1 + 1)
            read_some(&out, (size_t)random() % 300000);
    }
    while (rc == 0) {
        read_some(&out, SIZE_MAX);
        rc = feed_some(&f, out.pipe[1]);
    }
    assert_int_equal(rc, 1);
    for (int i = 0; i < 1000; i++)
        read_some(&out, SIZE_MAX);
    assert_int_equal(out.in.len, 0);
    assert_memory_equal(out.types, now, FED);
    for (unsigned pfn = 0; pfn < FED; pfn++)
        if (stream_has_data(now[pfn]))
            assert_int_equal(out.numbers[pfn], memory[pfn * PAGE_SIZE + 1]);

    /* From then on only what changes. */
    out.pages = 0;
    write_fed(&f, memory, 7, now[7], 200);
    now[3] = now[3] == 1 ? 9 : 1; /* pinned: its content is the same */
    memory[3 * PAGE_SIZE] = now[3];
    buffer_clear(&b);
    stream_put_types(&b, now, FED);
    assert_int_equal(feed_checkpoint(&f, b.data, &length, &err), 0);
    assert_int_equal(feed_some(&f, out.pipe[1]), 1);
    read_some(&out, SIZE_MAX);
    assert_int_equal(out.pages, 2);
    assert_int_equal(out.types[3], now[3]);
    close(out.pipe[0]);
    write_fed(&f, memory, 7, now[7], 201);
    signal(SIGPIPE, SIG_IGN);
    assert_int_equal(feed_some(&f, out.pipe[1]), -1);
    close(out.pipe[1]);
    feed_free(&f);
    buffer_free(&b);
    buffer_free(&out.in);
    free(memory);
}

static void r10_pv_states_refused(void **state)
{
    uint8_t back[PAGES + 1];
    struct buffer b = {0};
    struct error err;
    size_t length;

    (void)state;
    put_pv_state(&b);
    for (size_t len = 0; len < b.len; len++)
        if (stream_check_state(b.data, len, true, &err) == 0) /* only processors may be missing, as a whole */
            assert_true(len >= 40 + 3 * 24 && (len - 40) % 24 == 0);
    assert_int_equal(stream_check_state(b.data, b.len, false, &err), -1);
    assert_int_equal(stream_get_types(b.data, back, PAGES + 1, &length, &err), -1);
    assert_int_equal(stream_get_types(b.data, back, PAGES - 1, &length, &err), -1);
    stream_put_record(&b, STREAM_TYPES, "", 0); /* a second one */
    assert_int_equal(stream_check_state(b.data, b.len, true, &err), -1);
    buffer_clear(&b);
    stream_put_record(&b, STREAM_TSC_INFO, "", 0);
    put_pv_state(&b);
    assert_int_equal(stream_check_state(b.data, b.len, true, &err), -1);
    buffer_free(&b);
}

/* Leaves as x86 has them on both ends; numbers in little-endian order, as the machine's. */
struct leaf {
    uint32_t leaf, subleaf, a, b, c, d;
};
#define NONE UINT32_MAX
#define MISSING(guest, host, text) policy_missing((const uint8_t *)(guest), sizeof(guest), (const uint8_t *)(host), sizeof(host), text, sizeof(text))

/* R7: a guest is not protected where it could not run. */
static void processors_compared(void **state)
{
    struct leaf guest[] = {{0x80000001, NONE, 0, 0, 0, 0x0183f3ff}, {0, NONE, 13, 1, 2, 3}, {1, NONE, 9, 9, 1u << 31 | 1u << 27 | 1u << 28, 7}, {7, 0, 1, 1u << 5 | 1u << 6, 1u << 4, 0},
                           {7, 1, 0, 0, 0, 0}, {0x80000000, NONE, 0x80000008, 0, 0, 0}};
    struct leaf host[] = {{0x80000001, NONE, 0, 0, 0, 0}, {0, NONE, 22, 1, 2, 3}, {1, NONE, 5, 5, 1u << 28 | 1, 7}, {7, 0, 2, ~0u, 0, 0}, {7, 1, 1, 0, 0, 0},
                          {0x80000000, NONE, 0x80000008, 0, 0, 0}};
    char text[400], little[40], many[400];
    struct buffer head = {0};
    const uint8_t *found;
    size_t len;

    (void)state;
    assert_int_equal(MISSING(guest, host, text), 0); /* more is no matter, nor what is turned on by the guest */
    assert_string_equal(text, "");
    host[3].b = 0;
    assert_int_equal(MISSING(guest, host, text), 2);
    assert_string_equal(text, "avx2 (leaf 0x7 ebx bit 5), leaf 0x7 ebx bit 6");
    host[3].leaf = 8; /* no such leaf */
    assert_int_equal(MISSING(guest, host, text), 2);
    guest[4].a = 1u << 4;
    guest[5].a++;
    guest[1].b++;
    assert_int_equal(MISSING(guest, host, text), 5);
    assert_non_null(strstr(text, "avx-vnni (leaf 0x7 eax bit 4), its maker (vendor), leaf 0x80000000: 0x80000009 is the highest, here 0x80000008"));
    assert_int_equal(MISSING(guest, host, little), 5);
    assert_string_equal(little, "avx2 (leaf 0x7 ebx bit 5), and more");
    guest[2].c = guest[2].d = ~0u;
    assert_true(policy_missing((uint8_t *)guest, sizeof(guest), NULL, 0, many, sizeof(many)) > 60);
    assert_true(strlen(many) < sizeof(many) && strstr(many, ", and more"));
    for (size_t cut = 0; cut < sizeof(guest); cut++) /* R10: any length */
        policy_missing((uint8_t *)guest, cut, (uint8_t *)host, sizeof(host), text, sizeof(text));

    put_head(&head);
    found = stream_find(head.data, head.len, STREAM_MSR_POLICY, &len);
    assert_int_equal(len, 16);
    assert_memory_equal(found, "0123456789abcdef", 16);
    assert_null(stream_find(head.data, head.len, STREAM_TSC_INFO, &len));
    buffer_free(&head);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stream_as_specified),
        cmocka_unit_test(description_there_and_back),
        cmocka_unit_test(r10_descriptions_refused),
        cmocka_unit_test(r10_states_refused),
        cmocka_unit_test(r4_types_of_pv_pages),
        cmocka_unit_test(r4_pv_pages_are_fed),
        cmocka_unit_test(r10_pv_states_refused),
        cmocka_unit_test(processors_compared),
    };

    return cmocka_run_group_tests_name("xen", tests, NULL, NULL);
}
