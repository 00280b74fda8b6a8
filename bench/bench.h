/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * remus-bench VERB ...: one file a verb (bench-VERB.c), each with its line in the table of remus-
 * bench.c. A verb is handed its own arguments with argv[0] = "remus-bench VERB", and returns the
 * exit status: 0, 1 (failed, the reason is on stderr) or 2 (wrong usage).
 */
#ifndef REMUS_BENCH_H
#define REMUS_BENCH_H

#include <stdint.h>
#include <time.h>

#include "common/clock.h"

struct bench_verb {
    const char *name, *synopsis, *help;
    int (*run)(int argc, char **argv);
};

int bench_compress(int argc, char **argv);
int bench_disk(int argc, char **argv);
int bench_epoch(int argc, char **argv);
int bench_record(int argc, char **argv);
int bench_netbuf(int argc, char **argv);
int bench_netbuf_queue(int argc, char **argv);

/* Processor time of all threads of this process. */
static inline uint64_t process_cpu_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* A part of netbuf: the exit status. */
int bench_netbuf_pgsql(void);

/* A folder and all that is in it. */
void remove_folder(const char *dir);

#endif
