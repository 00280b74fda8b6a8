/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * simd-check SEED SECONDS: keeps a pattern in an SSE register across context switches, and counts how often it
 * came back as something else.  Exits with 1 when it did: this emulation must not be trusted (see docs/xen.md).
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    time_t end = time(NULL) + (argc > 2 ? atoi(argv[2]) : 2);
    uint64_t in[2] = {seed * UINT64_C(0x0101010101010101), ~seed}, out[2];
    unsigned long rounds = 0, bad = 0;

    while (time(NULL) < end) {
        __asm__ volatile("movdqu %0, %%xmm7\n\tmov $300000, %%rcx\n1:\tdec %%rcx\n\tjnz 1b\n\t"
                         "movdqu %%xmm7, %1"
                         : "+m"(in), "=m"(out) : : "rcx", "xmm7", "memory");
        rounds++;
        bad += memcmp(in, out, sizeof(in)) != 0;
    }
    printf("%lu of %lu rounds corrupt\n", bad, rounds);
    return bad != 0;
}
