/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The userland of the lab's guests: a workload whose memory can be checked at any time.
 *
 *     guest MIB RATE
 *
 * answers each datagram to UDP port 7000 with how many it has answered, which no client may ever see go down; it
 * rewrites RATE pages a second of MIB MiB, each with words that follow from its number and from how often it was
 * written, and keeps its ledger in both memory and processor: how many writes there were is in a register
 * variable, each page's own count in the page.  Once a second it prints "TICK n writes w", now and then it reads
 * all pages, and says "LEDGER ok n" or "LEDGER BROKEN ...": a page of another epoch than the rest shows, as the
 * counts of all pages must add up to the writes.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#define WORDS 512u
#define SLICE_MS 20u
#define PORT 7000
#define CHECK_EVERY 3u /* seconds */

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static uint64_t word(uint64_t page, uint64_t count, unsigned i)
{
    return mix(page << 32 ^ count << 10 ^ i);
}

/* Word 0: how often the page was written; one word in 32 follows from it. */
static void write_page(uint64_t *p, uint64_t page)
{
    uint64_t count = ++p[0];

    for (unsigned i = 31; i < WORDS; i += 32)
        p[i] = word(page, count, i);
}

static int check(const uint64_t *memory, uint64_t pages, uint64_t writes)
{
    uint64_t sum = 0;

    for (uint64_t page = 0; page < pages; page++) {
        const uint64_t *p = memory + page * WORDS;

        sum += p[0];
        for (unsigned i = 31; i < WORDS; i += 32)
            if (p[i] != (p[0] ? word(page, p[0], i) : 0))
                return printf("LEDGER BROKEN page %" PRIu64 " word %u\n", page, i), -1;
    }
    if (sum != writes)
        return printf("LEDGER BROKEN %" PRIu64 " writes, pages hold %" PRIu64 "\n", writes, sum), -1;
    return 0;
}

static int open_port(void)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);

    return fd >= 0 && bind(fd, (struct sockaddr *)&any, sizeof(any)) == 0 ? fd : -1;
}

static void answer(int fd, uint64_t *answered)
{
    struct sockaddr_in who;
    socklen_t len = sizeof(who);
    char text[32];

    while (fd >= 0 && recvfrom(fd, text, sizeof(text), 0, (struct sockaddr *)&who, &len) >= 0) {
        int n = snprintf(text, sizeof(text), "%" PRIu64 "\n", ++*answered);

        sendto(fd, text, (size_t)n, 0, (struct sockaddr *)&who, len);
    }
}

static uint64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
    uint64_t pages = (argc > 1 ? strtoull(argv[1], NULL, 10) : 16) * 256;
    uint64_t rate = argc > 2 ? strtoull(argv[2], NULL, 10) : 500;
    uint64_t answered = 0, writes = 0, random = pages, ticks = 0, last = now_ms();
    uint64_t *memory = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    struct timespec slice = {.tv_nsec = SLICE_MS * 1000000};
    int port = open_port();

    if (memory == MAP_FAILED || pages == 0)
        return puts("LEDGER BROKEN no memory"), 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (;;) {
        answer(port, &answered);
        for (uint64_t i = 0; i < rate * SLICE_MS / 1000; i++) {
            uint64_t page = mix(random += UINT64_C(0x9e3779b97f4a7c15)) % pages;

            write_page(memory + page * WORDS, page);
            writes++;
        }
        if (now_ms() - last >= 1000) {
            last = now_ms();
            printf("TICK %" PRIu64 " writes %" PRIu64 "\n", ++ticks, writes);
            if (ticks % CHECK_EVERY == 0 && check(memory, pages, writes) == 0)
                printf("LEDGER ok %" PRIu64 "\n", ticks);
        }
        nanosleep(&slice, NULL);
    }
}
