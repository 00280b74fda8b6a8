/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Prints the rate of this processor's time stamp counter in kHz, for a guest's tsc_early_khz=.
 *
 * An emulated guest sees the host's counter but can only calibrate it against an emulated timer. On a busy host
 * that fails, and a microvm has no other clock: it hangs before its first line of output.
 */
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

struct moment {
    uint64_t tsc, ns;
};

/* The reading of both clocks that was disturbed least, of many. */
static struct moment read_clocks(void)
{
    struct moment m = {0, 0};
    uint64_t best = UINT64_MAX;

    for (int i = 0; i < 1000; i++) {
        struct timespec t;
        uint64_t before = __rdtsc(), passed;

        clock_gettime(CLOCK_MONOTONIC_RAW, &t);
        passed = __rdtsc() - before;
        if (passed < best) {
            best = passed;
            m.tsc = before + passed / 2;
            m.ns = (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
        }
    }
    return m;
}

int main(void)
{
    struct moment a = read_clocks(), b;

    nanosleep(&(struct timespec){0, 50000000}, NULL);
    b = read_clocks();
    printf("%.0f\n", (double)(b.tsc - a.tsc) * 1e6 / (double)(b.ns - a.ns));
    return 0;
}
