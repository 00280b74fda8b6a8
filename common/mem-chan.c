/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Two rings, one a direction, shared by both ends and freed by the last one to close. */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chan.h"
#include "cleanup.h"
#include "clock.h"

struct ring {
    uint8_t *data;
    size_t head, used;
};

struct pipe_pair {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    size_t capacity;
    struct ring ring[2]; /* ring[i] is read by end i */
    bool ended;
    int open_ends;
};

struct mem_chan {
    struct chan chan;
    struct pipe_pair *pair;
    int end;
};

static int mem_send(struct chan *c, struct iovec *iov, int count)
{
    struct mem_chan *m = (struct mem_chan *)c;
    struct pipe_pair *p = m->pair;
    struct ring *r = &p->ring[!m->end];
    struct timespec until = {(time_t)(c->send_until / NS_PER_S), (long)(c->send_until % NS_PER_S)};
    SCOPED_LOCK(&p->lock);

    for (int i = 0; i < count; i++)
        for (size_t done = 0; done < iov[i].iov_len;) {
            size_t at = (r->head + r->used) % p->capacity;
            size_t n = iov[i].iov_len - done;

            if (p->ended) {
                errno = EPIPE;
                return -1;
            }
            if (n > p->capacity - r->used)
                n = p->capacity - r->used;
            if (n > p->capacity - at)
                n = p->capacity - at;
            if (n == 0) {
                if (!c->send_until) {
                    pthread_cond_wait(&p->changed, &p->lock);
                } else if (pthread_cond_timedwait(&p->changed, &p->lock, &until)) {
                    errno = ETIMEDOUT;
                    return -1;
                }
                continue;
            }
            memcpy(r->data + at, (char *)iov[i].iov_base + done, n);
            r->used += n;
            done += n;
            pthread_cond_broadcast(&p->changed);
        }
    return 0;
}

static ssize_t mem_recv(struct chan *c, void *buf, size_t len, uint64_t deadline)
{
    struct mem_chan *m = (struct mem_chan *)c;
    struct pipe_pair *p = m->pair;
    struct ring *r = &p->ring[m->end];
    struct timespec ts = {(time_t)(deadline / NS_PER_S), (long)(deadline % NS_PER_S)};
    size_t n;
    SCOPED_LOCK(&p->lock);

    while (r->used == 0) {
        if (p->ended)
            return 0;
        if (deadline == TIME_NEVER) {
            pthread_cond_wait(&p->changed, &p->lock);
        } else if (pthread_cond_timedwait(&p->changed, &p->lock, &ts) && r->used == 0 &&
                   !p->ended) {
            errno = ETIMEDOUT;
            return -1;
        }
    }
    n = r->used < p->capacity - r->head ? r->used : p->capacity - r->head;
    if (n > len)
        n = len;
    memcpy(buf, r->data + r->head, n);
    r->head = (r->head + n) % p->capacity;
    r->used -= n;
    pthread_cond_broadcast(&p->changed);
    return (ssize_t)n;
}

static void mem_shutdown(struct chan *c)
{
    struct pipe_pair *p = ((struct mem_chan *)c)->pair;
    SCOPED_LOCK(&p->lock);

    p->ended = true;
    pthread_cond_broadcast(&p->changed);
}

static uint64_t mem_rate(struct chan *c)
{
    (void)c;
    return 0;
}

static void free_pair(struct pipe_pair *p)
{
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->changed);
    free(p->ring[0].data);
    free(p->ring[1].data);
    free(p);
}

static void mem_close(struct chan *c)
{
    struct pipe_pair *p = ((struct mem_chan *)c)->pair;
    bool last;

    mem_shutdown(c);
    pthread_mutex_lock(&p->lock);
    last = --p->open_ends == 0;
    pthread_mutex_unlock(&p->lock);
    if (last)
        free_pair(p);
    free(c);
}

static const struct chan_ops mem_ops = {
    .send = mem_send,
    .recv = mem_recv,
    .shutdown = mem_shutdown,
    .rate = mem_rate,
    .close = mem_close,
};

int mem_chan_pair(struct chan *pair[2], size_t capacity)
{
    struct pipe_pair *p = calloc(1, sizeof(*p));
    struct mem_chan *m[2] = {calloc(1, sizeof(**m)), calloc(1, sizeof(**m))};
    pthread_condattr_t attr;

    if (!p || !m[0] || !m[1] || !(p->ring[0].data = malloc(capacity)) ||
        !(p->ring[1].data = malloc(capacity))) {
        if (p)
            free(p->ring[0].data);
        free(p);
        free(m[0]);
        free(m[1]);
        errno = ENOMEM;
        return -1;
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&p->changed, &attr);
    pthread_condattr_destroy(&attr);
    p->capacity = capacity;
    p->open_ends = 2;
    for (int i = 0; i < 2; i++) {
        m[i]->chan.ops = &mem_ops;
        m[i]->pair = p;
        m[i]->end = i;
        snprintf(m[i]->chan.peer, sizeof(m[i]->chan.peer), "memory");
        pair[i] = &m[i]->chan;
    }
    return 0;
}
