/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The Xen platform: a PVH or PV domain that xl runs.  remusd attaches to it, it never starts one.
 *
 * Primary (vm.c): the domain's memory is mapped once, at its place in one piece of address space,
 * and stays mapped; log-dirty mode says what was written; the guest suspends itself, as for `xl
 * save', and goes on.
 *
 * Backup (replica.c): at the handshake libxl begins to restore a domain (restore.c, a program of
 * its own) from a stream (stream.h) that stops ahead of the processors' state.  This domain has its
 * memory, which is mapped here and written by every checkpoint.  Takeover is the rest of the
 * stream.  A stream that ends early, because remus-backupd died, ends the domain: nothing runs
 * without a takeover (R7).
 *
 * A PV domain's page tables hold machine frames, so its memory is copied by libxenguest on the primary (pv.h), waits in a copy on the
 * backup as well, and goes into the domain through the stream.
 *
 * All of it is what libxenctrl, libxenforeignmemory, libxenstore and libxl offer to anybody, and
 * nothing in Xen, dom0 or guest is changed.
 */
#ifndef REMUS_XEN_H
#define REMUS_XEN_H

#include <stdio.h>
#include <time.h>

#include "vm/vm.h"

extern const struct vm_ops xen_vm_ops;
extern const struct replica_ops xen_replica_ops;
int xen_describe(const struct vm_config *cfg, uint64_t *pages, char profile[VM_PROFILE_MAX + 1], struct buffer *description,
                 struct error *err);
void xen_preflight(const struct vm_config *cfg, bool primary, struct json_t *lacks);

/* When a step of a takeover was done, in RUN_DIR/NAME.restore.log: seconds of CLOCK_MONOTONIC, words. */
static inline void xen_note(int fd, const char *step)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    dprintf(fd, "%lld.%06ld %s\n", (long long)t.tv_sec, t.tv_nsec / 1000, step);
}

#define XEN_NOT_OURS "something else tracks the domain's pages: xl migrate, save or remus"
#define XEN_RESTORE_PROGRAM "remus-xen-restore"
#define XEN_REPLICA_SUFFIX "--replica" /* of the domain's name until its takeover */

#endif
