/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Transcripts of remusd/pacer.h. `advance` is the epoch loop: it wakes up exactly when a checkpoint
 * is due and takes it; `late` is a loop that wakes up only at the end.
 */
#include <stdio.h>
#include <string.h>

#include "remusd/pacer.h"
#include "transcript.h"

static struct pacer p;
static uint64_t now, epoch, waited;

static void begin(void)
{
    now = 1000 * NS_PER_S;
    p = (struct pacer){0};
    epoch = waited = 0;
    pacer_start(&p, 0, 25 * NS_PER_MS);
}

static void take(uint64_t began)
{
    pacer_taken(&p, ++epoch, now);
    transcript_say("+%llu checkpoint %llu", (unsigned long long)((now - began) / NS_PER_MS),
                   (unsigned long long)epoch);
}

static void show_waits(void)
{
    if (p.waited != waited)
        transcript_say("waits for an acknowledgement (%llu)", (unsigned long long)p.waited);
    waited = p.waited;
}

/* Wakes up each millisecond, as for other reasons a loop does. */
static void advance(uint64_t ms)
{
    uint64_t began = now;

    for (uint64_t t = 0; t <= ms; t++) {
        now = began + t * NS_PER_MS;
        if (pacer_due(&p, now) <= now)
            take(began);
        show_waits();
    }
}

static void late(uint64_t ms)
{
    uint64_t began = now;

    now += ms * NS_PER_MS;
    while (pacer_due(&p, now) <= now)
        take(began);
    show_waits();
}

static bool command(const char *word, const char *args)
{
    unsigned n = 0;

    sscanf(args, "%u", &n);
    if (strcmp(word, "advance") == 0)
        advance(n);
    else if (strcmp(word, "late") == 0)
        late(n);
    else if (strcmp(word, "acked") == 0)
        pacer_acked(&p, n);
    else if (strcmp(word, "interval") == 0)
        p.interval = n * NS_PER_MS;
    else if (strcmp(word, "reconnected") == 0)
        pacer_start(&p, p.taken, p.interval);
    else if (strcmp(word, "early") == 0 && pacer_early(&p) > now && pacer_early(&p) != TIME_NEVER)
        transcript_say("not for %lld ms", (long long)(pacer_early(&p) - now) / (long long)NS_PER_MS);
    else if (strcmp(word, "early") == 0 && pacer_early(&p) > now)
        transcript_say("not before an acknowledgement");
    else if (strcmp(word, "early") == 0)
        take(now), transcript_say("early: %llu", (unsigned long long)p.early);
    else if (strcmp(word, "due") == 0 && pacer_due(&p, now) == TIME_NEVER)
        transcript_say("not before an acknowledgement");
    else if (strcmp(word, "due") == 0)
        transcript_say("in %lld ms", (long long)(pacer_due(&p, now) - now) / (long long)NS_PER_MS);
    else
        return false;
    show_waits();
    return true;
}

int main(int argc, char **argv)
{
    static const struct transcript_machine machine = {"pacer", begin, command};

    return transcript_main(argc, argv, &machine);
}
