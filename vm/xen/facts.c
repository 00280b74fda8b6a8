/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <jansson.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "facts.h"

#define MIB_PAGES 256u
#define DEVICE_MAX 255

static const char *text_of(const json_t *nic, const char *key)
{
    const char *text = json_string_value(json_object_get(nic, key));

    return text ? text : "";
}

/* "" and true for what is not there. */
static bool take_interface(char into[CONFIG_TAPLEN_MAX + 1], const json_t *nic, const char *key)
{
    const char *name = text_of(nic, key);

    if (*name && !config_good_interface(name))
        return false;
    strcpy(into, name);
    return true;
}

static int take_nic(struct vm_facts *f, const json_t *nic, struct error *err)
{
    json_int_t device = json_integer_value(json_object_get(nic, "devid"));
    const char *mac = text_of(nic, "mac");

    if (!config_good_mac(mac))
        return error_set(err, "its vif has no mac, or a strange one: \"%.40s\"", mac);
    strcpy(f->mac, mac);
    if (!take_interface(f->bridge, nic, "bridge") || !take_interface(f->vif, nic, "ifname"))
        return error_set(err, "its vif has a strange bridge or name: \"%.40s\", \"%.40s\"", text_of(nic, "bridge"),
                         text_of(nic, "ifname"));
    if (device < 0 || device > DEVICE_MAX)
        return error_set(err, "its vif has number %" JSON_INTEGER_FORMAT, device);
    f->device = (unsigned)device;
    f->vif_named = *f->vif;
    return 0;
}

int xen_facts(struct vm_facts *facts, const char *config, size_t len, uint64_t pages, unsigned id, struct error *err)
{
    json_t *json = json_loadb(config, len, 0, NULL), *nics = json_object_get(json, "nics");
    size_t count = json_array_size(nics);
    int rc = 0;

    *facts = (struct vm_facts){.memory_bytes = (pages + MIB_PAGES - 1) / MIB_PAGES << 20};
    if (!json_is_object(json))
        rc = error_set(err, "its configuration is no JSON object");
    else if (count > 1)
        rc = error_set(err, "it has %zu vifs, one at most can be held", count);
    else if (count == 1)
        rc = take_nic(facts, json_array_get(nics, 0), err);
    json_decref(json);
    if (rc == 0 && id)
        xen_facts_of(facts, id);
    return rc;
}

/* libxl says "xenbr0" of a vif that is routed, too. */
static void find_bridge(struct vm_facts *facts)
{
    char path[PATH_MAX], target[PATH_MAX];
    ssize_t n;

    snprintf(path, sizeof(path), "/sys/class/net/%s", facts->vif);
    if (access(path, F_OK) < 0)
        return;
    snprintf(path, sizeof(path), "/sys/class/net/%s/master", facts->vif);
    n = readlink(path, target, sizeof(target) - 1);
    target[n < 0 ? 0 : n] = '\0';
    snprintf(facts->bridge, sizeof(facts->bridge), "%s", n < 0 ? "" : basename(target));
}

void xen_facts_of(struct vm_facts *facts, unsigned id)
{
    facts->id = id < LEARN_ID_MAX ? id : 0;
    if (!*facts->mac)
        return;
    if (!facts->vif_named)
        snprintf(facts->vif, sizeof(facts->vif), "vif%u.%u", id, facts->device);
    find_bridge(facts);
}
