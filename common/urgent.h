/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Threads that must not wait for a processor behind ordinary work: heartbeats, since a busy host must not look like a
 * dead one, and the pause, since the guest stands still in it.  As Corosync and Pacemaker do it; without
 * the privilege (CAP_SYS_NICE) the thread stays ordinary.
 */
#ifndef REMUS_URGENT_H
#define REMUS_URGENT_H

#include <pthread.h>
#include <sched.h>
#include <stdbool.h>

/* The calling thread: lowest real-time priority, or back to ordinary.  Threads and processes that it starts are ordinary. */
static inline void thread_urgent(bool urgent)
{
    struct sched_param p = {.sched_priority = urgent ? 1 : 0};

    pthread_setschedparam(pthread_self(), (urgent ? SCHED_RR : SCHED_OTHER) | SCHED_RESET_ON_FORK, &p);
}

#endif
