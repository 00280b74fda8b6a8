/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which pages of another process's memory were written since the last look.
 *
 *   uffd      userfaultfd WP_ASYNC, armed inside the guest's process (tracker_arm, or vm/uffd-preload.c under QEMU),
 *             and PAGEMAP_SCAN on its /proc/PID/pagemap from here.  Linux 6.7 or later.  Costs what is dirty.
 *             It does not see writes through other mappings of the same file.
 *   compare   compares all memory with a shadow copy: any kernel, 55 ms a GiB, and twice the memory.
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
};

/* In the guest's process: puts [memory, memory + len) under asynchronous write protection.
 * 0, or -1 with errno (ENOSYS/EINVAL: the kernel has it not).  Uses system calls only. */
int tracker_arm(void *memory, size_t len);

/* want: "auto" (uffd, else compare), "uffd" or "compare". */
struct tracker *tracker_new(const char *want, const struct tracker_target *target,
                            struct error *err);
const char *tracker_name(const struct tracker *t);

/* As vm_ops.scan: ORs the dirty pages into the bitmap and starts afresh.  The first scan reports every page. */
int tracker_scan(struct tracker *t, struct bitmap *dirty, struct error *err);
void tracker_free(struct tracker *t);

#endif
