/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xencall.h>
#include <xenctrl.h>
#include <xenguest.h>
#include <xentoollog.h>

#include "pv.h"
#include "stream.h"
#include "vm/vm.h"
#include "xen.h"

#define PIPE_OCTETS (1 << 20)
#define HEADERS 40 /* image and domain header */
#define PFN_MASK ((UINT64_C(1) << 52) - 1)

/* libxenguest's first complaint: those behind it only say that it failed. */
struct complaint {
    xentoollog_logger logger;
    char text[200];
};

struct capture {
    struct xen_pv pv;
    uint32_t domid;
    int in, out; /* the stream: this end and the thread's */
    struct complaint complaint;
    xencall_handle *calls;
    mmu_update_t *canary; /* marks it as written */
    bool canary_came;     /* among the pages since it was */
    bool parked; /* once: what comes is of a checkpoint */
    pthread_t thread;
    bool running;
    bool taking; /* the thread's: between the end of its passes and the first checkpoint */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum order { NONE, PASS, TAKE, STOP } order;
};

/* --- libxenguest's thread --- */

static void complain(xentoollog_logger *logger, xentoollog_level level, int errnoval, const char *context, const char *format,
                     va_list ap)
{
    struct complaint *c = (struct complaint *)logger;

    (void)errnoval, (void)context;
    if (level >= XTL_ERROR && !*c->text)
        vsnprintf(c->text, sizeof(c->text), format, ap);
}

/* Until it is told what to do next.  A record of ours says that all before it is written. */
static enum order park(struct capture *c)
{
    const uint32_t record[2] = {htole32(STREAM_PARKED), 0};
    enum order order;

    if (write(c->out, record, sizeof(record)) != sizeof(record))
        return STOP;
    pthread_mutex_lock(&c->lock);
    while (c->order == NONE)
        pthread_cond_wait(&c->changed, &c->lock);
    order = c->order;
    if (order != STOP)
        c->order = NONE;
    pthread_mutex_unlock(&c->lock);
    return order;
}

/* Asked before each pass over a running domain's dirty pages, when it knows their number, and behind it, when it does not. */
static int policy(struct precopy_stats stats, void *arg)
{
    struct capture *c = arg;

    if (stats.dirty_count >= 0)
        return XGS_POLICY_CONTINUE_PRECOPY;
    switch (park(c)) {
    case PASS:
        return XGS_POLICY_CONTINUE_PRECOPY;
    case TAKE:
        c->taking = true;
        return XGS_POLICY_STOP_AND_COPY;
    default:
        return XGS_POLICY_ABORT;
    }
}

/* The domain is suspended when this returns. */
static int await_suspend(void *arg)
{
    struct capture *c = arg;
    bool taking = c->taking;

    c->taking = false;
    return taking || park(c) == TAKE;
}

static int go_on(void *arg)
{
    (void)arg;
    return 1;
}

static void *save(void *arg)
{
    struct capture *c = arg;
    struct save_callbacks callbacks = {.suspend = await_suspend, .precopy_policy = policy, .postcopy = go_on, .checkpoint = go_on, .data = c};
    xc_interface *xc = xc_interface_open(&c->complaint.logger, &c->complaint.logger, 0); /* one a thread */

    if (xc) {
        xc_domain_save(xc, c->out, c->domid, XCFLAGS_LIVE, &callbacks, XC_STREAM_REMUS, -1);
        xc_interface_close(xc);
    }
    close(c->out); /* and the other end knows */
    return NULL;
}

/* --- the stream --- */

static int get(struct capture *c, void *data, size_t len, struct error *err)
{
    uint8_t *at = data;

    while (len) {
        ssize_t n = read(c->in, at, len);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) { /* the thread is through, its complaint is there */
            pthread_join(c->thread, NULL);
            c->running = false;
            return error_set(err, "libxenguest gives up: %s", *c->complaint.text ? c->complaint.text : "it does not say why");
        }
        at += n;
        len -= (size_t)n;
    }
    return 0;
}

static int get_pages(struct capture *c, uint32_t length, struct bitmap *dirty, struct error *err)
{
    uint64_t pfns[STREAM_PAGES_MAX];
    uint32_t head[2], count, data = 0;

    if (length < sizeof(head) || get(c, head, sizeof(head), err) < 0)
        return length < sizeof(head) ? error_set(err, "libxenguest: PAGE_DATA of %" PRIu32 " octets", length) : -1;
    count = le32toh(head[0]);
    if (count > STREAM_PAGES_MAX || length < sizeof(head) + 8 * count)
        return error_set(err, "libxenguest: PAGE_DATA of %" PRIu32 " pages in %" PRIu32 " octets", count, length);
    if (get(c, pfns, 8 * count, err) < 0)
        return -1;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t pfn = le64toh(pfns[i]) & PFN_MASK;
        uint8_t type = (uint8_t)(le64toh(pfns[i]) >> STREAM_TYPE_SHIFT);

        if (pfn >= c->pv.pages)
            return error_set(err, "libxenguest: page %" PRIx64 " of a domain of %" PRIx64, pfn, c->pv.pages);
        c->pv.types[pfn] = type;
        c->canary_came |= pfn == c->canary->val;
        if (!stream_has_data(type))
            continue;
        data += PAGE_SIZE;
        if (get(c, c->pv.memory + pfn * PAGE_SIZE, PAGE_SIZE, err) < 0)
            return -1;
        if (dirty)
            bitmap_set(dirty, pfn);
    }
    return length == sizeof(head) + 8 * count + data ? 0 : error_set(err, "libxenguest: PAGE_DATA of %" PRIu32 " octets", length);
}

/* The numbers of pages end with the table from them to machine frames. */
static int make_room(struct capture *c, const uint8_t *frames, uint32_t length, struct error *err)
{
    uint32_t last;

    uint64_t first;

    if (c->pv.memory || length < 16)
        return error_set(err, "libxenguest: a second X86_PV_P2M_FRAMES, or a short one");
    memcpy(&last, frames + 4, sizeof(last));
    memcpy(&first, frames + 8, sizeof(first));
    c->canary->val = le64toh(first);
    c->pv.pages = (uint64_t)le32toh(last) + 1;
    c->pv.types = malloc(c->pv.pages);
    c->pv.memory = mmap(NULL, c->pv.pages * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (c->pv.memory == MAP_FAILED)
        c->pv.memory = NULL;
    if (!c->pv.memory || !c->pv.types)
        return error_set(err, "no memory for a copy of %" PRIu64 " MiB", c->pv.pages >> 8);
    memset(c->pv.types, STREAM_XTAB, c->pv.pages);
    return 0;
}

/* A record that is no page's, into head or state. */
static int get_other(struct capture *c, uint32_t type, uint32_t length, struct error *err)
{
    struct buffer *to = c->parked ? &c->pv.state : &c->pv.head;
    size_t at = to->len + 8, padded = (length + 7) & ~(size_t)7;
    const uint32_t record[2] = {htole32(type), htole32(length)};

    if (length > VM_STATE_MAX || buffer_append(to, record, sizeof(record)) < 0 || buffer_reserve(to, padded) < 0)
        return error_set(err, "no memory for a record of %" PRIu32 " octets", length);
    if (get(c, to->data + at, padded, err) < 0)
        return -1;
    to->len += padded;
    return type == STREAM_PV_P2M_FRAMES ? make_room(c, to->data + at, length, err) : 0;
}

/*
 * Xen lets xl take log-dirty mode over without a word, and what one of two reads the other never sees (R8).  So one page, the canary, is
 * marked as written behind each read, the table's first: when it is not among what libxenguest brings next, somebody else has read.
 */
static int find_canary(struct capture *c, struct error *err)
{
    xc_interface *xc = xc_interface_open(&c->complaint.logger, &c->complaint.logger, 0);
    struct xc_domain_meminfo info = {0};
    int rc = xc ? xc_map_domain_meminfo(xc, c->domid, &info) : -1;

    if (rc == 0 && c->canary->val < info.p2m_size)
        c->canary->ptr = info.p2m_table[c->canary->val] << XC_PAGE_SHIFT | MMU_MACHPHYS_UPDATE;
    if (rc == 0)
        xc_unmap_domain_meminfo(xc, &info);
    if (xc)
        xc_interface_close(xc);
    return c->canary->ptr ? 0 : error_set(err, "the domain's table of frames cannot be read");
}

static int mark_canary(struct capture *c, struct error *err)
{
    c->canary_came = false;
    return xencall4(c->calls, __HYPERVISOR_mmu_update, (uintptr_t)c->canary, 1, 0, c->domid) < 0
               ? error_set(err, "a page cannot be marked as written: %s", strerror(errno))
               : 0;
}

/* All that comes until libxenguest is parked. */
static int get_all(struct capture *c, struct bitmap *dirty, struct error *err)
{
    for (;;) {
        uint32_t record[2], type, length;

        if (get(c, record, sizeof(record), err) < 0)
            return -1;
        type = le32toh(record[0]);
        length = le32toh(record[1]);
        if (type == STREAM_PARKED)
            break;
        if (type == STREAM_CHECKPOINT)
            continue;
        if ((type == STREAM_PAGE_DATA ? get_pages(c, length, dirty, err) : get_other(c, type, length, err)) < 0)
            return -1;
    }
    return c->pv.memory ? 0 : error_set(err, "libxenguest: no X86_PV_P2M_FRAMES");
}

static int get_changes(struct capture *c, struct bitmap *dirty, struct error *err)
{
    if (get_all(c, dirty, err) < 0)
        return -1;
    return c->canary_came ? mark_canary(c, err) : error_set(err, XEN_NOT_OURS);
}

static void tell(struct capture *c, enum order order)
{
    pthread_mutex_lock(&c->lock);
    c->order = order;
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

int xen_pv_pass(struct xen_pv *pv, struct bitmap *dirty, struct error *err)
{
    struct capture *c = (struct capture *)pv;

    tell(c, PASS);
    return get_changes(c, dirty, err);
}

int xen_pv_take(struct xen_pv *pv, struct bitmap *dirty, struct error *err)
{
    struct capture *c = (struct capture *)pv;

    pv->taken = true;
    buffer_clear(&pv->state);
    tell(c, TAKE);
    return get_changes(c, dirty, err);
}

static int begin(struct capture *c, struct error *err)
{
    int rc = pthread_create(&c->thread, NULL, save, c);

    if (rc) {
        close(c->out);
        return error_set(err, "cannot start a thread: %s", strerror(rc));
    }
    c->running = true;
    c->calls = xencall_open(NULL, 0);
    c->canary = c->calls ? xencall_alloc_buffer(c->calls, sizeof(*c->canary)) : NULL;
    if (!c->canary)
        return error_set(err, "calls of Xen: %s", strerror(errno));
    memset(c->canary, 0, sizeof(*c->canary));
    if (buffer_reserve(&c->pv.head, HEADERS) < 0)
        return error_set(err, "no memory");
    if (get(c, c->pv.head.data, HEADERS, err) < 0)
        return -1;
    c->pv.head.len = HEADERS;
    return get_all(c, NULL, err) < 0 || find_canary(c, err) < 0 ? -1 : mark_canary(c, err);
}

int xen_pv_start(struct xen_pv **pv, uint32_t domid, struct error *err)
{
    struct capture *c = calloc(1, sizeof(*c));
    int ends[2];

    if (!c || pipe2(ends, O_CLOEXEC) < 0) {
        free(c);
        return error_set(err, "libxenguest's stream: %s", strerror(errno));
    }
    c->domid = domid;
    c->in = ends[0];
    c->out = ends[1];
    c->complaint.logger.vmessage = complain;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    fcntl(c->in, F_SETPIPE_SZ, PIPE_OCTETS);
    *pv = &c->pv;
    if (begin(c, err) == 0) {
        c->parked = true;
        return 0;
    }
    xen_pv_stop(*pv);
    *pv = NULL;
    return -1;
}

void xen_pv_stop(struct xen_pv *pv)
{
    struct capture *c = (struct capture *)pv;

    if (!c)
        return;
    close(c->in); /* it writes no further */
    tell(c, STOP);
    if (c->running)
        pthread_join(c->thread, NULL);
    if (c->canary)
        xencall_free_buffer(c->calls, c->canary);
    xencall_close(c->calls);
    if (pv->memory)
        munmap(pv->memory, pv->pages * PAGE_SIZE);
    free(pv->types);
    buffer_free(&pv->head);
    buffer_free(&pv->state);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->changed);
    free(c);
}
