/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Sections that a daemon has made itself, of VMs that remusd.conf does not name: STATE_DIR/NAME.DAEMON.conf, in the language of
 * remusd.conf.  They outlive daemon and host: whoever has protected a VM, or holds its replica, must know it again (R7).
 */
#ifndef REMUS_KEPT_H
#define REMUS_KEPT_H

#include "config.h"

#define KEPT_MAX 64         /* VMs that a daemon keeps (R9) */
#define KEPT_KEYS_MAX 8192  /* octets of a section's keys */

/*
 * Makes the section `vm name { keys }', in the file first, and durable.  name and keys are checked as any of remusd.conf.  NULL
 * on failure, and no file is left.  config_free_section() frees it.
 */
struct vm_config *kept_make(const struct config *cfg, const char *daemon, const char *name, const char *keys,
                            struct error *err);

/* The same section, kept nowhere. */
struct vm_config *kept_draft(const struct config *cfg, const char *name, const char *keys, struct error *err);

/* The files that this daemon has made, to fn, which owns the section; one that remusd.conf names by now is left out.  Stops when fn returns -1. */
int kept_each(const struct config *cfg, const char *daemon, int (*fn)(void *arg, struct vm_config *vm, struct error *err),
              void *arg, struct error *err);

int kept_forget(const struct config *cfg, const char *daemon, const char *name, struct error *err);

#endif
