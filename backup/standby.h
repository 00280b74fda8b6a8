/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One VM that this host is the backup for: its replica, the link to its primary, the detector, and the thread
 * that owns them all.  All functions may be called from any thread.
 */
#ifndef REMUS_STANDBY_H
#define REMUS_STANDBY_H

#include <jansson.h>

#include "common/config.h"
#include "common/error.h"
#include "common/link.h"

struct standby;

/* cfg must outlive it. */
struct standby *standby_start(const struct vm_config *cfg, struct error *err);

const char *standby_vm(const struct standby *s);

/* A primary has said HELLO on this link.  Owns the link from here on; answers WELCOME or REFUSE itself. */
void standby_offer(struct standby *s, struct link *link, const struct proto_hello *hello);

/* The same with HELLO_PREFLIGHT.  Owns the link, and takes at most ten seconds. */
void standby_answer_preflight(struct standby *s, struct link *link, const struct proto_hello *hello);
/* Of a VM that nobody has protected here, with the section that it would have. */
void standby_answer_preflight_of(const struct vm_config *section, struct link *link, const struct proto_hello *hello);

/* The operator's word: take over, or throw the replica away.  Takes effect soon. */
int standby_takeover(struct standby *s, struct error *err);
int standby_discard(struct standby *s, struct error *err);

/* -1 as long as a primary is here, a checkpoint is held, or the VM runs here; active: only if it does. */
int standby_may_forget(struct standby *s, bool active, struct error *err);

/* The object that remusctl(8) documents under "status". */
json_t *standby_status(struct standby *s);
json_t *standby_preflight(const struct standby *s); /* vm/preflight.h */

/* Says goodbye to the primary, discards the replica (an active VM goes on), ends the thread. */
void standby_stop(struct standby *s);

#endif
