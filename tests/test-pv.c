/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A PV domain's checkpoints from libxenguest's stream, with a libxenguest of the test's own, which writes what it is told. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <endian.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xencall.h>
#include <xenctrl.h>
#include <xenguest.h>
#include <xentoollog.h>

#include "vm/vm.h"
#include "vm/xen/pv.h"
#include "vm/xen/stream.h"

#define PAGES 6

/* --- libxenguest --- */

static struct buffer start, pass, checkpoint;
static const char *complaint;
static bool endless;
static xentoollog_logger *log_to;

xc_interface *xc_interface_open(xentoollog_logger *logger, xentoollog_logger *dombuild_logger, unsigned open_flags)
{
    (void)dombuild_logger, (void)open_flags;
    log_to = logger;
    return (xc_interface *)&start;
}

int xc_interface_close(xc_interface *xch)
{
    (void)xch;
    return 0;
}

static xen_pfn_t p2m[PAGES] = {0x1000, 0x1234, 0x1002, 0x1003, 0x1004, 0x1005};
static unsigned marked;

int xc_map_domain_meminfo(xc_interface *xch, uint32_t domid, struct xc_domain_meminfo *info)
{
    (void)xch;
    assert_int_equal(domid, 7);
    *info = (struct xc_domain_meminfo){.p2m_table = p2m, .p2m_size = PAGES};
    return 0;
}

int xc_unmap_domain_meminfo(xc_interface *xch, struct xc_domain_meminfo *info)
{
    (void)xch, (void)info;
    return 0;
}

xencall_handle *xencall_open(xentoollog_logger *logger, unsigned open_flags)
{
    (void)logger, (void)open_flags;
    return (xencall_handle *)&marked;
}

int xencall_close(xencall_handle *calls)
{
    (void)calls;
    return 0;
}

void *xencall_alloc_buffer(xencall_handle *calls, size_t size)
{
    (void)calls;
    return malloc(size);
}

void xencall_free_buffer(xencall_handle *calls, void *buffer)
{
    (void)calls;
    free(buffer);
}

int xencall4(xencall_handle *calls, unsigned op, uint64_t updates, uint64_t count, uint64_t done, uint64_t domid)
{
    const mmu_update_t *u = (const mmu_update_t *)(uintptr_t)updates;

    (void)calls;
    assert_int_equal(op, __HYPERVISOR_mmu_update);
    assert_int_equal(count, 1);
    assert_int_equal(done, 0);
    assert_int_equal(domid, 7);
    assert_int_equal(u->val, 1);
    assert_int_equal(u->ptr, 0x1234000 | MMU_MACHPHYS_UPDATE);
    marked++;
    return 0;
}

static void say(xentoollog_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void say(xentoollog_level level, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    log_to->vmessage(log_to, level, -1, "xc", format, ap);
    va_end(ap);
}

static bool put(int fd, const struct buffer *b)
{
    return write(fd, b->data, b->len) == (ssize_t)b->len;
}

int xc_domain_save(xc_interface *xch, int io_fd, uint32_t dom, uint32_t flags, struct save_callbacks *callbacks,
                   xc_stream_type_t stream_type, int recv_fd)
{
    int decision = XGS_POLICY_ABORT;
    bool good;

    (void)xch, (void)recv_fd;
    assert_int_equal(dom, 7);
    assert_int_equal(flags, XCFLAGS_LIVE);
    assert_int_equal(stream_type, XC_STREAM_REMUS);
    assert_int_equal(callbacks->precopy_policy((struct precopy_stats){.dirty_count = PAGES}, callbacks->data), XGS_POLICY_CONTINUE_PRECOPY);
    good = start.len && put(io_fd, &start);
    while (good && endless)
        good = put(io_fd, &checkpoint);
    while (good && (decision = callbacks->precopy_policy((struct precopy_stats){.dirty_count = -1}, callbacks->data)) ==
                       XGS_POLICY_CONTINUE_PRECOPY) {
        assert_int_equal(callbacks->precopy_policy((struct precopy_stats){.dirty_count = 3}, callbacks->data), XGS_POLICY_CONTINUE_PRECOPY);
        good = put(io_fd, &pass);
    }
    good &= decision == XGS_POLICY_STOP_AND_COPY;
    while (good && callbacks->suspend(callbacks->data)) {
        good = put(io_fd, &checkpoint) && callbacks->postcopy(callbacks->data) > 0 && callbacks->checkpoint(callbacks->data) > 0;
        if (complaint)
            break;
    }
    if (complaint) {
        say(XTL_DETAIL, "all goes well");
        say(XTL_ERROR, "%s", complaint);
        say(XTL_ERROR, "Save failed");
    }
    return -1;
}

/* --- what it writes --- */

static void put_page_data(struct buffer *b, uint64_t first, unsigned count, const uint8_t *types, uint8_t fill)
{
    uint8_t page[PAGE_SIZE], by_number[PAGES + 1] = {0}; /* one that is refused, too */
    uint64_t pfns[PAGES] = {0};

    for (unsigned i = 0; i < count; i++) {
        pfns[i] = first + i;
        by_number[first + i] = types[i];
    }
    assert_int_equal(stream_put_pages(b, pfns, count, by_number), 0);
    for (unsigned i = 0; i < count; i++) {
        memset(page, fill + (int)i, sizeof(page));
        if (stream_has_data(types[i]))
            assert_int_equal(buffer_append(b, page, sizeof(page)), 0);
    }
}

static void put_begin(void)
{
    const uint32_t frames[4] = {0, htole32(PAGES - 1), htole32(1)};

    buffer_clear(&start);
    assert_int_equal(stream_put_head(&start, true, 4, 17), 0);
    stream_put_record(&start, STREAM_PV_INFO, "\10\4\0\0\0\0\0", 8);
    stream_put_record(&start, STREAM_CPUID_POLICY, "", 0);
    stream_put_record(&start, STREAM_MSR_POLICY, "", 0);
    stream_put_record(&start, STREAM_STATIC_DATA_END, "", 0);
    stream_put_record(&start, STREAM_PV_P2M_FRAMES, frames, sizeof(frames));
}

static int set_up(void **state)
{
    (void)state;
    complaint = NULL;
    endless = false;
    marked = 0;
    put_begin();
    buffer_clear(&checkpoint);
    return 0;
}

static void checkpoint_is(const uint8_t *types, uint8_t fill)
{
    buffer_clear(&checkpoint);
    put_page_data(&checkpoint, 1, 3, types, fill);
    stream_put_record(&checkpoint, STREAM_TSC_INFO, &fill, 1);
    stream_put_record(&checkpoint, STREAM_SHARED_INFO, "shared", 6);
    stream_put_record(&checkpoint, STREAM_CHECKPOINT, "", 0);
}

static void assert_page(const struct xen_pv *pv, unsigned page, uint8_t octet)
{
    assert_int_equal(pv->memory[page * PAGE_SIZE], octet);
    assert_int_equal(pv->memory[(page + 1) * PAGE_SIZE - 1], octet);
}

/* --- tests --- */

static void r4_r8_checkpoints(void **state)
{
    static const uint8_t first[] = {0, 9, 0, 15, 2, 0}, types[] = {1, 0, 15};
    struct buffer want = {0};
    struct bitmap dirty;
    struct xen_pv *pv;
    struct error err;

    (void)state;
    buffer_append(&want, start.data, start.len);
    put_page_data(&start, 0, PAGES, first, 0x10);
    checkpoint_is(types, 0x40);
    assert_int_equal(bitmap_init(&dirty, PAGES), 0);
    assert_int_equal(xen_pv_start(&pv, 7, &err), 0);
    assert_int_equal(pv->pages, PAGES);
    assert_memory_equal(pv->types, first, PAGES);
    assert_int_equal(pv->head.len, want.len);
    assert_memory_equal(pv->head.data, want.data, want.len);
    assert_int_equal(marked, 1);
    assert_page(pv, 5, 0x15);
    assert_page(pv, 3, 0);

    for (uint8_t fill = 0x30; fill < 0x33; fill++) { /* while it runs */
        buffer_clear(&pass);
        put_page_data(&pass, 1, 3, types, fill);
        bitmap_clear_all(&dirty);
        assert_int_equal(xen_pv_pass(pv, &dirty, &err), 0);
        assert_int_equal(dirty.words[0], 1 << 1 | 1 << 2);
        assert_page(pv, 1, fill);
        assert_false(pv->taken);
        assert_int_equal(pv->state.len, 0);
    }
    for (uint8_t fill = 0x40; fill < 0x43; fill++) { /* each is what it brings, and no more */
        checkpoint_is(types, fill);
        bitmap_clear_all(&dirty);
        assert_int_equal(xen_pv_take(pv, &dirty, &err), 0);
        assert_int_equal(dirty.words[0], 1 << 1 | 1 << 2);
        assert_memory_equal(pv->types, ((uint8_t[]){0, 1, 0, 15, 2, 0}), PAGES);
        assert_page(pv, 0, 0x10);
        assert_page(pv, 1, fill);
        assert_page(pv, 2, fill + 1);
        buffer_clear(&want);
        stream_put_record(&want, STREAM_TSC_INFO, &fill, 1);
        stream_put_record(&want, STREAM_SHARED_INFO, "shared", 6);
        assert_int_equal(pv->state.len, want.len);
        assert_memory_equal(pv->state.data, want.data, want.len);
    }
    assert_true(pv->taken);
    assert_int_equal(marked, 7); /* behind each */
    xen_pv_stop(pv);
    bitmap_free(&dirty);
    buffer_free(&want);
}

/* What went wrong first is told, also by a checkpoint that ends in the middle. */
static void complaints(void **state)
{
    struct bitmap dirty;
    struct xen_pv *pv;
    struct error err;

    (void)state;
    complaint = "page tables of another kind";
    checkpoint_is((uint8_t[]){0, 0, 0}, 1);
    checkpoint.len -= 20;
    assert_int_equal(bitmap_init(&dirty, PAGES), 0);
    assert_int_equal(xen_pv_start(&pv, 7, &err), 0);
    assert_int_equal(xen_pv_take(pv, &dirty, &err), -1);
    assert_string_equal(err.text, "libxenguest gives up: page tables of another kind");
    xen_pv_stop(pv);
    bitmap_free(&dirty);

    buffer_clear(&start); /* not even a header */
    complaint = "no";
    assert_int_equal(xen_pv_start(&pv, 7, &err), -1);
    assert_null(pv);
}

/* A page that was marked as written does not come: somebody else has read what was written, and it is lost to us (R8). */
static void r8_tracked_by_somebody_else(void **state)
{
    struct bitmap dirty;
    struct xen_pv *pv;
    struct error err;

    (void)state;
    assert_int_equal(bitmap_init(&dirty, PAGES), 0);
    put_page_data(&start, 0, PAGES, (uint8_t[PAGES]){0}, 1);
    for (int pass_too = 0; pass_too < 2; pass_too++) {
        checkpoint_is((uint8_t[]){0, 0, 0}, 1);
        assert_int_equal(xen_pv_start(&pv, 7, &err), 0);
        assert_int_equal(xen_pv_take(pv, &dirty, &err), 0);
        buffer_clear(&checkpoint);
        put_page_data(&checkpoint, 2, 2, (uint8_t[]){0, 0}, 2);
        if (pass_too) {
            xen_pv_stop(pv);
            buffer_clear(&pass);
            put_page_data(&pass, 2, 2, (uint8_t[]){0, 0}, 2);
            assert_int_equal(xen_pv_start(&pv, 7, &err), 0);
            assert_int_equal(xen_pv_pass(pv, &dirty, &err), -1);
        } else {
            assert_int_equal(xen_pv_take(pv, &dirty, &err), -1);
        }
        assert_non_null(strstr(err.text, "something else tracks"));
        xen_pv_stop(pv);
    }
    bitmap_free(&dirty);
}

static void refused(const char *why)
{
    struct xen_pv *pv;
    struct error err = {""};

    assert_int_equal(xen_pv_start(&pv, 7, &err), -1);
    assert_non_null(strstr(err.text, why));
    assert_null(pv);
    put_begin();
}

static void r10_streams_refused(void **state)
{
    uint32_t length;

    (void)state;
    put_page_data(&start, PAGES - 1, 2, (uint8_t[]){0, 0}, 1);
    refused("page 6 of a domain of 6");
    put_page_data(&start, 0, 1, (uint8_t[]){0}, 1);
    length = htole32(8 + 8 + 2 * PAGE_SIZE);
    memcpy(start.data + start.len - PAGE_SIZE - 20, &length, sizeof(length));
    refused("PAGE_DATA of 8208 octets");
    stream_put_record(&start, STREAM_PAGE_DATA, "\1\20\0\0\0\0\0", 8); /* 4097 pages */
    refused("PAGE_DATA of 4097 pages");
    stream_put_record(&start, STREAM_PAGE_DATA, "", 0);
    refused("PAGE_DATA of 0 octets");
    stream_put_record(&start, STREAM_PV_P2M_FRAMES, "12345678", 8);
    refused("X86_PV_P2M_FRAMES");
    start.len -= 24;
    refused("no X86_PV_P2M_FRAMES");
    stream_put_record(&start, STREAM_SHARED_INFO, "", 0);
    memset(start.data + start.len - 4, 0xff, 4);
    refused("record of 4294967295 octets");
}

/* In the middle of a write that nobody reads. */
static void stops_whatever_it_does(void **state)
{
    struct xen_pv *pv;
    struct error err;

    (void)state;
    assert_int_equal(xen_pv_start(&pv, 7, &err), 0);
    xen_pv_stop(pv);
    xen_pv_stop(NULL);
    endless = true;
    put_page_data(&checkpoint, 0, 4, (uint8_t[]){0, 0, 0, 0}, 1);
    stream_put_record(&start, STREAM_PAGE_DATA, "", 0); /* refused, with more on its way than the pipe holds */
    refused("PAGE_DATA of 0 octets");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(r4_r8_checkpoints, set_up),
        cmocka_unit_test_setup(complaints, set_up),
        cmocka_unit_test_setup(r8_tracked_by_somebody_else, set_up),
        cmocka_unit_test_setup(r10_streams_refused, set_up),
        cmocka_unit_test_setup(stops_whatever_it_does, set_up),
    };
    int rc;

    signal(SIGPIPE, SIG_IGN);
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    buffer_free(&start);
    buffer_free(&pass);
    buffer_free(&checkpoint);
    return rc;
}
