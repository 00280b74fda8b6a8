/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a section of remusd.conf leaves out because the platform knows it: memory, mac, guest-bridge, vif.  What the section
 * does say must be so.
 */
#ifndef REMUS_LEARN_H
#define REMUS_LEARN_H

#include "common/config.h"
#include "common/error.h"

#define LEARN_ID_MAX 32752u /* ids of a host's guests are below: two netfilter queues each */

/* What the platform says of a guest, checked by it to be well-formed (R10); 0 and "" for what it has not. */
struct vm_facts {
    unsigned id;             /* of this guest among those of the host, at this time */
    uint64_t memory_bytes;   /* whole MiB */
    char mac[18];            /* "": it has no network */
    char bridge[CONFIG_TAPLEN_MAX + 1];
    char vif[CONFIG_TAPLEN_MAX + 1];
    bool vif_named;          /* by its owner, so it is the same on every host */
    unsigned device;         /* else its number among those of the guest */
};

/* A section with what was learned.  Its address must not change: cfg points into it. */
struct vm_learned {
    struct vm_config cfg;
    struct vm_facts facts;
};

/* Nothing learned yet.  section must outlive it. */
void vm_learned_init(struct vm_learned *l, const struct vm_config *section);

/* Only memory, mac, guest-bridge, vif and nfqueue of l->cfg ever change.  On failure none has. */
int vm_learn(struct vm_learned *l, const struct vm_config *section, const struct vm_facts *facts, struct error *err);

#endif
