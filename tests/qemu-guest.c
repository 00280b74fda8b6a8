/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The whole userland of a test guest: /init of its initramfs.  Writes to random pages of 32 MiB,
 * remembers in another place what it wrote, and checks both against each other, so that a page lost
 * on the way to the replica shows. Prints "C <count>" ten times a second, "CORRUPT ..." when memory
 * is not what it was.
 *
 * Kernel parameters, as they reach init's environment: round_ms (5), pages (16) written a round,
 * and then=poweroff, which ends the guest after three counts.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>

#define PAGES 8192u
#define WORDS 512u

static uint64_t memory[PAGES][WORDS] __attribute__((aligned(4096)));
static uint64_t expected[PAGES];

static uint64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static unsigned setting(const char *name, unsigned otherwise)
{
    const char *text = getenv(name);

    return text ? (unsigned)strtoul(text, NULL, 10) : otherwise;
}

static void check(unsigned page)
{
    if (memory[page][0] != expected[page] || memory[page][WORDS - 1] != expected[page])
        printf("CORRUPT page %u\n", page);
}

int main(void)
{
    unsigned ms = setting("round_ms", 5), pages = setting("pages", 16), count = 0;
    const char *then = getenv("then");
    uint64_t random = 88172645463325252u, stamp = 0, next = now_ms();

    setvbuf(stdout, NULL, _IONBF, 0);
    for (;;) {
        for (unsigned i = 0; i < pages; i++) {
            unsigned page;

            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            page = (unsigned)(random % PAGES);
            check(page);
            memory[page][0] = memory[page][WORDS - 1] = expected[page] = ++stamp;
        }
        if (now_ms() >= next) {
            for (unsigned page = 0; page < PAGES; page++)
                check(page);
            printf("C %u\n", ++count);
            next = now_ms() + 100;
            if (then && strcmp(then, "poweroff") == 0 && count == 3)
                reboot(RB_POWER_OFF);
        }
        usleep(ms * 1000);
    }
}
