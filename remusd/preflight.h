/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What both hosts and the link between them lack for a VM: this host's own list (vm/preflight.h), the backup's, which it gives
 * to a HELLO with HELLO_PREFLIGHT on a connection of its own, and what measuring that connection shows.  A protection that
 * there is goes on undisturbed.
 */
#ifndef REMUS_REMUSD_PREFLIGHT_H
#define REMUS_REMUSD_PREFLIGHT_H

#include <jansson.h>

#include "common/config.h"

/*
 * vm/preflight.h's object; "host" of a lack may also be "backup" or "link".  And "backup": the address, and "link": null or
 * {"round_trip_ms", "clock_ahead_ms" (the backup's), "mib_s"}.  to: HOST:PORT.  needs: octets a second that its checkpoints
 * come to, 0 when that is not known.  Takes some seconds at most, on any thread
 * but one that must not wait.
 */
json_t *preflight_both(const struct vm_config *cfg, const char *to, double needs);

#endif
