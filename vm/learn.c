/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <inttypes.h>
#include <string.h>
#include <strings.h>

#include "learn.h"

void vm_learned_init(struct vm_learned *l, const struct vm_config *section)
{
    *l = (struct vm_learned){.cfg = *section};
}

static int check(const struct vm_config *s, const struct vm_facts *f, struct error *err)
{
    if (!*f->mac)
        return !*s->tap && !*s->vif && !*s->mac && !*s->guest_bridge
                   ? 0
                   : error_set(err, "it has no vif, but its section a tap, vif, mac or guest-bridge: add the one or remove "
                                    "the others");
    if (*s->mac && strcasecmp(s->mac, f->mac) != 0)
        return error_set(err, "its vif has mac %s, its section says %s: make them equal, or leave mac out", f->mac, s->mac);
    if (*s->vif && strcmp(s->vif, f->vif) != 0)
        return error_set(err, "its vif is called %s, its section says %s: add vifname=%s to it in xl.cfg, or leave vif out",
                         f->vif, s->vif, s->vif);
    if (*s->guest_bridge && strcmp(s->guest_bridge, f->bridge) != 0)
        return error_set(err, "its vif is on bridge %s, its section says guest-bridge = %s: make them equal%s",
                         *f->bridge ? f->bridge : "none", s->guest_bridge, *s->tap ? "" : ", or leave guest-bridge out");
    if (*s->tap && !*f->bridge)
        return error_set(err, "its vif is on no bridge, but its section has tap = %s: give it a bridge of its own, or leave "
                              "tap out", s->tap);
    return 0;
}

int vm_learn(struct vm_learned *l, const struct vm_config *section, const struct vm_facts *facts, struct error *err)
{
    struct vm_config *cfg = &l->cfg;
    struct vm_facts *f = &l->facts;

    if (check(section, facts, err) < 0)
        return -1;
    *f = *facts;
    cfg->memory_bytes = section->memory_bytes ? section->memory_bytes : f->memory_bytes;
    cfg->mac = f->mac;
    cfg->guest_bridge = f->bridge;
    cfg->vif = *section->tap ? section->vif : f->vif;
    cfg->nfqueue = section->nfqueue || *section->vif ? section->nfqueue : 2 * f->id;
    return 0;
}
