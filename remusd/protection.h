/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One protected VM: its guest, its packets, its backup, and a thread that looks after them.
 * All functions may be called from any thread.
 */
#ifndef REMUS_PROTECTION_H
#define REMUS_PROTECTION_H

#include <jansson.h>
#include <stdbool.h>

#include "common/config.h"
#include "common/error.h"

struct protection;

enum protection_request {
    REQUEST_NONE,
    REQUEST_PROTECT,
    REQUEST_UNPROTECT,  /* says goodbye, lets held output pass; the operator's word (R7) */
    REQUEST_SWITCHOVER,
    REQUEST_STOP,       /* the daemon ends: says goodbye, the guest goes on */
};

/* Opens port and guest in the thread; a failure shows in the status.  cfg must outlive it. */
struct protection *protection_start(const struct vm_config *cfg, struct error *err);

/* Takes effect soon; watch the status.  -1 when it makes no sense in the present state (err says why). */
int protection_request(struct protection *p, enum protection_request request, struct error *err);

/* Begins to compare the disks with the backup's; the status has progress and result. */
int protection_verify(struct protection *p, bool repair, struct error *err);

void protection_set_interval(struct protection *p, unsigned ms);

const char *protection_vm(const struct protection *p);

/* The object that remusctl(8) documents under "status". */
json_t *protection_status(struct protection *p);
/* HOST:PORT of the backup. */
const char *protection_backup(const struct protection *p);

/* -1 as long as it holds what the guest sends, or may: then stopping it would leave the guest so. */
int protection_may_forget(struct protection *p, struct error *err);

/* What preflight_both() (preflight.h) is to be asked.  At least two checkpoints must have been sent for `needs'. */
void protection_preflight(struct protection *p, const struct vm_config **cfg, double *needs);

/* Requests the stop and waits for it.  forget: for good, and what the guest sends goes its own way from now on. */
void protection_stop(struct protection *p, bool forget);

#endif
