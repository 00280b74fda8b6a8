/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What this host lacks for a VM, all of it, before anything is touched: what the protection would find out one by one,
 * or only at the takeover.  What can be seen from both hosts together only (versions, processors, sizes of disks), the
 * handshake compares.
 */
#ifndef REMUS_PREFLIGHT_H
#define REMUS_PREFLIGHT_H

#include <jansson.h>

#include "common/config.h"

/*
 * {"vm", "role", "platform", "lacks": [{"what": ..., "remedy": ...}, ...]}, a new reference.  primary: the guest runs here, or will;
 * otherwise its replica does.  From any thread, takes milliseconds, changes nothing.
 */
json_t *preflight(const struct vm_config *cfg, bool primary);

/* For platforms (vm.h). */
void preflight_lacks(json_t *lacks, const char *remedy, const char *what, ...) __attribute__((format(printf, 3, 4)));
/* Can the kernel hold the packets of a guest's interface, as netbuf = says?  For a platform whose section need not name it; else asked already. */
void preflight_netbuf(const struct vm_config *cfg, bool primary, json_t *lacks);
bool preflight_program(const char *name); /* is it where root's PATH leads? */

#endif
