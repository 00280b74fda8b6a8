/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "accel.h"
#include "machine.h"
#include "spawn.h"

#define VERSION_MS 5000
#define MIB (UINT64_C(1) << 20)

extern char **environ;

static void args_add(struct args *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void args_add(struct args *a, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    if (a->n == ARGS_MAX || vasprintf(&a->v[a->n], fmt, ap) < 0) {
        a->v[a->n] = NULL;
        a->failed = true;
    } else {
        a->n++;
    }
    va_end(ap);
}

void args_free(struct args *a)
{
    for (size_t i = 0; i < a->n; i++)
        free(a->v[i]);
}

static int check_readable(const char *key, const char *path, struct error *err)
{
    if (access(path, R_OK) < 0)
        return error_set(err, "%s = \"%s\": %s", key, path, strerror(errno));
    return 0;
}

int qemu_check_config(const struct vm_config *cfg, struct error *err)
{
    if (!*cfg->kernel)
        return error_set(err, "kernel is not set: the qemu platform starts a Linux kernel");
    if (check_readable("kernel", cfg->kernel, err) < 0)
        return -1;
    if (*cfg->initrd && check_readable("initrd", cfg->initrd, err) < 0)
        return -1;
    if (cfg->memory_bytes == 0 || cfg->memory_bytes % MIB)
        return error_set(err, "memory = %llu: the qemu platform needs a multiple of 1 MiB",
                         (unsigned long long)cfg->memory_bytes);
    if (cfg->cpus == 0)
        return error_set(err, "cpus = 0: a guest needs at least one");
    if (strchr(cfg->run_dir, ','))
        return error_set(err, "run-dir = \"%s\": QEMU's options cannot hold a path with a comma",
                         cfg->run_dir);
    if (strchr(cfg->mac, ','))
        return error_set(err, "mac = \"%s\" is no MAC address", cfg->mac);
    return 0;
}

void qemu_command_line(struct args *a, const struct qemu *qemu, const struct vm_config *cfg,
                       const char *accelerator, bool incoming)
{
    char guest[108], port[108], disk[108];
    unsigned tsc_khz = qemu_tsc_khz();

    args_add(a, "%s", cfg->qemu);
    args_add(a, "-name");
    args_add(a, "%s", cfg->name);
    args_add(a, "-machine");
    /*
     * suppress-vmdesc and send-configuration: else the state by xen-save-devices-state cannot be
     * loaded.
     */
    args_add(a, "microvm,memory-backend=m0,suppress-vmdesc=on");
    args_add(a, "-global");
    args_add(a, "migration.send-configuration=off");
    args_add(a, "-accel");
    args_add(a, "%s", accelerator);
    args_add(a, "-smp");
    args_add(a, "%u", cfg->cpus);
    args_add(a, "-m");
    args_add(a, "%lluM", (unsigned long long)(cfg->memory_bytes / MIB));
    args_add(a, "-object");
    args_add(a, "memory-backend-file,id=m0,size=%lluM,share=on,mem-path=%s",
             (unsigned long long)(cfg->memory_bytes / MIB), qemu->ram_path);
    args_add(a, "-nodefaults");
    args_add(a, "-no-user-config");
    args_add(a, "-display");
    args_add(a, "none");
    args_add(a, "-chardev");
    args_add(a, "file,id=console,path=%s,append=on", qemu->console_path);
    args_add(a, "-serial");
    args_add(a, "chardev:console");
    args_add(a, "-qmp");
    args_add(a, "unix:%s,server=on,wait=off", qemu->qmp_path);
    args_add(a, "-pidfile");
    args_add(a, "%s", qemu->pid_path);
    if ((*cfg->tap || *cfg->mac) && vm_net_paths(cfg, guest, port) == 0) {
        args_add(a, "-netdev");
        args_add(a, "dgram,id=net0,local.type=unix,local.path=%s,remote.type=unix,remote.path=%s",
                 guest, port);
        args_add(a, "-device");
        args_add(a, "virtio-net-device,netdev=net0%s%s", *cfg->mac ? ",mac=" : "", cfg->mac);
    }
    for (unsigned i = 0; i < cfg->disk_count && vm_disk_path(cfg, disk) == 0; i++) {
        args_add(a, "-blockdev");
        args_add(a, "nbd,node-name=disk%u,server.type=unix,server.path=%s,export=%u,discard=unmap", i,
                 disk, i);
        args_add(a, "-device");
        args_add(a, "virtio-blk-device,drive=disk%u", i);
    }
    args_add(a, "-kernel");
    args_add(a, "%s", cfg->kernel);
    if (*cfg->initrd) {
        args_add(a, "-initrd");
        args_add(a, "%s", cfg->initrd);
    }
    args_add(a, "-append");
    if (strcmp(accelerator, "tcg") == 0 && tsc_khz && !strstr(cfg->append, "tsc_early_khz="))
        args_add(a, "%s tsc_early_khz=%u", cfg->append, tsc_khz);
    else
        args_add(a, "%s", cfg->append);
    if (incoming) {
        args_add(a, "-incoming");
        args_add(a, "defer");
    }
    for (char **p = cfg->qemu_args; *p; p++)
        args_add(a, "%s", *p);
}

int qemu_environment(struct args *env, const struct qemu *qemu, const struct vm_config *cfg,
                     struct error *err)
{
    const char *libexec = getenv("REMUS_LIBEXEC"), *preload = NULL;
    char library[512];

    for (char **e = environ; *e; e++) {
        if (strncmp(*e, "LD_PRELOAD=", 11) == 0)
            preload = *e + 11;
        else if (env->n < ARGS_MAX - 3)
            args_add(env, "%s", *e);
    }
    if (strcmp(cfg->tracker, "compare") == 0)
        return 0;
    snprintf(library, sizeof(library), "%s/uffd-preload.so", libexec ? libexec : PKGLIBEXECDIR);
    if (access(library, R_OK) < 0)
        return error_set(err, "%s: %s (REMUS_LIBEXEC names the folder of remusd's helpers;"
                         " tracker = compare goes without)", library, strerror(errno));
    args_add(env, "LD_PRELOAD=%s%s%s", library, preload ? ":" : "", preload ? preload : "");
    args_add(env, "REMUS_RAM=%s", qemu->ram_path);
    args_add(env, "REMUS_RAM_INFO=%s", qemu->info_path);
    return 0;
}

/* Drivers of "-device X,..." and the model of "-cpu X,..." among the user's arguments. */
static void describe_args(char **args, char *out, size_t size)
{
    size_t n = 0;

    out[0] = '\0';
    for (; args[0] && args[1]; args++) {
        bool cpu = strcmp(args[0], "-cpu") == 0;

        if (cpu || strcmp(args[0], "-device") == 0)
            n += (size_t)snprintf(out + n, size - n, "%s%s%.*s", n ? "+" : "", cpu ? "cpu:" : "",
                                  (int)strcspn(args[1], cpu ? "" : ","), args[1]);
        if (n >= size)
            return;
    }
}

int qemu_profile(const struct vm_config *cfg, const char *version, const char *accelerator,
                 char profile[VM_PROFILE_MAX + 1], struct error *err)
{
    char devices[VM_PROFILE_MAX];
    int n;

    describe_args(cfg->qemu_args, devices, sizeof(devices));
    n = snprintf(profile, VM_PROFILE_MAX + 1,
                 "platform=qemu version=%s machine=microvm cpus=%u memory=%llu accelerator=%s"
                 " net=%s disks=%u machine-state=%s devices=%s", version, cfg->cpus,
                 (unsigned long long)cfg->memory_bytes, accelerator,
                 *cfg->tap || *cfg->mac ? "virtio-net-device" : "none", cfg->disk_count,
                 cfg->machine_state,
                 *devices ? devices : "none");
    if (n < 0 || n > VM_PROFILE_MAX)
        return error_set(err, "qemu-args: too many devices to describe to the backup");
    return 0;
}

int qemu_binary_version(const struct vm_config *cfg, char version[32], struct error *err)
{
    char *argv[] = {cfg->qemu, (char *)"-version", NULL};
    char out[512];
    unsigned major, minor, micro;

    spawn_until(argv, NULL, VERSION_MS, out, sizeof(out));
    if (sscanf(out, "QEMU emulator version %u.%u.%u", &major, &minor, &micro) != 3)
        return error_set(err, "qemu = \"%s\" does not run, or is no QEMU", cfg->qemu);
    snprintf(version, 32, "%u.%u.%u", major, minor, micro);
    return 0;
}
