/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "buffer.h"
#include "cleanup.h"
#include "clock.h"
#include "hash.h"
#include "link.h"
#include "urgent.h"

struct link {
    struct chan *chan;

    pthread_mutex_t send_lock;
    uint64_t last_sent;
    _Atomic uint64_t bytes_sent;

    /* receiver only, but for last_heard and bytes_received */
    uint8_t header[PROTO_HEADER_LEN];
    size_t header_have, body_have;
    struct proto_header current;
    struct buffer body;
    bool corrupt; /* nothing behind the first error is looked at */
    _Atomic uint64_t last_heard, bytes_received;

    /* heartbeats */
    pthread_mutex_t beat_lock;
    pthread_cond_t beat_stop;
    bool stopping, beating;
    uint64_t heartbeat_ns;
    pthread_t beat_thread;
};

struct link *link_new(struct chan *chan)
{
    struct link *l = calloc(1, sizeof(*l));
    pthread_mutexattr_t inherit;
    pthread_condattr_t attr;

    if (!l) {
        chan->ops->close(chan);
        return NULL;
    }
    l->chan = chan;
    l->last_heard = clock_ns();
    pthread_mutexattr_init(&inherit);
    pthread_mutexattr_setprotocol(&inherit, PTHREAD_PRIO_INHERIT);
    pthread_mutex_init(&l->send_lock, &inherit);
    pthread_mutexattr_destroy(&inherit);
    pthread_mutex_init(&l->beat_lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&l->beat_stop, &attr);
    pthread_condattr_destroy(&attr);
    return l;
}

const char *link_peer(const struct link *l)
{
    return l->chan->peer;
}

void link_limit_sends(struct link *l, uint64_t deadline)
{
    l->chan->send_until = deadline;
}

static uint64_t record_checksum(const uint8_t *header, const struct iovec *body, int count)
{
    XXH3_state_t state;

    XXH3_64bits_reset(&state);
    XXH3_64bits_update(&state, header, PROTO_CHECKED);
    for (int i = 0; i < count; i++)
        XXH3_64bits_update(&state, body[i].iov_base, body[i].iov_len);
    return XXH3_64bits_digest(&state);
}

/* send_lock is held. */
static int send_locked(struct link *l, enum proto_type type, uint64_t epoch,
                       const struct iovec *body, int count, uint64_t *checksum)
{
    struct proto_header h = {.type = type, .epoch = epoch};
    uint8_t header[PROTO_HEADER_LEN];
    struct iovec iov[4] = {{header, sizeof(header)}};
    size_t length = 0;

    for (int i = 0; i < count; i++) {
        iov[i + 1] = body[i];
        length += body[i].iov_len;
    }
    h.length = (uint32_t)length;
    proto_put_header(header, &h);
    *checksum = h.checksum = record_checksum(header, body, count);
    proto_put_header(header, &h);
    if (l->chan->ops->send(l->chan, iov, count + 1) < 0)
        return -1;
    l->last_sent = clock_ns();
    l->bytes_sent += sizeof(header) + length;
    return 0;
}

int link_send_summed(struct link *l, enum proto_type type, uint64_t epoch, const struct iovec *body,
                     int count, uint64_t *checksum)
{
    SCOPED_LOCK(&l->send_lock);

    return send_locked(l, type, epoch, body, count, checksum);
}

int link_send(struct link *l, enum proto_type type, uint64_t epoch, const struct iovec *body,
              int count)
{
    uint64_t checksum;

    return link_send_summed(l, type, epoch, body, count, &checksum);
}

int link_send_empty(struct link *l, enum proto_type type, uint64_t epoch)
{
    return link_send(l, type, epoch, NULL, 0);
}

int link_send_notice(struct link *l, enum proto_type type, unsigned code, const char *text)
{
    uint8_t body[PROTO_SMALL_MAX];
    struct iovec iov = {body, proto_put_notice(body, code, text)};

    return link_send(l, type, 0, &iov, 1);
}

static void *beat(void *arg)
{
    struct link *l = arg;
    SCOPED_LOCK(&l->beat_lock);

    thread_urgent(true);

    while (!l->stopping) {
        uint64_t due = clock_ns() + l->heartbeat_ns, checksum;
        struct timespec ts;

        /* What a sender sends is a sign of life by itself; while this thread waits for it, it is as urgent. */
        pthread_mutex_lock(&l->send_lock);
        if (l->last_sent + l->heartbeat_ns <= clock_ns() + l->heartbeat_ns / 8)
            send_locked(l, PROTO_HEARTBEAT, 0, NULL, 0, &checksum); /* a broken link shows in recv */
        due = l->last_sent + l->heartbeat_ns;
        pthread_mutex_unlock(&l->send_lock);
        if (due <= clock_ns())
            due = clock_ns() + l->heartbeat_ns;
        ts = (struct timespec){(time_t)(due / NS_PER_S), (long)(due % NS_PER_S)};
        pthread_cond_timedwait(&l->beat_stop, &l->beat_lock, &ts);
    }
    return NULL;
}

int link_start_heartbeats(struct link *l, uint64_t heartbeat_ns)
{
    l->heartbeat_ns = heartbeat_ns;
    errno = pthread_create(&l->beat_thread, NULL, beat, l);
    l->beating = errno == 0;
    return l->beating ? 0 : -1;
}

/* Fills dst[*have .. want) as far as the stream gives. */
static enum link_result fill(struct link *l, uint8_t *dst, size_t *have, size_t want,
                             uint64_t deadline)
{
    while (*have < want) {
        ssize_t n = l->chan->ops->recv(l->chan, dst + *have, want - *have, deadline);

        if (n == 0)
            return LINK_CLOSED;
        if (n < 0)
            return errno == ETIMEDOUT ? LINK_TIMEOUT : LINK_CLOSED;
        *have += (size_t)n;
        l->last_heard = clock_ns();
        l->bytes_received += (uint64_t)n;
    }
    return LINK_RECORD;
}

static enum link_result recv_record(struct link *l, struct record *rec, uint64_t deadline,
                                    struct error *err)
{
    struct iovec body;
    enum link_result r;

    if (l->header_have < sizeof(l->header)) {
        r = fill(l, l->header, &l->header_have, sizeof(l->header), deadline);
        if (r != LINK_RECORD)
            return r;
        l->body_have = 0;
        buffer_clear(&l->body);
        if (proto_get_header(&l->current, l->header, err) < 0)
            return LINK_CORRUPT;
        if (buffer_reserve(&l->body, l->current.length) < 0) {
            error_set(err, "no memory for a record of %" PRIu32 " octets", l->current.length);
            return LINK_CORRUPT;
        }
    }
    r = fill(l, l->body.data, &l->body_have, l->current.length, deadline);
    if (r != LINK_RECORD)
        return r;
    body = (struct iovec){l->body.data, l->current.length};
    l->header_have = 0;
    if (record_checksum(l->header, &body, 1) != l->current.checksum) {
        error_set(err, "%s record of epoch %" PRIu64 ": checksum wrong, the stream is corrupt",
                  proto_type_name(l->current.type), l->current.epoch);
        return LINK_CORRUPT;
    }
    *rec = (struct record){(enum proto_type)l->current.type, l->current.epoch, l->body.data,
                           l->current.length, l->current.checksum};
    return LINK_RECORD;
}

enum link_result link_recv(struct link *l, struct record *rec, uint64_t deadline,
                           struct error *err)
{
    enum link_result r = l->corrupt ? LINK_CLOSED : recv_record(l, rec, deadline, err);

    l->corrupt = l->corrupt || r == LINK_CORRUPT;
    return r;
}

uint64_t link_last_heard(const struct link *l)
{
    return l->last_heard;
}

uint64_t link_rate(const struct link *l)
{
    return l->chan->ops->rate(l->chan);
}

uint64_t link_bytes_sent(const struct link *l)
{
    return l->bytes_sent;
}

uint64_t link_bytes_received(const struct link *l)
{
    return l->bytes_received;
}

void link_shutdown(struct link *l)
{
    l->chan->ops->shutdown(l->chan);
}

void link_free(struct link *l)
{
    if (!l)
        return;
    link_shutdown(l);
    if (l->beating) {
        pthread_mutex_lock(&l->beat_lock);
        l->stopping = true;
        pthread_cond_signal(&l->beat_stop);
        pthread_mutex_unlock(&l->beat_lock);
        pthread_join(l->beat_thread, NULL);
    }
    l->chan->ops->close(l->chan);
    pthread_mutex_destroy(&l->send_lock);
    pthread_mutex_destroy(&l->beat_lock);
    pthread_cond_destroy(&l->beat_stop);
    buffer_free(&l->body);
    free(l);
}
