/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Named faults, so that tests can crash a daemon, or lose something, at an exact step.
 *
 *     REMUS_FAULT=ack-lost@17,backup-before-apply@40 remusd ...
 *
 * Each NAME@EPOCH fires once.  NAME alone fires at the first opportunity.  Costs one load when nothing is set.
 * The names are listed in docs/HACKING.md.
 */
#ifndef REMUS_FAULT_H
#define REMUS_FAULT_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"

#define FAULT_MAX 16

/* Adds the faults of a list as above (the environment's is read on first use). */
int fault_set(const char *list, struct error *err);

/* True when the fault is set for this epoch, and no longer set from then on. */
bool fault_hit(const char *name, uint64_t epoch);

/* Ends the process by SIGKILL when the fault is set: the crash that the rules must survive. */
void fault_crash(const char *name, uint64_t epoch);

#endif
