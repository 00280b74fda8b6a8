/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "workers.h"

struct workers {
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    void (*fn)(void *arg, unsigned i);
    void *arg;
    unsigned count, next, running; /* of the batch: pieces, not yet begun, begun and not done */
    bool stopping;
    unsigned threads;
    pthread_t thread[];
};

/* Works until the batch has no piece left that nobody has begun; lock is held. */
static void work_off(struct workers *w)
{
    while (w->next < w->count) {
        unsigned i = w->next++;

        w->running++;
        pthread_mutex_unlock(&w->lock);
        w->fn(w->arg, i);
        pthread_mutex_lock(&w->lock);
        if (--w->running == 0)
            pthread_cond_signal(&w->done);
    }
}

static void *run(void *arg)
{
    struct workers *w = arg;
    SCOPED_LOCK(&w->lock);

    while (!w->stopping) {
        work_off(w);
        pthread_cond_wait(&w->work, &w->lock);
    }
    return NULL;
}

struct workers *workers_new(unsigned threads)
{
    struct workers *w = calloc(1, sizeof(*w) + threads * sizeof(*w->thread));
    int rc = 0;

    if (!w)
        return NULL;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->work, NULL);
    pthread_cond_init(&w->done, NULL);
    for (; w->threads + 1 < threads; w->threads++) {
        rc = pthread_create(&w->thread[w->threads], NULL, run, w);
        if (rc) {
            workers_free(w);
            errno = rc;
            return NULL;
        }
    }
    return w;
}

void workers_free(struct workers *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    w->stopping = true;
    pthread_cond_broadcast(&w->work);
    pthread_mutex_unlock(&w->lock);
    for (unsigned i = 0; i < w->threads; i++)
        pthread_join(w->thread[i], NULL);
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->work);
    pthread_cond_destroy(&w->done);
    free(w);
}

void workers_run(struct workers *w, unsigned count, void (*fn)(void *arg, unsigned i), void *arg)
{
    SCOPED_LOCK(&w->lock);

    w->fn = fn;
    w->arg = arg;
    w->next = 0;
    w->count = count;
    if (count > 1)
        pthread_cond_broadcast(&w->work);
    work_off(w);
    while (w->running)
        pthread_cond_wait(&w->done, &w->lock);
}
