/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A domain, and what it takes to look at it: used by both sides. */
#ifndef REMUS_XEN_DOMAIN_H
#define REMUS_XEN_DOMAIN_H

#include <xenctrl.h>
#include <xenforeignmemory.h>
#include <xenstore.h>

#include "stream.h"
#include "vm/vm.h"

struct xen_domain {
    xc_interface *xc;
    xenforeignmemory_handle *fm;
    struct xs_handle *xs;
    uint32_t id;
};

/* Connects to hypervisor and xenstore; id is the caller's to set.  On failure nothing is open. */
int xen_domain_connect(struct xen_domain *d, struct error *err);
void xen_domain_disconnect(struct xen_domain *d);

/* xenstored, when it runs: NULL with errno set when not. */
struct xs_handle *xen_xenstore(void);

/* The id of the domain of this name; 0 when there is none. */
uint32_t xen_domain_find(struct xen_domain *d, const char *name);

/* False when the domain is gone. */
bool xen_domain_info(struct xen_domain *d, xc_dominfo_t *info);

/* How a domain fares that nobody here has suspended. */
enum vm_health xen_domain_health(struct xen_domain *d);

/*
 * `pages' pages of address space, zeros, in which the ranges are the domain's memory: anything
 * written between them stays here.  NULL on failure; munmap() undoes it.
 */
uint8_t *xen_domain_map(struct xen_domain *d, uint64_t pages, const struct xen_range *ranges,
                        unsigned count, bool writable, struct error *err);

#define XEN_ROOM_PAGES 1024u  /* that a domain may have beyond its memory = : ring pages, tables */
#define XEN_KEEPS_PAGES 4096u /* Xen's own for a domain: page tables and such */

/* What libxl says of the domain (vm.c). */
int xen_domain_facts(struct xen_domain *d, struct vm_facts *facts, struct error *err);

/* Is the domain one that can be protected as its section, with what was learned, says (vm.c)? */
int xen_domain_check(const struct xen_domain *d, const struct vm_config *cfg, struct error *err);

/* Ends the domain with all that libxl knows of it. */
int xen_domain_destroy(struct xen_domain *d, struct error *err);

/* "xen 4.17 pvh", or pv: hosts whose profiles are equal can hold each other's replicas.  The processors'
 * features are compared by Xen, from the description. */
int xen_profile(struct xen_domain *d, bool pv, char profile[VM_PROFILE_MAX + 1], struct error *err);
void xen_version(struct xen_domain *d, unsigned *major, unsigned *minor);

/* Appends the domain's CPU policy to a stream's head, or that of a new PVH domain on this host when id is 0. */
int xen_policy_put(struct xen_domain *d, struct buffer *head, struct error *err);
/* Can this host give a domain that policy?  head: of a machine that xen_machine_get() has checked. */
int xen_policy_check(struct xen_domain *d, const struct xen_machine *m, struct error *err);

/* A libxl context with which a daemon with threads and children can live; NULL with err set. */
struct libxl__ctx *xen_libxl(struct error *err);

#endif
