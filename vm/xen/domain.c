/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <inttypes.h>
#include <libxl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <xenctrl.h>
#include <xenguest.h>
#include <xenstore_lib.h>
#include <xentoollog.h>

#include "common/cleanup.h"
#include "domain.h"
#include "policy.h"

#define MAP_AT_ONCE 16384u /* pages */

/* Where the daemon has died xs_open takes the kernel's way to it, which waits for ever: try its socket first. */
struct xs_handle *xen_xenstore(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), dead;

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", xs_daemon_socket());
    dead = fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 && errno != ENOENT ? errno : 0;
    if (fd >= 0)
        close(fd);
    errno = dead;
    return dead ? NULL : xs_open(0);
}

int xen_domain_connect(struct xen_domain *d, struct error *err)
{
    *d = (struct xen_domain){0};
    d->xc = xc_interface_open(NULL, NULL, 0);
    if (!d->xc) {
        error_set(err, "Xen's control interface: %s; is this a dom0, and are we root?",
                  strerror(errno));
        goto fail;
    }
    d->fm = xenforeignmemory_open(NULL, 0);
    d->xs = d->fm ? xen_xenstore() : NULL;
    if (d->xs)
        return 0;
    error_set(err, d->fm ? "xenstore: %s; does xenstored run?" : "Xen's foreign memory: %s",
              strerror(errno));
fail:
    xen_domain_disconnect(d);
    return -1;
}

void xen_domain_disconnect(struct xen_domain *d)
{
    if (d->xs)
        xs_close(d->xs);
    if (d->fm)
        xenforeignmemory_close(d->fm);
    if (d->xc)
        xc_interface_close(d->xc);
    *d = (struct xen_domain){0};
}

uint32_t xen_domain_find(struct xen_domain *d, const char *name)
{
    unsigned count = 0;
    cleanup_free char **ids = xs_directory(d->xs, XBT_NULL, "/local/domain", &count);
    uint32_t found = 0;

    for (unsigned i = 0; ids && i < count && !found; i++) {
        char path[64];
        unsigned len;
        cleanup_free char *value = NULL;

        snprintf(path, sizeof(path), "/local/domain/%.16s/name", ids[i]);
        value = xs_read(d->xs, XBT_NULL, path, &len);
        if (value && strcmp(value, name) == 0)
            found = (uint32_t)strtoul(ids[i], NULL, 10);
    }
    return found;
}

bool xen_domain_info(struct xen_domain *d, xc_dominfo_t *info)
{
    return xc_domain_getinfo(d->xc, d->id, 1, info) == 1 && info->domid == d->id;
}

/* What is gone without having crashed was ended by its operator. */
enum vm_health xen_domain_health(struct xen_domain *d)
{
    xc_dominfo_t info;

    if (!xen_domain_info(d, &info))
        return VM_SHUT_DOWN;
    if (info.shutdown &&
        (info.shutdown_reason == SHUTDOWN_crash || info.shutdown_reason == SHUTDOWN_watchdog))
        return VM_DIED;
    return info.dying || (info.shutdown && info.shutdown_reason != SHUTDOWN_suspend) ? VM_SHUT_DOWN
                                                                                     : VM_ALIVE;
}

static int map_range(struct xen_domain *d, uint8_t *base, const struct xen_range *range,
                     int protection, struct error *err)
{
    cleanup_free xen_pfn_t *pfns = calloc(MAP_AT_ONCE, sizeof(*pfns));
    cleanup_free int *errors = calloc(MAP_AT_ONCE, sizeof(*errors));

    if (!pfns || !errors)
        return error_set(err, "no memory");
    for (uint64_t done = 0; done < range->count;) {
        uint64_t left = range->count - done, n = left < MAP_AT_ONCE ? left : MAP_AT_ONCE;
        uint64_t first = range->first + done;

        for (uint64_t i = 0; i < n; i++)
            pfns[i] = first + i;
        if (!xenforeignmemory_map2(d->fm, d->id, base + first * PAGE_SIZE, protection, MAP_FIXED, n,
                                   pfns, errors))
            return error_set(err, "cannot map %" PRIu64 " pages of domain %u: %s", n, d->id,
                             strerror(errno));
        for (uint64_t i = 0; i < n; i++)
            if (errors[i])
                return error_set(err, "cannot map page %" PRIx64 " of domain %u: %s", first + i,
                                 d->id, strerror(errors[i] < 0 ? -errors[i] : errors[i]));
        done += n;
    }
    return 0;
}

uint8_t *xen_domain_map(struct xen_domain *d, uint64_t pages, const struct xen_range *ranges,
                        unsigned count, bool writable, struct error *err)
{
    int protection = PROT_READ | (writable ? PROT_WRITE : 0);
    uint8_t *base = mmap(NULL, pages * PAGE_SIZE, protection,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (base == MAP_FAILED) {
        error_set(err, "no address space for %" PRIu64 " pages: %s", pages, strerror(errno));
        return NULL;
    }
    for (unsigned i = 0; i < count; i++)
        if (map_range(d, base, &ranges[i], protection, err) < 0) {
            munmap(base, pages * PAGE_SIZE);
            return NULL;
        }
    return base;
}

/* libxl starts programs: it must reap only these. */
static const libxl_childproc_hooks own_children = {
    .chldowner = libxl_sigchld_owner_libxl_always_selective_reap,
};

libxl_ctx *xen_libxl(struct error *err)
{
    xentoollog_logger *log =
        (xentoollog_logger *)xtl_createlogger_stdiostream(stderr, XTL_ERROR, 0);
    libxl_ctx *ctx = NULL;

    if (!log || libxl_ctx_alloc(&ctx, LIBXL_VERSION, 0, log)) {
        error_set(err, "libxl does not start: is this a dom0?");
        return NULL;
    }
    libxl_childproc_setmode(ctx, &own_children, NULL);
    return ctx;
}

int xen_domain_destroy(struct xen_domain *d, struct error *err)
{
    libxl_ctx *ctx = xen_libxl(err);
    int rc;

    if (!ctx)
        return -1;
    rc = libxl_domain_destroy(ctx, d->id, NULL);
    libxl_ctx_free(ctx);
    return rc ? error_set(err, "libxl cannot destroy domain %u (%d)", d->id, rc) : 0;
}

void xen_version(struct xen_domain *d, unsigned *major, unsigned *minor)
{
    int version = xc_version(d->xc, XENVER_version, NULL);

    *major = (unsigned)version >> 16;
    *minor = (unsigned)version & 0xffff;
}

int xen_profile(struct xen_domain *d, bool pv, char profile[VM_PROFILE_MAX + 1], struct error *err)
{
    unsigned major, minor;

    xen_version(d, &major, &minor);
    if (major == 0)
        return error_set(err, "Xen does not tell its version");
    snprintf(profile, VM_PROFILE_MAX + 1, "xen %u.%u %s", major, minor, pv ? "pv" : "pvh");
    return 0;
}

struct policy {
    xc_cpu_policy_t *cpu;
    xen_cpuid_leaf_t *leaves;
    xen_msr_entry_t *msrs;
    uint32_t leaf_count, msr_count;
};

static void free_policy(struct policy *p)
{
    if (p->cpu)
        xc_cpu_policy_destroy(p->cpu);
    free(p->leaves);
    free(p->msrs);
}

/* system: an XEN_SYSCTL_cpu_policy_..., or -1 for the domain's. */
static int get_policy(struct xen_domain *d, int system, struct policy *p, struct error *err)
{
    *p = (struct policy){.cpu = xc_cpu_policy_init()};
    if (p->cpu && xc_cpu_policy_get_size(d->xc, &p->leaf_count, &p->msr_count) == 0) {
        p->leaves = calloc(p->leaf_count, sizeof(*p->leaves));
        p->msrs = calloc(p->msr_count, sizeof(*p->msrs));
        if (p->leaves && p->msrs &&
            (system < 0 ? xc_cpu_policy_get_domain(d->xc, d->id, p->cpu)
                        : xc_cpu_policy_get_system(d->xc, (unsigned)system, p->cpu)) == 0 &&
            xc_cpu_policy_serialise(d->xc, p->cpu, p->leaves, &p->leaf_count, p->msrs, &p->msr_count) == 0)
            return 0;
    }
    error_set(err, "%s CPU policy: %s", system < 0 ? "the domain's" : "this host's", strerror(errno));
    free_policy(p);
    return -1;
}

int xen_policy_put(struct xen_domain *d, struct buffer *head, struct error *err)
{
    struct policy p;
    int rc;

    if (get_policy(d, d->id ? -1 : XEN_SYSCTL_cpu_policy_hvm_default, &p, err) < 0)
        return -1;
    rc = stream_put_record(head, STREAM_CPUID_POLICY, p.leaves, p.leaf_count * sizeof(*p.leaves)) ||
         stream_put_record(head, STREAM_MSR_POLICY, p.msrs, p.msr_count * sizeof(*p.msrs)) ||
         stream_put_record(head, STREAM_STATIC_DATA_END, NULL, 0);
    free_policy(&p);
    return rc ? error_set(err, "no memory") : 0;
}

int xen_policy_check(struct xen_domain *d, const struct xen_machine *m, struct error *err)
{
    struct policy p;
    const uint8_t *leaves;
    char text[400];
    size_t length;
    unsigned n;

    _Static_assert(sizeof(*p.leaves) == POLICY_LEAF, "as in the stream");
    if (get_policy(d, m->pv ? XEN_SYSCTL_cpu_policy_pv_max : XEN_SYSCTL_cpu_policy_hvm_max, &p, err) < 0)
        return -1;
    leaves = stream_find(m->head, m->head_length, STREAM_CPUID_POLICY, &length);
    n = policy_missing(leaves, length, (const uint8_t *)p.leaves, p.leaf_count * sizeof(*p.leaves), text, sizeof(text));
    free_policy(&p);
    return n ? error_set(err, "the backup's processors cannot do what the domain was promised: %s", text) : 0;
}
