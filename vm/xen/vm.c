/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <dirent.h>
#include <errno.h>
#include <glob.h>
#include <inttypes.h>
#include <libxl.h>
#include <libxl_utils.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xencall.h>
#include <xenctrl.h>
#include <xen/hvm/params.h>
#include <xendevicemodel.h>
#include <xenevtchn.h>
#include <xenguest.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "domain.h"
#include "facts.h"
#include "pv.h"
#include "xen.h"

#define SUSPEND_NS                                                                                 \
    (60 * NS_PER_S) /* for a guest to suspend itself: it does not while it shuts down */
#define POLL_MS                                                                                    \
    20 /* between looks, should a watch be missed; more often takes the processor from the guest   \
        */
#define XENSTORE_NS NS_PER_S         /* between looks whether xenstored is still there */
#define CHANNEL_IDLE_NS (10 * NS_PER_S) /* then xl save may have the guest's event channel */
#define PROBE_AT_ONCE 1024u             /* pages: Xen's maximum */
#define SPECIAL_PAGES UINT64_C(0xfc000) /* where libxl puts a PVH domain's tables and rings */
#define SPECIAL_END UINT64_C(0x100000)
#define SUSPEND_WATCH "@releaseDomain" /* fires when a domain has suspended, too */
#define CHANNEL_TOKEN "channel"

struct xen_vm {
    struct vm vm;
    struct xen_domain domain;
    const struct vm_config *cfg;
    uint64_t nr_pages; /* as Xen counts them, when the memory was mapped */
    struct bitmap present;
    bool scanned; /* once, so that log-dirty mode knows all since */
    bool tracking;               /* log-dirty mode is on, and ours */
    xendevicemodel_handle *dm;   /* for the canary */
    uint64_t canary;             /* the first page that the domain has; see clean() */
    bool stale;          /* what is mapped is not what the domain has */
    bool suspended;
    bool late;                   /* a request that we gave up may still be taken up by the guest */
    char control[64];            /* xenstore path of control/shutdown */
    char advertised[64];         /* and of device/suspend/event-channel */
    bool channel_news;           /* the guest may have written it */
    xenevtchn_handle *events;
    int channel, channel_lock;   /* the guest's suspend event channel, -1: none */
    uint64_t resumed_at;
    bool is_pv;                  /* else PVH */
    struct xen_pv *pv;           /* instead of what is mapped and tracked here; NULL while stale */
    struct buffer params;        /* HVM_PARAMS, the same for the domain's life */
    xc_hypercall_buffer_t dirty; /* one bit a page */
};

static struct xen_vm *of(struct vm *vm)
{
    return (struct xen_vm *)vm;
}

static bool vm_running(const struct vm_config *cfg)
{
    struct xen_domain d;
    bool found;

    if (xen_domain_connect(&d, NULL) < 0)
        return false;
    found = xen_domain_find(&d, cfg->name);
    xen_domain_disconnect(&d);
    return found;
}

/* Until all its devices are there, a domain that xl makes is paused. */
static bool vm_appeared(const struct vm_config *cfg)
{
    struct xen_domain d;
    xc_dominfo_t info;
    bool found;

    if (xen_domain_connect(&d, NULL) < 0)
        return false;
    d.id = xen_domain_find(&d, cfg->name);
    found = d.id && xen_domain_info(&d, &info) && !info.paused && !info.shutdown && !info.dying;
    xen_domain_disconnect(&d);
    return found;
}

/* --- what the domain is --- */

static int add_page(struct xen_machine *m, unsigned *room, uint64_t pfn)
{
    struct xen_range *last = m->range_count ? &m->ranges[m->range_count - 1] : NULL;

    if (last && last->first + last->count == pfn) {
        last->count++;
        return 0;
    }
    if (m->range_count == *room) {
        *room = *room ? 2 * *room : 16;
        last = reallocarray(m->ranges, *room, sizeof(*last));
        if (!last)
            return -1;
        m->ranges = last;
    }
    m->ranges[m->range_count++] = (struct xen_range){pfn, 1};
    return 0;
}

struct probe {
    xencall_handle *call;
    struct xen_domctl *ctl;
    xen_pfn_t *types;
    unsigned room;
};

/* Looks at the pages from `at' up to `end', until all that Xen counts are found. */
static int probe_pages(struct xen_vm *v, struct probe *p, uint64_t at, uint64_t end,
                       struct xen_machine *m, struct error *err)
{
    for (uint64_t n; at < end && xen_machine_present(m) < v->nr_pages; at += n) {
        n = end - at < PROBE_AT_ONCE ? end - at : PROBE_AT_ONCE;
        for (uint64_t i = 0; i < n; i++)
            p->types[i] = at + i;
        *p->ctl = (struct xen_domctl){
            .cmd = XEN_DOMCTL_getpageframeinfo3,
            .interface_version = XEN_DOMCTL_INTERFACE_VERSION,
            .domain = (domid_t)v->domain.id,
        };
        p->ctl->u.getpageframeinfo3.num = n;
        set_xen_guest_handle_raw(p->ctl->u.getpageframeinfo3.array, p->types);
        if (xencall1(p->call, __HYPERVISOR_domctl, (unsigned long)p->ctl) < 0)
            return error_set(err, "types of the domain's pages: %s", strerror(errno));
        for (uint64_t i = 0; i < n; i++)
            if ((p->types[i] & XEN_DOMCTL_PFINFO_LTAB_MASK) == XEN_DOMCTL_PFINFO_NOTAB &&
                add_page(m, &p->room, at + i) < 0)
                return error_set(err, "no memory");
    }
    return 0;
}

static int by_first(const void *a, const void *b)
{
    const struct xen_range *x = a, *y = b;

    return x->first < y->first ? -1 : x->first > y->first;
}

/*
 * Asks for the type of each number that a page may have, as libxc does for a migration: a page that
 * Xen lent to the domain (shared info, grant table) counts as none.  libxc has no public call for
 * it.  The special pages lie high below 4 GiB, far from the rest: with them first, the end of the
 * memory is the end of the search.
 */
static int find_pages(struct xen_vm *v, struct xen_machine *m, struct error *err)
{
    struct probe p = {.call = xencall_open(NULL, 0)};
    uint64_t special = m->pages < SPECIAL_PAGES ? m->pages : SPECIAL_PAGES;
    uint64_t special_end = m->pages < SPECIAL_END ? m->pages : SPECIAL_END;
    int rc;

    if (p.call)
        p.ctl = xencall_alloc_buffer(p.call, sizeof(*p.ctl));
    if (p.ctl)
        p.types = xencall_alloc_buffer(p.call, PROBE_AT_ONCE * sizeof(*p.types));
    rc = p.types ? 0 : error_set(err, "hypercall buffers: %s", strerror(errno));
    if (rc == 0)
        rc = probe_pages(v, &p, special, special_end, m, err);
    if (rc == 0)
        rc = probe_pages(v, &p, 0, special, m, err);
    if (rc == 0)
        rc = probe_pages(v, &p, special_end, m->pages, m, err);
    if (m->range_count)
        qsort(m->ranges, m->range_count, sizeof(*m->ranges), by_first);
    if (p.types)
        xencall_free_buffer(p.call, p.types);
    if (p.ctl)
        xencall_free_buffer(p.call, p.ctl);
    xencall_close(p.call);
    if (rc == 0 && xen_machine_present(m) != v->nr_pages)
        return error_set(err, "%" PRIu64 " pages found, Xen counts %" PRIu64,
                         xen_machine_present(m), v->nr_pages);
    return rc;
}

static int put_params(struct xen_vm *v, struct error *err)
{
    static const uint32_t wanted[] = {
        HVM_PARAM_STORE_PFN,
        HVM_PARAM_IOREQ_PFN,
        HVM_PARAM_BUFIOREQ_PFN,
        HVM_PARAM_PAGING_RING_PFN,
        HVM_PARAM_MONITOR_RING_PFN,
        HVM_PARAM_SHARING_RING_PFN,
        HVM_PARAM_VM86_TSS_SIZED,
        HVM_PARAM_CONSOLE_PFN,
        HVM_PARAM_ACPI_IOPORTS_LOCATION,
        HVM_PARAM_VIRIDIAN,
        HVM_PARAM_IDENT_PT,
        HVM_PARAM_VM_GENERATION_ID_ADDR,
        HVM_PARAM_IOREQ_SERVER_PFN,
        HVM_PARAM_NR_IOREQ_SERVER_PAGES,
        HVM_PARAM_X87_FIP_WIDTH,
        HVM_PARAM_MCA_CAP,
    };
    uint64_t body[1 + 2 * sizeof(wanted) / sizeof(*wanted)] = {
        0}; /* count u32 | 0 | (index, value) */
    size_t n = 0;

    for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); i++) {
        uint64_t value;

        if (xc_hvm_param_get(v->domain.xc, v->domain.id, wanted[i], &value) < 0)
            return error_set(err, "HVM parameter %u: %s", wanted[i], strerror(errno));
        if (value == 0)
            continue;
        body[1 + 2 * n] = wanted[i];
        body[2 + 2 * n] = value;
        n++;
    }
    body[0] = n;
    return stream_put_record(&v->params, STREAM_HVM_PARAMS, body, 8 + 16 * n) < 0
               ? error_set(err, "no memory")
               : 0;
}

/* R1: what the vif sends has one way out of its bridge, the port's. */
static int check_bridge(const struct vm_config *cfg, struct error *err)
{
    char path[64], port[CONFIG_TAPLEN_MAX + 3];
    unsigned vifs = 0;
    struct dirent *entry;
    DIR *dir;

    snprintf(path, sizeof(path), "/sys/class/net/%s/brif", cfg->guest_bridge);
    snprintf(port, sizeof(port), "%s-g", cfg->tap);
    dir = opendir(path);
    if (!dir)
        return error_set(err, "guest-bridge %s: no such bridge", cfg->guest_bridge);
    while ((entry = readdir(dir)))
        if (entry->d_name[0] != '.' && strcmp(entry->d_name, port) != 0 && vifs++) {
            error_set(err,
                      "guest-bridge %s has more than one interface besides %s: packets would get "
                      "past remusd",
                      cfg->guest_bridge, port);
            closedir(dir);
            return -1;
        }
    closedir(dir);
    return 0;
}

/* R5: each of its disks is one of ours, whose server remusd has started. */
static int check_disks(const struct vm_config *cfg, const libxl_domain_config *config,
                       struct error *err)
{
    unsigned seen = 0;

    for (int i = 0; i < config->num_disks; i++) {
        const libxl_device_disk *disk = &config->disks[i];
        const char *script = disk->script ? disk->script : "block", *slash = strrchr(script, '/');
        const char *target = disk->pdev_path ? disk->pdev_path : "", *colon = strrchr(target, ':');
        unsigned long number = colon ? strtoul(colon + 1, NULL, 10) : 0;

        if (strcmp(slash ? slash + 1 : script, "block-remus") != 0)
            return error_set(err,
                             "its disk %s would not be replicated together with its memory: use "
                             "script=block-remus,target=%s:N and disks = {...} in its section",
                             disk->vdev, cfg->name);
        if (number >= cfg->disk_count || seen & 1u << number)
            return error_set(err, "its disk %s is target=%s: its section has %u disks, each once",
                             disk->vdev, target, cfg->disk_count);
        seen |= 1u << number;
    }
    if ((unsigned)config->num_disks != cfg->disk_count)
        return error_set(err, "it has %d disks, its section %u: make them equal", config->num_disks,
                         cfg->disk_count);
    return 0;
}

/* Only what we can keep the promises for. */
static int check_config(const struct xen_domain *d, const struct vm_config *cfg, const libxl_domain_config *config,
                        struct error *err)
{
    bool pv = config->c_info.type == LIBXL_DOMAIN_TYPE_PV;
    xc_physinfo_t physical = {0};

    if (pv && (xc_physinfo(d->xc, &physical) < 0 || !(physical.capabilities & XEN_SYSCTL_PHYSCAP_shadow)))
        return error_set(
            err,
            "it is a PV domain: its memory cannot be tracked on this Xen, which is built without "
            "CONFIG_SHADOW_PAGING; use type = \"pvh\" in its configuration");
    if (!pv && config->c_info.type != LIBXL_DOMAIN_TYPE_PVH)
        return error_set(
            err,
            "it is an HVM domain, whose device model is not replicated; use type = \"pvh\" in its "
            "configuration");
    if ((*cfg->tap && check_bridge(cfg, err) < 0) || check_disks(cfg, config, err) < 0)
        return -1;
    if (config->num_pcidevs || config->num_p9s || config->num_vtpms || config->num_usbctrls ||
        config->num_pvcallsifs || config->num_vdispls || config->num_vsnds)
        return error_set(err, "it has devices that cannot be replicated");
    return 0;
}

/* libxl's JSON.  cfg: NULL, or what the domain must go with. */
static char *get_config(const struct xen_domain *d, const struct vm_config *cfg, struct error *err)
{
    libxl_ctx *ctx = xen_libxl(err);
    libxl_domain_config config;
    char *text = NULL;

    if (!ctx)
        return NULL;
    libxl_domain_config_init(&config);
    if (libxl_retrieve_domain_configuration(ctx, d->id, &config, NULL))
        error_set(err, "libxl does not tell the domain's configuration: was it made by xl?");
    else if ((!cfg || check_config(d, cfg, &config, err) == 0) &&
             !(text = libxl_domain_config_to_json(ctx, &config)))
        error_set(err, "no memory");
    libxl_domain_config_dispose(&config);
    libxl_ctx_free(ctx);
    return text;
}

int xen_domain_check(const struct xen_domain *d, const struct vm_config *cfg, struct error *err)
{
    cleanup_free char *config = get_config(d, cfg, err);

    return config ? 0 : -1;
}

int xen_domain_facts(struct xen_domain *d, struct vm_facts *facts, struct error *err)
{
    cleanup_free char *config = NULL;
    xc_dominfo_t info;

    if (!xen_domain_info(d, &info))
        return error_set(err, "the domain is gone");
    config = get_config(d, NULL, err);
    return config ? xen_facts(facts, config, strlen(config), info.nr_pages, d->id, err) : -1;
}

static int vm_facts(const struct vm_config *section, struct vm_facts *facts, struct error *err)
{
    struct xen_domain d;
    int rc;

    if (xen_domain_connect(&d, err) < 0)
        return -1;
    d.id = xen_domain_find(&d, section->name);
    rc = d.id ? xen_domain_facts(&d, facts, err)
              : error_set(err, "there is none: start it with xl create");
    xen_domain_disconnect(&d);
    return rc < 0 ? error_prefix(err, "domain \"%s\"", section->name) : 0;
}

static int vm_adopt_domain(const struct vm_config *section, uint64_t *memory_bytes, struct error *err)
{
    struct vm_learned learned;
    struct xen_domain d = {0};
    struct vm_facts facts;
    int rc;

    vm_learned_init(&learned, section);
    if (vm_facts(section, &facts, err) < 0 || vm_learn(&learned, section, &facts, err) < 0 ||
        xen_domain_connect(&d, err) < 0)
        return -1;
    *memory_bytes = 0;
    d.id = xen_domain_find(&d, section->name);
    rc = xen_domain_check(&d, &learned.cfg, err);
    xen_domain_disconnect(&d);
    return rc < 0 ? error_prefix(err, "domain \"%s\"", section->name) : 0;
}

static int describe(struct xen_vm *v, struct xen_machine *m, struct error *err)
{
    __attribute__((cleanup(buffer_free))) struct buffer head = {0};
    cleanup_free char *config = get_config(&v->domain, v->cfg, err);
    unsigned major, minor;

    if (!config)
        return -1;
    xen_version(&v->domain, &major, &minor);
    if (v->pv ? buffer_append(&head, v->pv->head.data, v->pv->head.len) : stream_put_head(&head, false, major, minor))
        return error_set(err, "no memory");
    if (!v->pv && xen_policy_put(&v->domain, &head, err) < 0)
        return -1;
    m->head = head.data;
    m->head_length = head.len;
    m->config = config;
    m->config_length = strlen(config);
    buffer_clear(&v->vm.description);
    return xen_machine_put(&v->vm.description, m) < 0 ? error_set(err, "no memory") : 0;
}

static void unmap_memory(struct xen_vm *v)
{
    if (v->vm.memory)
        munmap((void *)v->vm.memory, v->vm.pages * PAGE_SIZE);
    v->vm.memory = NULL;
}

/* All the pages that the domain has now, and a description to go with them. */
static int map_memory(struct xen_vm *v, struct error *err)
{
    struct xen_machine m = {.pages = v->vm.pages};
    int rc = -1;

    bitmap_clear_all(&v->present);
    if (find_pages(v, &m, err) == 0 && describe(v, &m, err) == 0) {
        for (unsigned i = 0; i < m.range_count; i++)
            bitmap_set_range(&v->present, m.ranges[i].first, m.ranges[i].count);
        v->canary = m.ranges[0].first;
        v->vm.memory = xen_domain_map(&v->domain, m.pages, m.ranges, m.range_count, false, err);
        rc = v->vm.memory ? 0 : -1;
    }
    xen_machine_free(&m);
    return rc;
}

/* --- dirty pages --- */

static int not_ours(struct xen_vm *v, struct error *err)
{
    v->tracking = false;
    return error_set(err, XEN_NOT_OURS);
}

/* Xen counts the page as written. */
static int mark_canary(struct xen_vm *v, struct error *err)
{
    return xendevicemodel_modified_memory(v->dm, (domid_t)v->domain.id, v->canary, 1) < 0
               ? error_set(err, "a page cannot be marked as written: %s", strerror(errno))
               : 0;
}

/* Does a process run here that may need log-dirty mode: another remusd, or what xl has to save this domain? */
static bool tracked_by_others(uint32_t domid)
{
    glob_t processes = {0};
    bool found = false;
    char id[16];
    int length = snprintf(id, sizeof(id), "%u", domid) + 1;

    glob("/proc/[1-9]*/cmdline", 0, NULL, &processes);
    for (size_t i = 0; i < processes.gl_pathc; i++) {
        const char *path = processes.gl_pathv[i], *name;
        FILE *f = fopen(path, "re");
        char words[4096] = "";
        size_t n = f ? fread(words, 1, sizeof(words) - 1, f) : 0;

        if (f)
            fclose(f);
        name = strrchr(words, '/') ? strrchr(words, '/') + 1 : words;
        found |= strcmp(name, "remusd") == 0 && atoi(path + strlen("/proc/")) != getpid();
        found |= strcmp(name, "libxl-save-helper") == 0 && memmem(words, n, id, (size_t)length);
    }
    globfree(&processes);
    return found;
}

/* A migration uses log-dirty mode too: only what one that was killed has left on may be turned off. */
static int start_tracking(struct xen_vm *v, struct error *err)
{
    struct xen_domain *d = &v->domain;
    int rc = xc_shadow_control(d->xc, d->id, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY, NULL, 0);

    if (rc < 0 && errno == EINVAL && !tracked_by_others(d->id)) {
        xc_shadow_control(d->xc, d->id, XEN_DOMCTL_SHADOW_OP_OFF, NULL, 0);
        rc = xc_shadow_control(d->xc, d->id, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY, NULL, 0);
    }
    if (rc < 0)
        return errno == EINVAL ? not_ours(v, err)
               : errno == EOPNOTSUPP
                   ? error_set(err, "this Xen has no log-dirty mode for the domain")
                   : error_set(err, "log-dirty mode: %s", strerror(errno));
    v->tracking = true;
    return mark_canary(v, err);
}

static int allocate_dirty(struct xen_vm *v)
{
    DECLARE_HYPERCALL_BUFFER_SHADOW(unsigned long, map, &v->dirty);
    size_t octets = (v->vm.pages + 63) / 64 * 8;

    map = xc_hypercall_buffer_alloc_pages(v->domain.xc, map,
                                          (int)((octets + PAGE_SIZE - 1) / PAGE_SIZE));
    return map ? 0 : -1;
}

/*
 * Reads what was written and starts afresh.  Xen lets xl take log-dirty mode over without a word, and what one of two reads
 * the other never sees (R8).  So one page, the canary, always counts as written: when it does not, somebody else has read, and
 * what he has yet to read is left to him.
 */
static int clean(struct xen_vm *v, struct error *err)
{
    DECLARE_HYPERCALL_BUFFER_SHADOW(unsigned long, map, &v->dirty);
    const struct {
        unsigned op;
        uint64_t pages;
    } reads[] = {{XEN_DOMCTL_SHADOW_OP_PEEK, v->canary + 1}, {XEN_DOMCTL_SHADOW_OP_CLEAN, v->vm.pages}};

    if (!v->tracking)
        return not_ours(v, err);
    for (unsigned i = 0; i < 2; i++) {
        if (xc_logdirty_control(v->domain.xc, v->domain.id, reads[i].op, HYPERCALL_BUFFER(map), reads[i].pages, 0, NULL) < 0)
            return error_set(err, "the domain's dirty pages: %s", strerror(errno));
        if (!(map[v->canary / 64] >> v->canary % 64 & 1))
            return not_ours(v, err);
    }
    return mark_canary(v, err);
}

/* --- a PV domain --- */

static void stop_pv(struct xen_vm *v)
{
    xen_pv_stop(v->pv);
    v->pv = NULL;
    v->vm.memory = NULL;
}

static int put_pv_ranges(const struct xen_pv *pv, struct xen_machine *m)
{
    unsigned room = 0;

    for (uint64_t pfn = 0; pfn < pv->pages; pfn++)
        if (stream_has_data(pv->types[pfn]) && add_page(m, &room, pfn) < 0)
            return -1;
    return 0;
}

static int start_pv(struct xen_vm *v, struct error *err)
{
    struct xen_machine m = {0};
    int rc;

    stop_pv(v);
    if (xen_domain_check(&v->domain, v->cfg, err) < 0)
        return -1;
    if (tracked_by_others(v->domain.id))
        return not_ours(v, err);
    if (vm_memory_available() / PAGE_SIZE < v->nr_pages)
        return error_set(err, "a PV domain's memory is copied in dom0: it needs %" PRIu64 " MiB there, %" PRIu64 " MiB are available",
                         v->nr_pages >> 8, vm_memory_available() >> 20);
    if (xen_pv_start(&v->pv, v->domain.id, err) < 0)
        return -1;
    m.pages = v->pv->pages;
    rc = v->vm.pages && v->vm.pages != m.pages ? error_set(err, "its page numbers end elsewhere now: restart remusd")
         : put_pv_ranges(v->pv, &m) < 0        ? error_set(err, "no memory")
                                               : describe(v, &m, err);
    xen_machine_free(&m);
    if (rc < 0) {
        stop_pv(v);
        return -1;
    }
    v->vm.pages = v->pv->pages;
    v->vm.memory = v->pv->memory;
    return 0;
}

/* Synchronising again after a checkpoint, libxenguest begins anew: else the guest would be suspended for all that it has written since. */
static int scan_pv(struct xen_vm *v, struct bitmap *dirty, struct error *err)
{
    int rc = v->pv ? 0 : error_set(err, "libxenguest has given up");

    if (rc == 0 && v->suspended)
        rc = xen_pv_take(v->pv, dirty, err);
    else if (rc == 0 && !v->pv->taken)
        rc = xen_pv_pass(v->pv, dirty, err);
    else if (rc == 0)
        rc = (v->scanned = false, start_pv(v, err));
    if (rc < 0) {
        v->stale = v->vm.unwilling = true;
        return -1;
    }
    for (uint64_t pfn = 0; !v->scanned && pfn < v->pv->pages; pfn++)
        if (stream_has_data(v->pv->types[pfn]))
            bitmap_set(dirty, pfn);
    v->scanned = true;
    return 0;
}

static int save_pv_state(struct xen_vm *v, struct buffer *state, struct error *err)
{
    return stream_put_types(state, v->pv->types, v->pv->pages) < 0 || buffer_append(state, v->pv->state.data, v->pv->state.len) < 0
               ? error_set(err, "no memory")
               : 0;
}

static int vm_scan(struct vm *vm, struct bitmap *dirty, struct error *err)
{
    struct xen_vm *v = of(vm);
    DECLARE_HYPERCALL_BUFFER_SHADOW(unsigned long, map, &v->dirty);
    xc_dominfo_t info;

    vm->unwilling = false;
    if (!xen_domain_info(&v->domain, &info))
        return error_set(err, "the domain is gone");
    /* What is ballooned out stays allocated while it is mapped here; a page that comes counts. */
    if ((v->tracking || v->is_pv) && (info.nr_pages != v->nr_pages || v->stale)) {
        v->stale = vm->unwilling = true;
        return error_set(err, "the domain had %" PRIu64 " pages and now has %lu: it was ballooned",
                         v->nr_pages, info.nr_pages);
    }
    if (v->is_pv)
        return scan_pv(v, dirty, err);
    if (clean(v, err) < 0) {
        v->stale = vm->unwilling = true;
        return -1;
    }
    for (uint64_t w = 0; w < (vm->pages + 63) / 64; w++)
        dirty->words[w] |= (v->scanned ? map[w] : UINT64_MAX) & v->present.words[w];
    v->scanned = true;
    return 0;
}

/* --- suspend and resume --- */

static int resume_domain(struct xen_vm *v, struct error *err)
{
    if (xc_domain_resume(v->domain.xc, v->domain.id, 1) < 0)
        return error_set(err, "the domain does not resume: %s", strerror(errno));
    v->suspended = false;
    v->resumed_at = clock_ns();
    xs_resume_domain(v->domain.xs,
                     v->domain.id); /* or xenstored never says again that it has shut down */
    return 0;
}

static bool is_suspended(const xc_dominfo_t *info)
{
    return info->shutdown && info->shutdown_reason == SHUTDOWN_suspend;
}

/* Takes the request back, unless the guest has taken it up already. */
static bool take_back(struct xen_vm *v)
{
    for (;;) {
        xs_transaction_t t = xs_transaction_start(v->domain.xs);
        unsigned len;
        cleanup_free char *value = xs_read(v->domain.xs, t, v->control, &len);
        bool pending = value && strcmp(value, "suspend") == 0;

        if (pending)
            xs_write(v->domain.xs, t, v->control, "", 0);
        if (xs_transaction_end(v->domain.xs, t, false) || errno != EAGAIN)
            return pending;
    }
}

static void release_channel(struct xen_vm *v)
{
    if (v->channel < 0)
        return;
    xc_domain_subscribe_for_suspend(v->domain.xc, v->domain.id, 0); /* or nobody else hears of it */
    xc_suspend_evtchn_release(v->domain.xc, v->events, v->domain.id, v->channel, &v->channel_lock);
    v->channel = -1;
}

/* Whatever the guest has written there: a port that is none of its own, open to dom0, is not bound. */
static void bind_channel(struct xen_vm *v)
{
    unsigned len;
    cleanup_free char *value = xs_read(v->domain.xs, XBT_NULL, v->advertised, &len);
    int port = value ? atoi(value) : 0;

    v->channel_news = false;
    release_channel(v);
    if (port > 0 && (v->events || (v->events = xenevtchn_open(NULL, 0))))
        v->channel = xc_suspend_evtchn_init_exclusive(v->domain.xc, v->events, v->domain.id, port,
                                                      &v->channel_lock);
}

static bool take_watch_event(struct xen_vm *v)
{
    cleanup_free char **event = xs_check_watch(v->domain.xs);

    if (event && strcmp(event[XS_WATCH_TOKEN], CHANNEL_TOKEN) == 0)
        v->channel_news = true;
    return event;
}

static int watch(struct xen_vm *v, struct error *err)
{
    return xs_watch(v->domain.xs, SUSPEND_WATCH, "suspended") &&
                   xs_watch(v->domain.xs, v->advertised, CHANNEL_TOKEN)
               ? 0
               : error_set(err, "xenstore watch: %s", strerror(errno));
}

/* xenstored was lost; one that has begun without what the first knew is of no use. */
static int find_xenstore_again(struct xen_vm *v, struct error *err)
{
    struct xs_handle *xs = xen_xenstore();

    if (!xs)
        return error_set(err, "xenstored is gone (%s): the guest cannot be asked to suspend", strerror(errno));
    if (!xs_is_domain_introduced(xs, v->domain.id)) {
        xs_close(xs);
        return error_set(err, "xenstored was restarted and does not know the domain any more: shut the guest "
                              "down from inside and create it again");
    }
    xs_close(v->domain.xs);
    v->domain.xs = xs;
    return watch(v, err);
}

/* Waits for the suspended domain; time in which its operator has paused it does not count. */
static int wait_suspended(struct xen_vm *v, struct error *err)
{
    struct pollfd p[] = {{.fd = xs_fileno(v->domain.xs), .events = POLLIN},
                         {.fd = v->channel < 0 ? -1 : xenevtchn_fd(v->events), .events = POLLIN}};
    uint64_t deadline = clock_ns() + SUSPEND_NS, look = clock_ns() + XENSTORE_NS;
    bool taken_up = false;
    xc_dominfo_t info;

    for (;;) {
        if (!xen_domain_info(&v->domain, &info) || info.dying)
            return error_set(err, "the domain is gone");
        if (is_suspended(&info))
            return 0;
        if (info.shutdown)
            return error_set(err, "the guest shut down or crashed");
        if (info.paused)
            deadline = clock_ns() + SUSPEND_NS;
        if (clock_ns() > look && !xs_is_domain_introduced(v->domain.xs, v->domain.id)) {
            v->late = true;
            return error_set(err, "xenstored was lost while the guest was asked to suspend");
        }
        if (clock_ns() > look)
            look = clock_ns() + XENSTORE_NS;
        if (clock_ns() > deadline && v->channel >= 0) {
            v->late = true;
            release_channel(v);
            return error_set(err, "the guest does not answer within %d s on the event channel that it "
                             "advertises for suspending: from now on it is asked through xenstore",
                             (int)(SUSPEND_NS / NS_PER_S));
        }
        if (clock_ns() > deadline) {
            if (!taken_up && take_back(v))
                return error_set(
                    err,
                    "the guest does not answer a request to suspend within %d s: does its kernel "
                    "support it (CONFIG_HIBERNATE_CALLBACKS)?",
                    (int)(SUSPEND_NS / NS_PER_S));
            v->late = taken_up;
            if (taken_up)
                return error_set(err, "the guest has begun to suspend and does not end it");
            taken_up = true;
            deadline = clock_ns() + SUSPEND_NS;
        }
        if (poll(p, 2, POLL_MS) <= 0)
            continue;
        if (p[1].revents)
            xenevtchn_unmask(v->events, xenevtchn_pending(v->events));
        if (p[0].revents)
            take_watch_event(v);
    }
}

/* The operator's request to shut down that the guest has not taken up yet must not be overwritten
 * (R7). */
static int request_suspend(struct xen_vm *v, struct error *err)
{
    uint64_t deadline = clock_ns() + SUSPEND_NS;

    while (take_watch_event(v))
        ;
    if (v->channel_news)
        bind_channel(v);
    if (v->channel >= 0)
        return xenevtchn_notify(v->events, v->channel) < 0
                   ? error_set(err, "the guest's suspend event channel: %s", strerror(errno))
                   : 0;

    while (clock_ns() < deadline) {
        xs_transaction_t t = xs_transaction_start(v->domain.xs);
        unsigned len;
        cleanup_free char *value = t ? xs_read(v->domain.xs, t, v->control, &len) : NULL;
        bool others = value && *value && strcmp(value, "suspend") != 0;

        if (!t) {
            if (find_xenstore_again(v, err) < 0)
                return -1;
            continue;
        }
        if (!others && !xs_write(v->domain.xs, t, v->control, "suspend", strlen("suspend"))) {
            xs_transaction_end(v->domain.xs, t, true);
            return error_set(err, "%s: %s", v->control, strerror(errno));
        }
        if (xs_transaction_end(v->domain.xs, t, false) && !others)
            return 0;
        if (xen_domain_health(&v->domain) != VM_ALIVE)
            return error_set(err, "the guest shut down or crashed");
        if (others)
            clock_sleep_until(clock_ns() + POLL_MS * NS_PER_MS);
    }
    return error_set(err, "the guest does not take up another request in %s", v->control);
}

static int vm_suspend(struct vm *vm, struct error *err)
{
    struct xen_vm *v = of(vm);
    xc_dominfo_t info;

    vm->unwilling = xen_domain_info(&v->domain, &info) && is_suspended(&info);
    if (vm->unwilling)
        return error_set(err,
                         "somebody else has suspended the domain: xl save, xl migrate or xl remus");
    if (request_suspend(v, err) < 0 || wait_suspended(v, err) < 0) {
        vm->unwilling = xen_domain_health(&v->domain) == VM_ALIVE;
        return -1;
    }
    v->suspended = true;
    return 0;
}

static int vm_resume(struct vm *vm, struct error *err)
{
    return resume_domain(of(vm), err);
}

static int vm_save_state(struct vm *vm, struct buffer *state, struct error *err)
{
    struct xen_vm *v = of(vm);
    struct {
        uint32_t mode, khz;
        uint64_t nsec;
        uint32_t incarnation, reserved;
    } tsc = {0};
    uint32_t header[2] = {STREAM_HVM_CONTEXT};
    static const uint8_t zeros[8];
    int len;

    if (v->is_pv)
        return save_pv_state(v, state, err);
    len = xc_domain_hvm_getcontext(v->domain.xc, v->domain.id, NULL, 0);
    if (len <= 0 || (unsigned)len > VM_STATE_MAX ||
        xc_domain_get_tsc_info(v->domain.xc, v->domain.id, &tsc.mode, &tsc.nsec, &tsc.khz,
                               &tsc.incarnation) < 0)
        return error_set(err, "the processors' state: %s", strerror(errno));
    if (stream_put_record(state, STREAM_TSC_INFO, &tsc, sizeof(tsc)) < 0 ||
        buffer_reserve(state, sizeof(header) + (size_t)len + 8) < 0)
        return error_set(err, "no memory");
    len = xc_domain_hvm_getcontext(v->domain.xc, v->domain.id,
                                   state->data + state->len + sizeof(header), (uint32_t)len);
    if (len < 0)
        return error_set(err, "the processors' state: %s", strerror(errno));
    header[1] = (uint32_t)len;
    memcpy(state->data + state->len, header, sizeof(header));
    state->len += sizeof(header) + (size_t)len;
    return buffer_append(state, zeros, -(size_t)len & 7) ||
                   buffer_append(state, v->params.data, v->params.len)
               ? error_set(err, "no memory")
               : 0;
}

/* --- begin and end --- */

static void let_go(struct xen_vm *v)
{
    DECLARE_HYPERCALL_BUFFER_SHADOW(unsigned long, map, &v->dirty);

    if (v->is_pv)
        stop_pv(v);
    unmap_memory(v);
    release_channel(v);
    if (v->events)
        xenevtchn_close(v->events);
    if (v->dm)
        xendevicemodel_close(v->dm);
    if (map)
        xc_hypercall_buffer_free_pages(v->domain.xc, map,
                                       (int)(((v->vm.pages + 63) / 64 * 8 + PAGE_SIZE - 1) /
                                             PAGE_SIZE));
    bitmap_free(&v->present);
    buffer_free(&v->params);
    buffer_free(&v->vm.description);
    xen_domain_disconnect(&v->domain);
    free(v);
}

static void vm_close(struct vm *vm)
{
    struct xen_vm *v = of(vm);

    if (v->tracking)
        xc_shadow_control(v->domain.xc, v->domain.id, XEN_DOMCTL_SHADOW_OP_OFF, NULL, 0);
    let_go(v);
}

/* Its processors stop at once, the rest may take a while.  Nothing of it may stay mapped, or it
 * never goes. */
static void vm_destroy(struct vm *vm)
{
    struct xen_vm *v = of(vm);

    xc_domain_pause(v->domain.xc, v->domain.id);
    if (v->is_pv)
        stop_pv(v);
    unmap_memory(v);
    xen_domain_destroy(&v->domain, NULL);
    let_go(v);
}

static enum vm_health vm_health(struct vm *vm)
{
    struct xen_vm *v = of(vm);
    xc_dominfo_t info;

    if (xen_domain_info(&v->domain, &info)) {
        /* It has answered a request that we had given up. */
        if (v->late && is_suspended(&info) && resume_domain(v, NULL) == 0)
            v->late = false;
        if (v->channel >= 0 && clock_ns() - v->resumed_at > CHANNEL_IDLE_NS) {
            release_channel(v);
            v->channel_news = true;
        }
        /* As long as ballooning goes on, or another tracks the pages, this fails, and is tried again. */
        if (v->is_pv && (v->stale || info.nr_pages != v->nr_pages)) {
            v->nr_pages = info.nr_pages;
            v->scanned = false;
            v->stale = start_pv(v, NULL) < 0;
        } else if ((v->stale || (!v->scanned && info.nr_pages != v->nr_pages)) && (v->tracking || start_tracking(v, NULL) == 0)) {
            unmap_memory(v);
            v->nr_pages = info.nr_pages;
            v->scanned = false;
            v->stale = map_memory(v, NULL) < 0;
        }
    }
    return xen_domain_health(&v->domain);
}

/* Ids of domains are not used again for a long time, and start afresh with the host; so does
 * RUN_DIR. */
static uint64_t instance(const xc_dominfo_t *info)
{
    uint64_t n = 0;

    memcpy(&n, info->handle, sizeof(uint32_t));
    return n << 32 | info->domid;
}

static int set_up(struct xen_vm *v, const struct vm_config *cfg, struct error *err)
{
    struct xen_domain *d = &v->domain;
    xc_dominfo_t info;
    xen_pfn_t pages;

    if (!xen_domain_info(d, &info))
        return error_set(err, "the domain is gone");
    if (xc_domain_nr_gpfns(d->xc, d->id, &pages) < 0)
        return error_set(err, "the domain's highest page: %s", strerror(errno));
    if (info.nr_pages > cfg->memory_bytes / PAGE_SIZE + XEN_ROOM_PAGES)
        return error_set(err, "it has %lu MiB, its section says %" PRIu64 ": set memory = %lu, or leave it out",
                         info.nr_pages >> 8, cfg->memory_bytes >> 20, (info.nr_pages + 255) >> 8);
    v->vm.instance = instance(&info);
    v->nr_pages = info.nr_pages;
    if (watch(v, err) < 0)
        return -1;
    if (v->is_pv)
        return start_pv(v, err) < 0 ? -1 : is_suspended(&info) ? resume_domain(v, err) : 0;
    v->vm.pages = pages;
    v->dm = xendevicemodel_open(NULL, 0);
    if (!v->dm)
        return error_set(err, "device model calls: %s", strerror(errno));
    if (bitmap_init(&v->present, pages) < 0 || allocate_dirty(v) < 0)
        return error_set(err, "no memory for %lu pages' bits", (unsigned long)pages);
    if (map_memory(v, err) < 0 || put_params(v, err) < 0 || start_tracking(v, err) < 0)
        return -1;
    /* A daemon that died in mid-epoch left the guest suspended. */
    return is_suspended(&info) ? resume_domain(v, err) : 0;
}

static int vm_open(struct vm **vm, const struct vm_config *cfg, struct error *err)
{
    struct xen_vm *v = calloc(1, sizeof(*v));
    xc_dominfo_t info;

    if (!v)
        return error_set(err, "no memory");
    v->vm.ops = &xen_vm_ops;
    v->cfg = cfg;
    v->channel = -1;
    v->vm.attached = true;
    strcpy(v->vm.accelerator, "xen");
    strcpy(v->vm.tracker, "log-dirty");
    if (xen_domain_connect(&v->domain, err) < 0) {
        free(v);
        return -1;
    }
    v->domain.id = xen_domain_find(&v->domain, cfg->name);
    snprintf(v->control, sizeof(v->control), "/local/domain/%u/control/shutdown", v->domain.id);
    snprintf(v->advertised, sizeof(v->advertised), "/local/domain/%u/device/suspend/event-channel", v->domain.id);
    v->is_pv = v->domain.id && xen_domain_info(&v->domain, &info) && !info.hvm;
    if (v->domain.id == 0)
        error_set(err, "there is no domain \"%s\": start it with xl create", cfg->name);
    else if (xen_profile(&v->domain, v->is_pv, v->vm.profile, err) == 0 && set_up(v, cfg, err) == 0) {
        *vm = &v->vm;
        return 0;
    } else {
        error_prefix(err, "domain \"%s\"", cfg->name);
    }
    let_go(v);
    return -1;
}

const struct vm_ops xen_vm_ops = {
    .name = "xen",
    .running = vm_running,
    .appeared = vm_appeared,
    .facts = vm_facts,
    .adopt = vm_adopt_domain,
    .describe = xen_describe,
    .preflight = xen_preflight,
    .open = vm_open,
    .suspend = vm_suspend,
    .resume = vm_resume,
    .scan = vm_scan,
    .save_state = vm_save_state,
    .health = vm_health,
    .destroy = vm_destroy,
    .close = vm_close,
};
