/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "accel.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "process.h"
#include "spawn.h"

#define CACHE_DIR "/var/cache/remusd"

/*
 * The answer is a file for each kernel and QEMU; its line says what else it depends on, and then
 * the answer: BOOT-ID KERNEL-MTIME KERNEL-SIZE QEMU-MTIME 0|1
 */
struct answer {
    char name[32];
    char line[128]; /* up to the answer */
};

static void read_boot_id(char id[37])
{
    cleanup_close int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, id, 36);

    id[n > 0 ? n : 0] = '\0';
}

static void describe(const struct vm_config *cfg, struct answer *a)
{
    cleanup_free char *kernel_path = realpath(cfg->kernel, NULL);
    struct stat kernel = {0}, qemu = {0};
    char boot_id[37];

    read_boot_id(boot_id);
    stat(cfg->kernel, &kernel);
    stat(cfg->qemu, &qemu);
    snprintf(a->name, sizeof(a->name), "kvm-%016llx",
             (unsigned long long)(qemu_hash(kernel_path ? kernel_path : cfg->kernel) * 31 +
                                  qemu_hash(cfg->qemu)));
    snprintf(a->line, sizeof(a->line), "%s %lld %lld %lld ", boot_id, (long long)kernel.st_mtime,
             (long long)kernel.st_size, (long long)qemu.st_mtime);
}

static int open_answer(const char *dir, const struct answer *a, int flags)
{
    char path[512];
    int n = snprintf(path, sizeof(path), "%s/%s", dir, a->name);

    if (n < 0 || (size_t)n >= sizeof(path))
        return -1;
    return open(path, flags | O_CLOEXEC | O_NOFOLLOW, 0644);
}

/* 1 works, 0 works not, -1 not known. */
static int recall(const char *dir, const struct answer *a)
{
    cleanup_close int fd = open_answer(dir, a, O_RDONLY);
    size_t len = strlen(a->line);
    char text[sizeof(a->line) + 2] = "";

    if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0 || strncmp(text, a->line, len) != 0 ||
        (text[len] != '0' && text[len] != '1'))
        return -1;
    return text[len] == '1';
}

static bool remember(const char *dir, const struct answer *a, bool works)
{
    cleanup_close int fd = open_answer(dir, a, O_WRONLY | O_CREAT | O_TRUNC);

    return fd >= 0 && dprintf(fd, "%s%d\n", a->line, works) > 0;
}

static bool kernel_speaks(const struct vm_config *cfg)
{
    char *argv[] = {
        cfg->qemu, (char *)"-machine", (char *)"microvm", (char *)"-accel", (char *)"kvm",
        (char *)"-m", (char *)"128M", (char *)"-nodefaults", (char *)"-no-user-config",
        (char *)"-display", (char *)"none", (char *)"-no-reboot", (char *)"-serial",
        (char *)"stdio", (char *)"-kernel", cfg->kernel, (char *)"-append",
        (char *)"console=ttyS0 earlyprintk=ttyS0 loglevel=7 panic=-1", NULL,
    };
    char out[16384];

    return spawn_until(argv, "Linux version", KVM_PROBE_MS, out, sizeof(out));
}

static bool kvm_works(const struct vm_config *cfg)
{
    int known, kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    struct answer a;

    if (kvm < 0)
        return false;
    close(kvm);
    describe(cfg, &a);
    known = recall(CACHE_DIR, &a);
    if (known < 0)
        known = recall(cfg->run_dir, &a);
    if (known < 0) {
        known = kernel_speaks(cfg);
        mkdir(CACHE_DIR, 0755);
        if (!remember(CACHE_DIR, &a, known))
            remember(cfg->run_dir, &a, known);
    }
    return known;
}

const char *qemu_accelerator(const struct vm_config *cfg)
{
    if (strcmp(cfg->accelerator, "auto") != 0)
        return strcmp(cfg->accelerator, "kvm") == 0 ? "kvm" : "tcg";
    return kvm_works(cfg) ? "kvm" : "tcg";
}

#ifdef __x86_64__
/*
 * A pair of readings that belong together: the closest of several, for a thread is preempted at
 * times.
 */
static void read_clocks(uint64_t *tsc, uint64_t *ns)
{
    uint64_t best = UINT64_MAX;

    for (int i = 0; i < 16; i++) {
        uint64_t before = __builtin_ia32_rdtsc(), now = clock_ns(), after = __builtin_ia32_rdtsc();

        if (after - before < best) {
            best = after - before;
            *tsc = before + best / 2;
            *ns = now;
        }
    }
}

unsigned qemu_tsc_khz(void)
{
    uint64_t tsc[2], ns[2];

    read_clocks(&tsc[0], &ns[0]);
    clock_sleep_until(clock_ns() + 50 * NS_PER_MS);
    read_clocks(&tsc[1], &ns[1]);
    return (unsigned)((double)(tsc[1] - tsc[0]) * NS_PER_MS / (double)(ns[1] - ns[0]) + 0.5);
}
#else
unsigned qemu_tsc_khz(void)
{
    return 0;
}
#endif
