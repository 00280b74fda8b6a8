/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * To be preloaded into whatever takes checkpoints of a domain: notes in file $XEN_TIMES when it calls Xen. A line each, all
 * processes into one file, in microseconds of CLOCK_MONOTONIC:
 *
 *     TIME request             asks the guest to suspend (xenstore control/shutdown)
 *     TIME suspended           was told that the domain is
 *     TIME scanned PAGES       has read and cleared the dirty pages; those that it mapped one by one since the last time
 *     TIME resume              lets it run again ...
 *     TIME resumed             ... has done so
 *     TIME unpaused            of a domain that was restored
 *
 * So one and the same clock measures remusd and xl remus, whose phases happen in two processes.
 *
 * XEN_PRETEND=MAJOR.MINOR: that is what Xen says its version is.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <xenctrl.h>
#include <xenforeignmemory.h>
#include <xenstore.h>

static int asked; /* and not yet seen suspended */
static unsigned long mapped;

static void note(const char *what, unsigned long n)
{
    static int fd = -1;
    struct timespec t;
    char line[64];
    int len;

    clock_gettime(CLOCK_MONOTONIC, &t);
    if (fd < 0 && getenv("XEN_TIMES"))
        fd = open(getenv("XEN_TIMES"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    len = snprintf(line, sizeof(line), "%" PRIu64 " %s %lu\n", (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000, what, n);
    if (fd >= 0 && write(fd, line, (size_t)len) < 0)
        fd = -1;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

bool xs_write(struct xs_handle *h, xs_transaction_t t, const char *path, const void *data, unsigned int len)
{
    REAL(xs_write);

    if (strstr(path, "/control/shutdown") && len == strlen("suspend") && memcmp(data, "suspend", len) == 0) {
        note("request", 0);
        asked = 1;
    }
    return real(h, t, path, data, len);
}

static void look(int suspended)
{
    if (asked && suspended) {
        note("suspended", 0);
        asked = 0;
    }
}

int xc_domain_getinfo(xc_interface *xc, uint32_t first, unsigned int max, xc_dominfo_t *info)
{
    REAL(xc_domain_getinfo);
    int n = real(xc, first, max, info);

    look(n == 1 && info->shutdown);
    return n;
}

int xc_domain_getinfolist(xc_interface *xc, uint32_t first, unsigned int max, xc_domaininfo_t *info)
{
    REAL(xc_domain_getinfolist);
    int n = real(xc, first, max, info);

    look(n == 1 && info->flags & XEN_DOMINF_shutdown);
    return n;
}

long long xc_logdirty_control(xc_interface *xc, uint32_t id, unsigned int op, xc_hypercall_buffer_t *map,
                              unsigned long pages, unsigned int mode, xc_shadow_op_stats_t *stats)
{
    REAL(xc_logdirty_control);
    long long n = real(xc, id, op, map, pages, mode, stats);

    if (op == XEN_DOMCTL_SHADOW_OP_CLEAN) {
        note("scanned", mapped);
        mapped = 0;
    }
    return n;
}

void *xenforeignmemory_map(xenforeignmemory_handle *h, uint32_t id, int protection, size_t pages, const xen_pfn_t *pfns, int *errors)
{
    REAL(xenforeignmemory_map);

    mapped += pages;
    return real(h, id, protection, pages, pfns, errors);
}

int xc_domain_resume(xc_interface *xc, uint32_t id, int fast)
{
    REAL(xc_domain_resume);
    int rc;

    note("resume", 0);
    rc = real(xc, id, fast);
    note("resumed", 0);
    return rc;
}

int xc_version(xc_interface *xc, int what, void *arg)
{
    REAL(xc_version);
    const char *pretend = getenv("XEN_PRETEND");
    int major, minor;

    if (what == XENVER_version && pretend && sscanf(pretend, "%d.%d", &major, &minor) == 2)
        return major << 16 | minor;
    return real(xc, what, arg);
}

int xc_domain_unpause(xc_interface *xc, uint32_t id)
{
    REAL(xc_domain_unpause);
    int rc = real(xc, id);

    note("unpaused", 0);
    return rc;
}
