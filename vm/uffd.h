/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The parts of the kernel's interface that are newer than the headers of Debian 12 (Linux 6.1).
 *
 * Source: Linux Documentation/admin-guide/mm/userfaultfd.rst (asynchronous write protection) and pagemap.rst
 * (PAGEMAP_SCAN, section "Pagemap Scan IOCTL"); both since Linux 6.7.
 */
#ifndef REMUS_UFFD_H
#define REMUS_UFFD_H

#include <stdint.h>
#include <sys/ioctl.h>

#include <linux/fs.h>
#include <linux/userfaultfd.h>

/* Faults open only for this process's own code; needs no privilege. */
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

/* Pages that are not there yet can be protected too (by a marker in the page table). */
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif

/* The kernel resolves a write fault itself: it lifts the protection, nobody is told. */
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

#ifndef PAGEMAP_SCAN

#define PAGE_IS_WPALLOWED (1 << 0) /* the mapping is under asynchronous write protection */
#define PAGE_IS_WRITTEN (1 << 1)   /* written since it was protected */

#define PM_SCAN_WP_MATCHING (1 << 0)   /* protect again what is reported, in the same step */
#define PM_SCAN_CHECK_WPASYNC (1 << 1) /* EPERM when a mapping is not PAGE_IS_WPALLOWED */

struct page_region {
    uint64_t start, end; /* addresses, end exclusive */
    uint64_t categories;
};

struct pm_scan_arg {
    uint64_t size; /* of this struct: its version */
    uint64_t flags;
    uint64_t start, end;
    uint64_t walk_end; /* out: where the walk stopped; less than end when vec is full */
    uint64_t vec, vec_len;
    uint64_t max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask;
    uint64_t return_mask;
};

#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)

#endif

_Static_assert(sizeof(struct pm_scan_arg) == 96, "kernel interface");
_Static_assert(sizeof(struct page_region) == 24, "kernel interface");

#endif
