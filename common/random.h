/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A number for what must never be taken for another: a run of a guest, a lineage of an image.  Never 0. */
#ifndef REMUS_RANDOM_H
#define REMUS_RANDOM_H

#include <stdint.h>
#include <sys/random.h>

#include "common/clock.h"

static inline uint64_t random_id(void)
{
    uint64_t id;

    do {
        if (getrandom(&id, sizeof(id), 0) != sizeof(id))
            id = clock_ns();
    } while (id == 0);
    return id;
}

#endif
