/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a domain's configuration says of it: pure, and without Xen's headers. */
#ifndef REMUS_XEN_FACTS_H
#define REMUS_XEN_FACTS_H

#include "vm/learn.h"

/*
 * config: libxl's JSON, from libxl itself or from the primary (R10).  pages: that the domain has.  id: of the domain on this host; 0
 * when there is none yet, whose vif then has no name unless the configuration gives it one.
 */
int xen_facts(struct vm_facts *facts, const char *config, size_t len, uint64_t pages, unsigned id, struct error *err);

/* The domain that the configuration belongs to is there. */
void xen_facts_of(struct vm_facts *facts, unsigned id);

#endif
