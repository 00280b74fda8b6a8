/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/cleanup.h"
#include "staging.h"
#include "vm/vm.h"

#define ENDS_MAX 4      /* closed epochs not yet taken: two checkpoints in flight, and a margin */

struct end {
    uint64_t epoch, at;
};

struct staging {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint8_t *pages;
    uint64_t *pfns, *epochs;
    uint64_t capacity;
    uint64_t put, head, tail; /* ever put, shown to take, done; in the ring modulo capacity */
    struct end ends[ENDS_MAX];
    unsigned end_count;
    bool aborted, poked;
    uint64_t stretched;
};

struct staging *staging_new(size_t bytes)
{
    struct staging *s = calloc(1, sizeof(*s));

    if (!s)
        return NULL;
    s->capacity = bytes / PAGE_SIZE;
    s->pfns = calloc(s->capacity, sizeof(*s->pfns));
    s->epochs = calloc(s->capacity, sizeof(*s->epochs));
    s->pages = mmap(NULL, s->capacity * PAGE_SIZE, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (s->pages == MAP_FAILED)
        s->pages = NULL;
    if (!s->pages || !s->pfns || !s->epochs) {
        staging_free(s);
        errno = ENOMEM;
        return NULL;
    }
    madvise(s->pages, s->capacity * PAGE_SIZE, MADV_HUGEPAGE);
    for (uint64_t i = 0; i < s->capacity; i++) {
        s->pages[i * PAGE_SIZE] = 0;
        s->pfns[i] = s->epochs[i] = 0;
    }
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    return s;
}

void staging_free(struct staging *s)
{
    if (!s)
        return;
    if (s->pages)
        munmap(s->pages, s->capacity * PAGE_SIZE);
    free(s->pfns);
    free(s->epochs);
    free(s);
}

void staging_reset(struct staging *s)
{
    SCOPED_LOCK(&s->lock);

    s->put = s->head = s->tail = 0;
    s->end_count = 0;
    s->aborted = s->poked = false;
}

void staging_abort(struct staging *s)
{
    SCOPED_LOCK(&s->lock);

    s->aborted = true;
    pthread_cond_broadcast(&s->changed);
}

/* Waits until there is room for more.  Pages of room, or 0 when aborted. */
static uint64_t make_room(struct staging *s, uint64_t put, bool in_pause)
{
    SCOPED_LOCK(&s->lock);

    s->put = put;
    if (!s->aborted && s->put - s->tail == s->capacity) {
        s->head = put; /* it must be shipped to make room */
        pthread_cond_broadcast(&s->changed);
        s->stretched += in_pause;
    }
    while (!s->aborted && s->put - s->tail == s->capacity)
        pthread_cond_wait(&s->changed, &s->lock);
    return s->aborted ? 0 : s->capacity - (s->put - s->tail);
}

uint64_t staging_put(struct staging *s, uint64_t epoch, const struct bitmap *dirty,
                     const uint8_t *memory, uint64_t from, uint64_t end, uint64_t limit,
                     uint64_t *copied)
{
    uint64_t put, room, pfn;

    pthread_mutex_lock(&s->lock);
    put = s->put;
    room = s->capacity - (s->put - s->tail);
    pthread_mutex_unlock(&s->lock);
    *copied = 0;
    for (pfn = bitmap_next(dirty, from); pfn < end && *copied < limit;
         pfn = bitmap_next(dirty, pfn + 1)) {
        uint64_t at = put % s->capacity;

        if (room == 0) {
            room = make_room(s, put, epoch != 0);
            if (room == 0)
                return UINT64_MAX;
        }
        memcpy(s->pages + at * PAGE_SIZE, memory + pfn * PAGE_SIZE, PAGE_SIZE);
        s->pfns[at] = pfn;
        s->epochs[at] = epoch;
        put++;
        room--;
        ++*copied;
    }
    SCOPED_LOCK(&s->lock);
    s->put = put;
    if (epoch == 0) { /* a checkpoint's pages wait for staging_close: nobody compresses in a pause */
        s->head = put;
        pthread_cond_broadcast(&s->changed);
    }
    return s->aborted ? UINT64_MAX : pfn < end ? pfn : end;
}

void staging_close(struct staging *s, uint64_t epoch)
{
    SCOPED_LOCK(&s->lock);

    s->head = s->put;
    if (s->end_count < ENDS_MAX)
        s->ends[s->end_count++] = (struct end){epoch, s->head};
    pthread_cond_broadcast(&s->changed);
}

bool staging_take(struct staging *s, size_t max, struct staging_run *run)
{
    uint64_t at, stop;
    SCOPED_LOCK(&s->lock);

    while (!s->aborted && !s->poked && s->head == s->tail && s->end_count == 0)
        pthread_cond_wait(&s->changed, &s->lock);
    if (s->aborted)
        return false;
    if (s->head == s->tail && s->end_count == 0) {
        *run = (struct staging_run){.poked = true};
        s->poked = false;
        return true;
    }
    if (s->end_count && s->ends[0].at == s->tail) {
        *run = (struct staging_run){.epoch = s->ends[0].epoch};
        memmove(s->ends, s->ends + 1, --s->end_count * sizeof(*s->ends));
        return true;
    }
    at = s->tail % s->capacity;
    stop = s->head - s->tail;
    if (stop > max)
        stop = max;
    if (stop > s->capacity - at)
        stop = s->capacity - at;
    *run = (struct staging_run){
        .epoch = s->epochs[at],
        .pfns = s->pfns + at,
        .pages = s->pages + at * PAGE_SIZE,
    };
    while (run->count < stop && s->epochs[at + run->count] == run->epoch &&
           (run->count == 0 || run->pfns[run->count] > run->pfns[run->count - 1]))
        run->count++;
    return true;
}

void staging_done(struct staging *s, const struct staging_run *run)
{
    SCOPED_LOCK(&s->lock);

    s->tail += run->count;
    pthread_cond_broadcast(&s->changed);
}

void staging_poke(struct staging *s)
{
    SCOPED_LOCK(&s->lock);

    s->poked = true;
    pthread_cond_broadcast(&s->changed);
}

void staging_stats(struct staging *s, struct staging_stats *stats)
{
    SCOPED_LOCK(&s->lock);

    *stats = (struct staging_stats){(s->put - s->tail) * PAGE_SIZE, s->capacity * PAGE_SIZE,
                                    s->stretched};
}
