/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "domain.h"
#include "vm/preflight.h"
#include "xen.h"

#define BLOCK_SCRIPT XEN_SCRIPTS "/block-remus"

static void check_host(const struct vm_config *cfg, json_t *lacks)
{
    char path[64], remedy[128];

    if (*cfg->guest_bridge) {
        snprintf(path, sizeof(path), "/sys/class/net/%s/bridge", cfg->guest_bridge);
        snprintf(remedy, sizeof(remedy), "ip link add %s type bridge; ip link set %s up", cfg->guest_bridge,
                 cfg->guest_bridge);
        if (access(path, F_OK) < 0)
            preflight_lacks(lacks, remedy, "there is no bridge %s (guest-bridge)", cfg->guest_bridge);
        if (*cfg->tap && access("/dev/net/tun", F_OK) < 0)
            preflight_lacks(lacks, "modprobe tun, and a line tun in /etc/modules-load.d", "the kernel has no tap interfaces");
    }
    if (cfg->disk_count == 0)
        return;
    if (access(BLOCK_SCRIPT, X_OK) < 0)
        preflight_lacks(lacks, "make install puts it there; or configure --with-xen-scripts=DIR", "%s: %m", BLOCK_SCRIPT);
    if (!preflight_program("nbd-client"))
        preflight_lacks(lacks, "apt install nbd-client", "nbd-client is not installed");
    if (access("/sys/module/nbd", F_OK) < 0)
        preflight_lacks(lacks, "modprobe nbd, and a line nbd in /etc/modules-load.d", "the kernel has no nbd devices");
}

static void check_guest(struct xen_domain *d, const struct vm_config *cfg, json_t *lacks)
{
    cleanup_free char *can_suspend = NULL, *channel = NULL;
    struct vm_learned learned;
    struct vm_facts facts;
    struct error err;
    xc_dominfo_t info;
    char path[64];
    unsigned len;

    d->id = xen_domain_find(d, cfg->name);
    if (!d->id) {
        preflight_lacks(lacks, "xl create", "there is no domain %s", cfg->name);
        return;
    }
    vm_learned_init(&learned, cfg);
    if (xen_domain_facts(d, &facts, &err) < 0 || vm_learn(&learned, cfg, &facts, &err) < 0 ||
        xen_domain_check(d, &learned.cfg, &err) < 0)
        preflight_lacks(lacks, "xl destroy, mend xl.cfg or its section, xl create", "domain %s: %s", cfg->name, err.text);
    else if (!*cfg->vif && *learned.cfg.vif)
        preflight_netbuf(cfg, true, lacks);
    if (cfg->memory_bytes && xen_domain_info(d, &info) && info.nr_pages > cfg->memory_bytes / PAGE_SIZE + XEN_ROOM_PAGES)
        preflight_lacks(lacks, "set memory in its section, on both hosts, or leave it out", "domain %s has %lu MiB, its section says %" PRIu64,
                        cfg->name, info.nr_pages >> 8, cfg->memory_bytes >> 20);
    if (xen_domain_info(d, &info) && info.paused)
        preflight_lacks(lacks, "xl unpause", "domain %s is paused: it cannot suspend", cfg->name);
    snprintf(path, sizeof(path), "/local/domain/%u/control/feature-suspend", d->id);
    can_suspend = xs_read(d->xs, XBT_NULL, path, &len);
    snprintf(path, sizeof(path), "/local/domain/%u/device/suspend/event-channel", d->id);
    channel = xs_read(d->xs, XBT_NULL, path, &len);
    if ((!can_suspend || strcmp(can_suspend, "1") != 0) && !(channel && *channel))
        preflight_lacks(lacks, "give it a kernel with CONFIG_HIBERNATE_CALLBACKS, or wait until it has booted",
                        "the guest does not say that it can suspend (control/feature-suspend)");
}

static void check_backup(struct xen_domain *d, const struct vm_config *cfg, json_t *lacks)
{
    char replica[CONFIG_NAME_MAX + sizeof(XEN_REPLICA_SUFFIX)];
    uint64_t want = cfg->memory_bytes / PAGE_SIZE + XEN_KEEPS_PAGES;
    xc_physinfo_t physical;

    if (xen_domain_find(d, cfg->name))
        preflight_lacks(lacks, "end it, if it is not the one that was taken over", "domain %s runs on this host", cfg->name);
    snprintf(replica, sizeof(replica), "%s" XEN_REPLICA_SUFFIX, cfg->name);
    if (!xen_domain_find(d, replica) && xc_physinfo(d->xc, &physical) == 0 && physical.free_pages < want)
        preflight_lacks(lacks, "give dom0 less (dom0_mem=), or end a domain",
                        "the replica needs %" PRIu64 " MiB, Xen has %" PRIu64 " MiB free", want >> 8,
                        (uint64_t)physical.free_pages >> 8);
    if (access(XEN_SCRIPTS, X_OK) < 0)
        preflight_lacks(lacks, "apt install xen-utils-common", "%s: %m", XEN_SCRIPTS);
}

int xen_describe(const struct vm_config *cfg, uint64_t *pages, char profile[VM_PROFILE_MAX + 1], struct buffer *description,
                 struct error *err)
{
    __attribute__((cleanup(buffer_free))) struct buffer head = {0};
    struct xen_range all = {0, cfg->memory_bytes / PAGE_SIZE};
    struct xen_machine m = {.ranges = &all, .range_count = 1, .config = "{}", .config_length = 2};
    static const uint32_t pv_info[2] = {8 | 4 << 8}; /* width and levels of a 64-bit guest */
    unsigned major, minor;
    struct xen_domain d;
    xc_dominfo_t info;
    bool pv = false;
    int rc = -1;

    if (xen_domain_connect(&d, err) < 0)
        return -1;
    d.id = xen_domain_find(&d, cfg->name);
    if (d.id && xen_domain_info(&d, &info)) {
        all.count = info.nr_pages;
        pv = !info.hvm;
    }
    if (all.count == 0) /* nobody knows yet */
        all.count = 1;
    m.pages = *pages = all.count;
    xen_version(&d, &major, &minor);
    if (xen_profile(&d, pv, profile, err) == 0 && stream_put_head(&head, pv, major, minor) == 0 &&
        (!pv || stream_put_record(&head, STREAM_PV_INFO, pv_info, sizeof(pv_info)) == 0) && xen_policy_put(&d, &head, err) == 0) {
        m.head = head.data;
        m.head_length = head.len;
        rc = xen_machine_put(description, &m) < 0 ? error_set(err, "no memory") : 0;
    }
    xen_domain_disconnect(&d);
    return rc;
}

void xen_preflight(const struct vm_config *cfg, bool primary, json_t *lacks)
{
    struct xen_domain d;
    struct error err;

    check_host(cfg, lacks);
    if (xen_domain_connect(&d, &err) < 0) {
        preflight_lacks(lacks, "boot Xen, and run this in dom0 as root", "%s", err.text);
        return;
    }
    if (primary)
        check_guest(&d, cfg, lacks);
    else
        check_backup(&d, cfg, lacks);
    xen_domain_disconnect(&d);
}
