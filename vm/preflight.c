/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "preflight.h"
#include "vm.h"

void preflight_lacks(json_t *lacks, const char *remedy, const char *what, ...)
{
    char text[1024];
    va_list ap;

    va_start(ap, what);
    vsnprintf(text, sizeof(text), what, ap);
    va_end(ap);
    /* Cut in the middle of a character, or of a path that is none: jansson takes no such string. */
    for (char *c = text; *c; c++)
        if ((unsigned char)*c >= 0x80)
            *c = '?';
    json_array_append_new(lacks, json_pack("{s:s, s:s}", "what", text, "remedy", remedy));
}

bool preflight_program(const char *name)
{
    static const char *const folders[] = {"/usr/local/sbin", "/usr/local/bin", "/usr/sbin",
                                          "/usr/bin", "/sbin", "/bin"};
    char path[PATH_MAX];

    for (size_t i = 0; i < sizeof(folders) / sizeof(*folders); i++) {
        snprintf(path, sizeof(path), "%s/%s", folders[i], name);
        if (access(path, X_OK) == 0)
            return true;
    }
    return false;
}

static void check_tap(const struct vm_config *cfg, json_t *lacks)
{
    char path[PATH_MAX], remedy[256];

    snprintf(path, sizeof(path), "/sys/class/net/%s", cfg->tap);
    if (!*cfg->tap || strncmp(cfg->tap, "unix:", 5) == 0 || access(path, F_OK) == 0)
        return;
    snprintf(remedy, sizeof(remedy), "ip tuntap add dev %s mode tap, and connect it to the guest's network", cfg->tap);
    preflight_lacks(lacks, remedy, "there is no interface %s (tap)", cfg->tap);
}

/* Loaded, built in, or there to be loaded; and when that cannot be told. */
static bool kernel_has(const char *module)
{
    static const char *const lists[] = {"modules.dep", "modules.builtin"};
    char path[PATH_MAX], line[PATH_MAX], name[64];
    struct utsname kernel;
    bool found = false;

    snprintf(path, sizeof(path), "/sys/module/%s", module);
    if (access(path, F_OK) == 0 || uname(&kernel) < 0)
        return true;
    snprintf(name, sizeof(name), "/%s.ko", module);
    for (size_t i = 0; i < sizeof(lists) / sizeof(*lists) && !found; i++) {
        FILE *f;

        snprintf(path, sizeof(path), "/lib/modules/%s/%s", kernel.release, lists[i]);
        f = fopen(path, "re");
        if (!f)
            return true;
        while (!found && fgets(line, sizeof(line), f)) {
            line[strcspn(line, ":")] = '\0'; /* what it needs stands behind */
            found = strstr(line, name);
        }
        fclose(f);
    }
    return found;
}

static const char *missing_module(const char *const *modules)
{
    while (*modules && kernel_has(*modules))
        modules++;
    return *modules;
}

void preflight_netbuf(const struct vm_config *cfg, bool primary, json_t *lacks)
{
    static const char *const queue[] = {"nfnetlink_queue", "nft_queue", NULL};
    static const char *const plug[] = {"sch_plug", "ifb", "act_mirred", "cls_matchall", NULL};
    const char *no_queue = missing_module(queue), *no_plug = missing_module(plug);
    bool may_plug = cfg->netbuf == NETBUF_PLUG || (cfg->netbuf == NETBUF_AUTO && !(primary && *cfg->services));

    if (may_plug && !no_plug)
        return;
    if (cfg->netbuf == NETBUF_PLUG)
        preflight_lacks(lacks, "boot a kernel that has it, or netbuf = nfqueue", "the kernel has no module %s (netbuf = plug)", no_plug);
    else if (no_queue)
        preflight_lacks(lacks, "boot a kernel that has it, or use tap instead of vif", "the kernel has no module %s (netbuf = nfqueue)", no_queue);
    else if (!preflight_program("nft"))
        preflight_lacks(lacks, "apt install nftables", "nft is not installed (netbuf = nfqueue)");
}

static void check_disks(const struct vm_config *cfg, bool primary, json_t *lacks)
{
    const char *libexec = getenv("REMUS_LIBEXEC");
    char path[PATH_MAX], *slash;

    if (cfg->disk_count == 0)
        return;
    if (!preflight_program("nbdkit"))
        preflight_lacks(lacks, "apt install nbdkit", "the disk server (nbdkit) is not installed");
    snprintf(path, sizeof(path), "%s/remus-disk.so", libexec ? libexec : PKGLIBEXECDIR);
    if (access(path, R_OK) < 0)
        preflight_lacks(lacks, "build remusd where nbdkit-plugin-dev is installed", "%s: %m", path);
    for (unsigned i = 0; i < cfg->disk_count; i++) {
        snprintf(path, sizeof(path), "%s", cfg->disks[i]);
        if (access(path, R_OK | W_OK) == 0)
            continue;
        if (primary) {
            preflight_lacks(lacks, "make the image, or mend disks = {...}", "%s: %m", path);
            continue;
        }
        slash = strrchr(path, '/');
        slash[slash == path] = '\0';
        if (access(path, W_OK) < 0)
            preflight_lacks(lacks, "make that directory: the image is made in it, and the journal", "%s: %m", path);
    }
}

/* That it cannot be run is otherwise found out when it is asked, on the day when a host is lost. */
static void check_arbiter(const struct vm_config *cfg, json_t *lacks)
{
    char path[PATH_MAX];

    snprintf(path, sizeof(path), "%.*s", (int)strcspn(cfg->arbiter, " \t"), cfg->arbiter);
    if (*path && access(path, X_OK) < 0)
        preflight_lacks(lacks, "put the command there and make it executable, or mend arbiter", "the arbiter %s: %m", path);
}

json_t *preflight(const struct vm_config *cfg, bool primary)
{
    const struct vm_ops *ops = vm_platform(cfg->platform);
    json_t *lacks = json_array(), *thing;
    size_t i;

    if (!ops)
        preflight_lacks(lacks, "install what its libraries need, and configure and build remusd again",
                        "this build has no platform %s", cfg->platform);
    check_arbiter(cfg, lacks);
    check_tap(cfg, lacks);
    if (*cfg->vif)
        preflight_netbuf(cfg, primary, lacks);
    check_disks(cfg, primary, lacks);
    if (ops && ops->preflight)
        ops->preflight(cfg, primary, lacks);
    json_array_foreach(lacks, i, thing)
        json_object_set_new(thing, "host", json_string(primary ? "primary" : "backup"));
    return json_pack("{s:s, s:s, s:s, s:o}", "vm", cfg->name, "role", primary ? "primary" : "backup", "platform",
                     cfg->platform, "lacks", lacks);
}
