/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "accel.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "process.h"

#define CACHE_DIR "/var/cache/remusd"

static void read_boot_id(char id[37])
{
    cleanup_close int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, id, 36);

    id[n > 0 ? n : 0] = '\0';
}

/* What the answer depends on, as one line. */
static void cache_key(const struct vm_config *cfg, char *key, size_t size)
{
    struct stat kernel = {0}, qemu = {0};
    char boot_id[37];

    read_boot_id(boot_id);
    stat(cfg->kernel, &kernel);
    stat(cfg->qemu, &qemu);
    snprintf(key, size, "%s %s %lld %lld %s %lld", boot_id, cfg->kernel,
             (long long)kernel.st_mtime, (long long)kernel.st_size, cfg->qemu,
             (long long)qemu.st_mtime);
}

static bool cache_path(const char *dir, const char *key, char *path, size_t size)
{
    int n = snprintf(path, size, "%s/kvm-%016llx", dir, (unsigned long long)qemu_hash(key));

    return n > 0 && (size_t)n < size;
}

/* 1 works, 0 works not, -1 not known. */
static int cached(const char *dir, const char *key)
{
    char path[512], answer = 0;
    cleanup_close int fd = -1;

    if (cache_path(dir, key, path, sizeof(path)))
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || read(fd, &answer, 1) != 1 || (answer != '0' && answer != '1'))
        return -1;
    return answer == '1';
}

static bool remember(const char *dir, const char *key, bool works)
{
    char path[512];
    cleanup_close int fd = -1;

    if (cache_path(dir, key, path, sizeof(path)))
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    return fd >= 0 && write(fd, works ? "1\n" : "0\n", 2) == 2;
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

    return run_until(argv, "Linux version", KVM_PROBE_MS, out, sizeof(out));
}

static bool kvm_works(const struct vm_config *cfg)
{
    char key[1024];
    int answer, kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

    if (kvm < 0)
        return false;
    close(kvm);
    cache_key(cfg, key, sizeof(key));
    answer = cached(CACHE_DIR, key);
    if (answer < 0)
        answer = cached(cfg->run_dir, key);
    if (answer < 0) {
        answer = kernel_speaks(cfg);
        mkdir(CACHE_DIR, 0755);
        if (!remember(CACHE_DIR, key, answer))
            remember(cfg->run_dir, key, answer);
    }
    return answer;
}

const char *qemu_accelerator(const struct vm_config *cfg)
{
    if (strcmp(cfg->accelerator, "auto") != 0)
        return strcmp(cfg->accelerator, "kvm") == 0 ? "kvm" : "tcg";
    return kvm_works(cfg) ? "kvm" : "tcg";
}

#ifdef __x86_64__
/* A pair of readings that belong together: the closest of several, for a thread is preempted at times. */
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
