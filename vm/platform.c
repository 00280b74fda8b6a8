/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/run-file.h"
#include "fake/fake.h"
#include "qemu/qemu.h"
#include "vm.h"
#ifdef HAVE_XEN
#include "xen/xen.h"
#endif

static const struct vm_ops *const vm_platforms[] = {
    &qemu_vm_ops,
    &fake_vm_ops,
#ifdef HAVE_XEN
    &xen_vm_ops,
#endif
};
static const struct replica_ops *const replica_platforms[] = {
    &qemu_replica_ops,
    &fake_replica_ops,
#ifdef HAVE_XEN
    &xen_replica_ops,
#endif
};

const struct vm_ops *vm_platform(const char *name)
{
    for (size_t i = 0; i < sizeof(vm_platforms) / sizeof(*vm_platforms); i++)
        if (strcmp(vm_platforms[i]->name, name) == 0)
            return vm_platforms[i];
    return NULL;
}

int vm_adopt(const char *run_dir, const char *name, const char **platform, uint64_t *memory_bytes, struct error *err)
{
    struct vm_config section = {.run_dir = (char *)run_dir, .tap = "", .mac = "", .guest_bridge = "", .vif = ""};

    snprintf(section.name, sizeof(section.name), "%s", name);
    error_set(err, "this build has no platform whose guests can do without a section");
    for (size_t i = 0; i < sizeof(vm_platforms) / sizeof(*vm_platforms); i++)
        if (vm_platforms[i]->adopt && vm_platforms[i]->adopt(&section, memory_bytes, err) == 0) {
            *platform = vm_platforms[i]->name;
            return 0;
        }
    return -1;
}

const struct replica_ops *replica_platform(const char *name)
{
    for (size_t i = 0; i < sizeof(replica_platforms) / sizeof(*replica_platforms); i++)
        if (strcmp(replica_platforms[i]->name, name) == 0)
            return replica_platforms[i];
    return NULL;
}

uint64_t vm_memory_available(void)
{
    FILE *f = fopen("/proc/meminfo", "re");
    uint64_t kib = 0;
    char line[128];

    while (f && !kib && fgets(line, sizeof(line), f))
        if (sscanf(line, "MemAvailable: %" SCNu64, &kib) != 1)
            kib = 0;
    if (f)
        fclose(f);
    return kib ? kib << 10 : UINT64_MAX;
}

int vm_net_paths(const struct vm_config *cfg, char guest[108], char port[108])
{
    int g = run_path(cfg, ".net-guest", guest, RUN_SOCKET_MAX);
    int p = run_path(cfg, ".net-port", port, RUN_SOCKET_MAX);

    return g < 0 || p < 0 ? -1 : 0;
}

int vm_disk_path(const struct vm_config *cfg, char path[108])
{
    return run_path(cfg, ".nbd", path, RUN_SOCKET_MAX);
}
