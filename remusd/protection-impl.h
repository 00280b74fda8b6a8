/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Shared by protection.c and status.c only. */
#ifndef REMUS_PROTECTION_IMPL_H
#define REMUS_PROTECTION_IMPL_H

#include "common/arbiter.h"
#include "engine.h"
#include "lifecycle.h"
#include "protection.h"

struct protection {
    const struct vm_config *cfg;
    pthread_t thread;
    struct vm *vm;
    struct port *port;
    uint64_t session;  /* this run of the guest, see HELLO */
    bool continuous;   /* every page that changed since the backup's checkpoint is known */
    struct arbiter arbiter;
    struct engine engine;
    uint64_t committed; /* what the backup held when the link came up */
    bool synchronised; /* it lacks nothing that is not in the next checkpoint */
    bool handing_over; /* the guest is suspended, HANDOVER may be on its way */

    /* under engine.lock */
    bool ready;        /* vm, port and engine are there */
    bool can_verify;   /* the backup compares disks */
    struct lifecycle lc;
    enum protection_request request;
    char last_error[512];
    uint64_t last_error_at;
};

#endif
