/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Scope-bound cleanup: `cleanup_free char *s = ...;` and `SCOPED_LOCK(&mutex);`. */
#ifndef REMUS_CLEANUP_H
#define REMUS_CLEANUP_H

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_free_(void *p)
{
    free(*(void **)p);
}

static inline void cleanup_close_(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

static inline void cleanup_unlock_(pthread_mutex_t **m)
{
    pthread_mutex_unlock(*m);
}

#define cleanup_free __attribute__((cleanup(cleanup_free_)))
#define cleanup_close __attribute__((cleanup(cleanup_close_)))

#define SCOPED_LOCK_NAME_(line) scoped_lock_##line
#define SCOPED_LOCK_AT_(m, line)                                                                   \
    __attribute__((cleanup(cleanup_unlock_))) pthread_mutex_t *SCOPED_LOCK_NAME_(line) = (m);      \
    pthread_mutex_lock(SCOPED_LOCK_NAME_(line))
#define SCOPED_LOCK_LINE_(m, line) SCOPED_LOCK_AT_(m, line)
#define SCOPED_LOCK(m) SCOPED_LOCK_LINE_(m, __LINE__)

#endif
