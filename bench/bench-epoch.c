/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * remus-bench epoch: what a checkpoint costs the guest, on the whole path: a real engine, a real receiver, a memory
 * channel between them.  JSON lines; times are medians over the epochs of one run.
 *
 *     copy    the copy stage against a plain memcpy of the same scattered pages, in turn
 *     pause   a guest that dirties pages; by phase
 *     idle    a guest that does nothing, small and large
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench/backup.h"
#include "bench/bench.h"
#include "common/clock.h"
#include "remusd/engine.h"
#include "tests/qemu-guest.h"

#define EPOCHS 300
#define COPY_MEMORY (256u << 20)
#define COPY_PAGES 1000

/* --- the copy stage --- */

static void *memory(size_t octets)
{
    void *p = mmap(NULL, octets, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        exit(1);
    return p;
}

static int bench_copy(void)
{
    static struct samples ours, plain;
    uint8_t *guest = memory(COPY_MEMORY), *target = memory(COPY_PAGES * PAGE_SIZE);
    struct staging *staging = staging_new(2 * COPY_PAGES * PAGE_SIZE);
    struct bitmap dirty;
    uint64_t copied, pages = COPY_MEMORY / PAGE_SIZE;
    struct staging_run run;

    if (!staging || bitmap_init(&dirty, pages) < 0)
        return 1;
    memset(guest, 1, COPY_MEMORY);
    memset(target, 1, COPY_PAGES * PAGE_SIZE);
    srandom(1);
    for (uint64_t epoch = 1; epoch <= 2 * EPOCHS; epoch++) {
        uint64_t t0, t1, t2, at = 0;

        bitmap_clear_all(&dirty);
        while (bitmap_count(&dirty) < COPY_PAGES)
            bitmap_set(&dirty, (uint64_t)random() % pages);
        t0 = clock_ns();
        for (uint64_t p = bitmap_next(&dirty, 0); epoch % 2 && p < pages;
             p = bitmap_next(&dirty, p + 1))
            memcpy(target + at++ * PAGE_SIZE, guest + p * PAGE_SIZE, PAGE_SIZE);
        t1 = clock_ns();
        if (epoch % 2) {
            samples_add(&plain, t1 - t0);
            continue;
        }
        staging_put(staging, epoch, &dirty, guest, 0, pages, UINT64_MAX, &copied);
        t2 = clock_ns();
        samples_add(&ours, t2 - t1);
        staging_close(staging, epoch);
        while (staging_take(staging, COPY_PAGES, &run) && run.count)
            staging_done(staging, &run);
    }
    printf("{\"case\": \"copy\", \"pages\": %d, \"us\": %.1f, \"memcpy_us\": %.1f, \"ratio\": %.3f}\n",
           COPY_PAGES, (double)samples_quantiles(&ours).p50 / 1e3,
           (double)samples_quantiles(&plain).p50 / 1e3,
           (double)samples_quantiles(&ours).p50 / (double)samples_quantiles(&plain).p50);
    staging_free(staging);
    bitmap_free(&dirty);
    munmap(guest, COPY_MEMORY);
    munmap(target, COPY_PAGES * PAGE_SIZE);
    return 0;
}

/* --- whole checkpoints --- */

static int run_epochs(struct engine *e, struct error *err)
{
    if (engine_precopy(e, err) < 0)
        return -1;
    for (int i = 0; i < EPOCHS; i++) {
        uint64_t now = clock_ns(), due;

        pthread_mutex_lock(&e->lock);
        while ((due = pacer_due(&e->pacer, now)) > now) {
            engine_wait(e, due);
            now = clock_ns();
        }
        pthread_mutex_unlock(&e->lock);
        if (engine_checkpoint(e, true, err) < 0)
            return -1;
        if (i == EPOCHS / 2) /* before, the guest wrote pages for the first time */
            memset(e->stats.pause, 0, sizeof(e->stats.pause));
    }
    return 0;
}

static void print_case(const char *name, const struct engine *e)
{
    printf("{\"case\": \"%s\", \"platform\": \"%s\", \"accelerator\": \"%s\", \"tracker\": \"%s\", "
           "\"memory_mib\": %" PRIu64 ", \"interval_ms\": %u, \"dirty_pages\": %" PRIu64,
           name, e->cfg->platform, e->vm->accelerator, e->vm->tracker,
           e->vm->pages * PAGE_SIZE >> 20, e->cfg->interval_ms,
           samples_quantiles(&e->stats.dirty).p50);
    for (int i = 0; i < PHASES; i++)
        printf(", \"%s_ms\": %.3f", phase_names[i],
               (double)samples_quantiles(&e->stats.pause[i]).p50 / 1e6);
    printf("}\n");
    fflush(stdout);
}

/* Runs EPOCHS checkpoints of the VM that the keys describe. */
static int bench_vm(const char *name, const char *keys)
{
    char dir[] = "/tmp/remus-bench-XXXXXX", path[64];
    static struct engine engine;
    struct backup b = {0};
    struct config config;
    struct chan *chan;
    struct port *port = null_port_new();
    struct vm *vm = NULL;
    struct error err = {""};
    FILE *f;
    int rc = -1;

    if (!port || !mkdtemp(dir))
        return 1;
    snprintf(path, sizeof(path), "%s/conf", dir);
    f = fopen(path, "we");
    fprintf(f, "run-dir = \"%s\"\nvm bench {\n%s\n}\n", dir, keys);
    fclose(f);
    if (config_load(&config, path, &err) == 0 &&
        vm_platform(config.vms[0].platform)->open(&vm, &config.vms[0], &err) == 0) {
        sleep(config.vms[0].kernel[0] ? 8 : 0); /* a real guest boots */
        engine_init(&engine, &config.vms[0]);
        if (engine_open(&engine, vm, port, &err) == 0 && backup_init(&b, vm->pages) == 0 && backup_start(&b, &chan) == 0 &&
            engine_attach(&engine, link_new(chan), 0, &err) == 0) {
            rc = run_epochs(&engine, &err);
            if (rc == 0)
                print_case(name, &engine);
            engine_detach(&engine);
            backup_free(&b);
        }
        engine_free(&engine);
    }
    if (rc < 0)
        fprintf(stderr, "remus-bench epoch: %s: %s\n", name, err.text);
    if (vm)
        vm->ops->destroy(vm);
    port->ops->close(port);
    remove_folder(dir);
    return rc < 0;
}

int bench_epoch(int argc, char **argv)
{
    const char *kernel = NULL, *guest = NULL;
    char dir[] = "/tmp/remus-bench-XXXXXX", initrd[64], keys[1024];
    int rc = 0;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--kernel") == 0 && i + 1 < argc)
            kernel = argv[++i];
        else if (strcmp(argv[i], "--guest") == 0 && i + 1 < argc)
            guest = argv[++i];
        else if (strcmp(argv[i], "--json") != 0) {
            fprintf(stderr, "usage: %s [--json] [--kernel FILE --guest FILE]\n", argv[0]);
            return 2;
        }
    }
    rc |= bench_copy();
    rc |= bench_vm("pause", "platform = fake\nmemory = 256\nfake-rate = 41000\nfake-frames = 0\ntimeout = 60000");
    rc |= bench_vm("idle", "platform = fake\nmemory = 256\nfake-rate = 0\nfake-frames = 0\ntimeout = 60000");
    rc |= bench_vm("idle", "platform = fake\nmemory = 8192\nfake-rate = 0\nfake-frames = 0\ntimeout = 60000");
    if (!kernel || !guest)
        return rc;
    if (!mkdtemp(dir))
        return 1;
    snprintf(initrd, sizeof(initrd), "%s/initrd", dir);
    if (guest_write_initramfs(initrd, guest) < 0) {
        fprintf(stderr, "%s: cannot make an initramfs of %s\n", argv[0], guest);
        rc = 1;
    } else {
        snprintf(keys, sizeof(keys),
                 "platform = qemu\nmemory = 128\nkernel = \"%s\"\ninitrd = \"%s\"\n"
                 "append = 'console=ttyS0 quiet round_ms=5 pages=12'", kernel, initrd);
        rc |= bench_vm("pause", keys);
    }
    remove_folder(dir);
    return rc;
}
