/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The page that the fake guest shares with its daemon.
 *
 * Suspending: `want` counts; odd = park.  The daemon makes it odd, wakes the guest with SIGUSR1 and waits until
 * `parked` has the same value; only then are memory and `regs` at rest.  A value is used once, so an answer to
 * an earlier request is never taken for one to this.  To resume, the daemon makes it even.  Both are futexes.
 */
#ifndef REMUS_FAKE_CONTROL_H
#define REMUS_FAKE_CONTROL_H

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/config.h"
#include "model.h"

#define FAKE_CONTROL_MAGIC UINT64_C(0x52454d5543544c31)
#define FAKE_CONTROL_SIZE 4096u
#define FAKE_RAM_FD 3
#define FAKE_CONTROL_FD 4

enum fake_state { FAKE_STARTING, FAKE_RUNNING, FAKE_SHUT_DOWN, FAKE_FAILED };

struct fake_control {
    uint64_t magic;

    /* Written before the guest starts. */
    char name[CONFIG_NAME_MAX + 1];
    char pid_file[256];
    char net_guest[108], net_port[108];
    uint64_t pages;
    uint8_t mac[6];
    bool arm;     /* put the memory under write protection */
    bool restore; /* memory and regs come from a checkpoint */

    /* The workload; may change at any time. */
    _Atomic uint32_t rate, frame_rate, pattern;

    _Atomic uint32_t want, parked;
    struct model_regs regs;

    /* Written by the guest. */
    _Atomic uint32_t state;
    int32_t pid;
    uint64_t address; /* of its memory, 0 = not armed */
    _Atomic uint64_t seq, writes, bad, frames, requests, verified;
    char error[256];
};

_Static_assert(sizeof(struct fake_control) <= FAKE_CONTROL_SIZE, "one page");

static inline void futex_wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* Returns when *word is no longer `value`, or by a signal, or after the time. */
static inline void futex_wait(_Atomic uint32_t *word, uint32_t value, const struct timespec *time)
{
    syscall(SYS_futex, word, FUTEX_WAIT, value, time, NULL, 0);
}

#endif
