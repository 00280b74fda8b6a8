/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * remus-bench record: compares a memory with a shadow of it at each interval and writes what
 * changed as a trace.  The memory is a guest's RAM file (--ram) or a System V segment, PostgreSQL's
 * with shared_memory_type=sysv (--shm).
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/bench.h"
#include "bench/trace.h"
#include "common/cleanup.h"
#include "common/clock.h"

#define PAGE sizeof(((struct trace_record *)0)->page)

static volatile sig_atomic_t stop;

static void on_signal(int sig)
{
    (void)sig;
    stop = 1;
}

static const uint8_t *map_ram(const char *path, size_t *len, struct error *err)
{
    cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    void *map;

    if (fd < 0 || fstat(fd, &st) < 0) {
        error_set(err, "%s: %s", path, strerror(errno));
        return NULL;
    }
    *len = (size_t)st.st_size;
    map = *len ? mmap(NULL, *len, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (map == MAP_FAILED) {
        error_set(err, "%s: cannot map %zu bytes: %s", path, *len, strerror(errno));
        return NULL;
    }
    return map;
}

static const uint8_t *map_shm(const char *id, size_t *len, struct error *err)
{
    struct shmid_ds ds;
    void *map = shmat(atoi(id), NULL, SHM_RDONLY);

    if (map == (void *)-1 || shmctl(atoi(id), IPC_STAT, &ds) < 0) {
        error_set(err, "shared memory segment %s: %s (see ipcs -m)", id, strerror(errno));
        return NULL;
    }
    *len = ds.shm_segsz;
    return map;
}

/* Writes the pages that differ from the shadow; how many, or -1. */
static long record_epoch(const uint8_t *memory, uint8_t *shadow, uint8_t *known, size_t pages,
                         uint32_t epoch, FILE *out)
{
    long changed = 0;

    for (size_t i = 0; i < pages; i++) {
        uint8_t *copy = shadow + i * PAGE;
        uint8_t page[PAGE];

        if (memcmp(memory + i * PAGE, copy, PAGE) == 0)
            continue;
        if (!known[i] && trace_write(out, epoch, 1, i, copy) < 0)
            return -1;
        known[i] = 1;
        /* The guest runs on: what is recorded is what the shadow becomes. */
        memcpy(page, memory + i * PAGE, PAGE);
        memcpy(copy, page, PAGE);
        if (trace_write(out, epoch, 0, i, page) < 0)
            return -1;
        changed++;
    }
    return changed;
}

static int record(const uint8_t *memory, size_t pages, const char *output, unsigned seconds,
                  unsigned interval_ms, struct error *err)
{
    cleanup_free uint8_t *shadow = malloc(pages * PAGE);
    cleanup_free uint8_t *known = calloc(pages, 1);
    FILE *out = fopen(output, "we");
    uint64_t start, total = 0;
    uint32_t epoch = 0;
    long changed = 0;

    if (!out)
        return error_set(err, "%s: %s", output, strerror(errno));
    if (!shadow || !known) {
        fclose(out);
        return error_set(err, "not enough memory for a shadow of %zu pages", pages);
    }
    memcpy(shadow, memory, pages * PAGE);
    start = clock_ns();
    while (!stop && changed >= 0 && clock_ns() - start < seconds * NS_PER_S) {
        clock_sleep_until(start + ++epoch * interval_ms * NS_PER_MS);
        changed = record_epoch(memory, shadow, known, pages, epoch, out);
        total += changed > 0 ? (uint64_t)changed : 0;
    }
    if (fclose(out) != 0 || changed < 0)
        return error_set(err, "%s: %s", output, strerror(errno));
    fprintf(stderr, "%s: %" PRIu32 " epochs in %.1f s, %.1f changed pages an epoch\n", output,
            epoch, (double)(clock_ns() - start) / 1e9, epoch ? (double)total / epoch : 0.0);
    return 0;
}

int bench_record(int argc, char **argv)
{
    static const struct option options[] = {
        {"ram", required_argument, NULL, 'r'},     {"shm", required_argument, NULL, 's'},
        {"output", required_argument, NULL, 'o'},  {"seconds", required_argument, NULL, 't'},
        {"interval", required_argument, NULL, 'i'}, {0}};
    const char *ram = NULL, *shm = NULL, *output = NULL;
    unsigned seconds = 20, interval = 25;
    const uint8_t *memory;
    struct error err;
    size_t len = 0;
    int c;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
        switch (c) {
        case 'r':
            ram = optarg;
            break;
        case 's':
            shm = optarg;
            break;
        case 'o':
            output = optarg;
            break;
        case 't':
            seconds = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'i':
            interval = (unsigned)strtoul(optarg, NULL, 10);
            break;
        default:
            return 2;
        }
    if (!ram == !shm || !output || !seconds || !interval || optind != argc) {
        fprintf(stderr,
                "usage: %s (--ram FILE | --shm ID) --output FILE [--seconds S] [--interval MS]\n",
                argv[0]);
        return 2;
    }
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    memory = ram ? map_ram(ram, &len, &err) : map_shm(shm, &len, &err);
    if (!memory || record(memory, len / PAGE, output, seconds, interval, &err) < 0) {
        fprintf(stderr, "%s: %s\n", argv[0], err.text);
        return 1;
    }
    return 0;
}
