/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which pages of another process's memory were written since the last look.
 *
 *   uffd      userfaultfd WP_ASYNC, armed inside the guest's process (tracker_arm, or vm/uffd-preload.c under QEMU),
 *             and PAGEMAP_SCAN on its /proc/PID/pagemap from here.  Linux 6.7 or later.  Costs what is dirty
 *             plus a look at the page tables, 0.4 ms a populated GiB.  It does not see writes through other
 *             mappings of the same file.
 *   compare   compares all memory with a shadow copy: any kernel, 55 ms a GiB, and twice the memory.
 *
 * Pages that the memory's file has no data for (holes: never written, so zero) are neither read nor reported, so
 * that a large guest which uses little costs little.  A replica therefore begins as zeros.
 *
 * Source of the interface: Linux Documentation/admin-guide/mm/pagemap.rst and userfaultfd.rst.
 */
#ifndef REMUS_TRACKER_H
#define REMUS_TRACKER_H

#include <sys/types.h>

#include "common/bitmap.h"
#include "common/error.h"

struct tracker;

struct tracker_target {
    pid_t pid;              /* process that maps the guest's memory */
    uint64_t address;       /* where, in that process; 0 = not armed there, uffd is impossible */
    const uint8_t *memory;  /* the same memory as mapped here */
    uint64_t pages;
    int fd;                 /* the file behind it, from offset 0; stays the caller's, open as long as the
                             * tracker.  0 = unknown: then every page counts as data. */
};

/* In the guest's process: puts [memory, memory + len) under asynchronous write protection, for the process's life.
 * 0, or -1 with errno (ENOSYS/EINVAL: the kernel has it not).  Uses system calls only. */
int tracker_arm(void *memory, size_t len);

/* want: "auto" (uffd, else compare), "uffd" or "compare". */
struct tracker *tracker_new(const char *want, const struct tracker_target *target,
                            struct error *err);
const char *tracker_name(const struct tracker *t);

/*
 * Where to copy reported pages from: the guest's memory, or for `compare` its shadow, which is the state that the
 * next scan compares with.  (A copy from the memory of a running guest could catch a page that then changes back to
 * what the shadow holds, and would never be corrected.)
 */
const uint8_t *tracker_memory(const struct tracker *t);

/* As vm_ops.scan: ORs the dirty pages into the bitmap and starts afresh.  The first scan reports every page
 * that has data. */
int tracker_scan(struct tracker *t, struct bitmap *dirty, struct error *err);
void tracker_free(struct tracker *t);

#endif
