/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Monotonic time, and that of the calendar, in nanoseconds.  Pure modules never call this: they are handed `now`. */
#ifndef REMUS_CLOCK_H
#define REMUS_CLOCK_H

#include <stdint.h>
#include <time.h>

#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S UINT64_C(1000000000)
#define TIME_NEVER UINT64_MAX

static inline uint64_t clock_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* Since 1970; for comparing hosts and for people, never for deadlines. */
static inline uint64_t clock_realtime_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* Sleeps until the monotonic time `when`; a signal may end it early. */
static inline void clock_sleep_until(uint64_t when)
{
    struct timespec ts = {(time_t)(when / NS_PER_S), (long)(when % NS_PER_S)};

    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
}

#endif
