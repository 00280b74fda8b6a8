/* SPDX-License-Identifier: GPL-2.0-or-later */
#define XXH_INLINE_ALL
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xxhash.h>

#include "common/clock.h"
#include "common/wire.h"
#include "queue.h"

#define MAGIC UINT64_C(0x72656d7573647133) /* "remusdq3" */
#define HEADER 4096u
#define WAIT_MS 100u /* between two looks whether the reader lives */

enum { SERVER_LOCK, READER_LOCK }; /* octets of the file that are locked */

struct queue_shared {
    uint64_t magic, capacity;
    pthread_mutex_t lock;
    int32_t server;
    uint64_t generation, head; /* written under the lock */
    uint64_t start;            /* the position at the ring's beginning; likewise, and only while nothing is in it */
    uint64_t tail;             /* the reader's */
    uint32_t logging, writable;
    uint32_t pressed, room;    /* futexes: bumped when there is much to take, when room was made */
    uint64_t written_bytes, full_ns, errors;
    uint64_t read_count; /* of the table behind the ring */
};

/* Atomics; two halves of different hints are a wrong hint. */
struct queue_read {
    uint64_t key, place;
};

#define PLACE(disk, block) ((uint64_t)(disk) << 56 | (block))
#define BLOCKS_MAX (UINT64_C(1) << 56)

_Static_assert(sizeof(struct queue_shared) <= HEADER, "header fits");

#define LOAD(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)

static void futex_wait(uint32_t *word, uint32_t value, unsigned ms)
{
    struct timespec ts = {ms / 1000, (long)(ms % 1000) * 1000000};

    syscall(SYS_futex, word, FUTEX_WAIT, value, &ts, NULL, 0);
}

static void futex_wake(uint32_t *word)
{
    __atomic_add_fetch(word, 1, __ATOMIC_ACQ_REL);
    syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

static void lock(struct queue *q)
{
    if (pthread_mutex_lock(&q->shared->lock) == EOWNERDEAD)
        pthread_mutex_consistent(&q->shared->lock);
}

static void unlock(struct queue *q)
{
    pthread_mutex_unlock(&q->shared->lock);
}

/* Open file description locks: they end with their holder, however it ends, and survive its fork. */
static int hold(int fd, off_t which)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = which, .l_len = 1};

    return fcntl(fd, F_OFD_SETLK, &l);
}

static bool held(int fd, off_t which)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = which, .l_len = 1};

    return fcntl(fd, F_OFD_GETLK, &l) == 0 && l.l_type != F_UNLCK;
}

static size_t file_size(const struct queue *q)
{
    return HEADER + q->capacity + q->read_count * sizeof(*q->reads);
}

static int map(struct queue *q, size_t capacity, size_t read_count)
{
    void *p;

    q->capacity = capacity;
    q->read_count = read_count;
    p = mmap(NULL, file_size(q), PROT_READ | PROT_WRITE, MAP_SHARED, q->fd, 0);
    if (p == MAP_FAILED)
        return -1;
    q->shared = p;
    q->data = (uint8_t *)p + HEADER;
    q->reads = (void *)(q->data + capacity);
    return 0;
}

/* The sizes in the header, when they are those of the file. */
static bool read_sizes(int fd, size_t *capacity, size_t *read_count)
{
    struct queue_shared s;
    struct stat st;

    if (fstat(fd, &st) < 0 || pread(fd, &s, sizeof(s), 0) != sizeof(s) || s.magic != MAGIC ||
        s.capacity > (uint64_t)st.st_size || s.read_count > (uint64_t)st.st_size / sizeof(struct queue_read))
        return false;
    *capacity = s.capacity;
    *read_count = s.read_count;
    return HEADER + s.capacity + s.read_count * sizeof(struct queue_read) == (uint64_t)st.st_size;
}

int queue_create(struct queue *q, const char *path, size_t capacity, size_t reads, uint64_t generation,
                 bool writable, struct error *err)
{
    size_t octets, read_count = reads / sizeof(*q->reads);
    pthread_mutexattr_t attr;
    int rc;

    *q = (struct queue){.fd = -1};
    capacity &= ~(size_t)4095;
    unlink(path);
    q->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (q->fd < 0)
        return error_set(err, "%s: %s", path, strerror(errno));
    octets = HEADER + capacity + read_count * sizeof(*q->reads);
    rc = posix_fallocate(q->fd, 0, (off_t)octets); /* else a full tmpfs is a SIGBUS later */
    if (rc || hold(q->fd, SERVER_LOCK) < 0 || map(q, capacity, read_count) < 0) {
        error_set(err, "%s: write queue of %zu MiB: %s", path, octets >> 20, strerror(rc ? rc : errno));
        queue_close(q);
        unlink(path);
        return -1;
    }
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&q->shared->lock, &attr);
    pthread_mutexattr_destroy(&attr);
    q->shared->capacity = capacity;
    q->shared->read_count = read_count;
    q->shared->generation = generation;
    q->shared->writable = writable;
    STORE(&q->shared->magic, MAGIC);
    return 0;
}

void queue_set_server(struct queue *q, pid_t pid)
{
    STORE(&q->shared->server, pid);
}

int queue_open(struct queue *q, const char *path, struct error *err)
{
    size_t capacity, read_count;

    *q = (struct queue){.fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW)};
    if (q->fd < 0)
        return error_set(err, "%s: %s: is the disk server there?", path, strerror(errno));
    if (hold(q->fd, READER_LOCK) < 0) {
        error_set(err, "%s: another remusd reads this write queue", path);
        goto fail;
    }
    if (!read_sizes(q->fd, &capacity, &read_count) || map(q, capacity, read_count) < 0) {
        error_set(err, "%s is no write queue of this version of remusd", path);
        goto fail;
    }
    return 0;
fail:
    queue_close(q);
    return -1;
}

void queue_close(struct queue *q)
{
    if (q->shared)
        munmap(q->shared, file_size(q));
    if (q->fd >= 0)
        close(q->fd);
    *q = (struct queue){.fd = -1};
}

pid_t queue_server(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    struct queue_shared s = {0};
    pid_t pid = 0;

    if (fd < 0)
        return 0;
    if (held(fd, SERVER_LOCK) && pread(fd, &s, sizeof(s), 0) == sizeof(s) && s.magic == MAGIC)
        pid = s.server;
    close(fd);
    return pid;
}

/* --- server --- */

static size_t index_of(const struct queue *q, uint64_t position)
{
    return (position - LOAD(&q->shared->start)) % q->capacity;
}

/* Enough to be taken early; not more, so that it is still in the processor's cache. */
static size_t much(const struct queue *q)
{
    return q->capacity / 16;
}

/*
 * Octets that appending `size` would take.  Entries lie in one piece, so what is left at the ring's end is skipped when
 * it is too small.
 */
static size_t needed(const struct queue *q, uint64_t head, size_t size)
{
    size_t left = q->capacity - index_of(q, head);

    return left < size ? left + size : size;
}

static bool fits(struct queue *q, size_t size)
{
    uint64_t head = q->shared->head;

    return head - LOAD(&q->shared->tail) + needed(q, head, size) <= q->capacity;
}

uint64_t queue_begin(struct queue *q, unsigned kind, uint32_t length)
{
    struct queue_shared *s = q->shared;
    size_t size = entry_size(kind, length);
    uint64_t began = 0;

    lock(q);
    while (LOAD(&s->logging) && !fits(q, size)) {
        uint32_t room = LOAD(&s->room);

        unlock(q);
        if (!began)
            began = clock_ns();
        futex_wake(&s->pressed);
        futex_wait(&s->room, room, WAIT_MS);
        lock(q);
        if (!fits(q, size) && !held(q->fd, READER_LOCK))
            STORE(&s->logging, 0);
    }
    if (began)
        s->full_ns += clock_ns() - began;
    return s->generation;
}

void queue_end(struct queue *q, const struct entry *e)
{
    struct queue_shared *s = q->shared;
    bool press = false;

    if (e) {
        s->written_bytes += e->length;
        /* A stop and a start in between may have emptied the ring, never filled it: there is still room. */
        if (LOAD(&s->logging)) {
            uint64_t before = s->head - LOAD(&s->tail);
            size_t size = entry_size(e->kind, e->length), skip;

            if (before == 0)
                STORE(&s->start, s->head);
            skip = needed(q, s->head, size) - size;
            if (skip)
                entry_put(q->data + index_of(q, s->head),
                          &(struct entry){.kind = ENTRY_PAD, .length = (uint32_t)skip});
            entry_put(q->data + index_of(q, s->head + skip), e);
            STORE(&s->head, s->head + skip + size);
            press = before < much(q) && before + skip + size >= much(q);
        }
    }
    unlock(q);
    if (press)
        futex_wake(&s->pressed);
}

void queue_failed(struct queue *q)
{
    q->shared->errors++;
}

bool queue_writable(const struct queue *q)
{
    return LOAD(&q->shared->writable);
}

/* A hash of eight parts of a block; 0 when all of them are zero. */
static uint64_t content_key(const uint8_t *content)
{
    static const uint8_t zeros[256];
    uint8_t parts[256];

    for (unsigned i = 0; i < 8; i++)
        memcpy(parts + 32 * i, content + 544 * i, 32);
    return memcmp(parts, zeros, sizeof(parts)) == 0 ? 0 : XXH3_64bits(parts, sizeof(parts)) | 1;
}

static struct queue_read *read_slot(const struct queue *q, uint64_t key)
{
    return &q->reads[(key >> 1) % q->read_count];
}

void queue_note_read(struct queue *q, unsigned disk, uint64_t block, const uint8_t *content)
{
    uint64_t key = q->read_count && block < BLOCKS_MAX ? content_key(content) : 0;
    struct queue_read *r;

    if (!key)
        return;
    r = read_slot(q, key);
    STORE(&r->place, PLACE(disk, block));
    STORE(&r->key, key);
}

uint64_t queue_read_key(const struct queue *q, const uint8_t *content)
{
    uint64_t key = q->read_count ? content_key(content) : 0;

    if (key)
        __builtin_prefetch(read_slot(q, key));
    return key;
}

bool queue_find_read(const struct queue *q, uint64_t key, unsigned *disk, uint64_t *block)
{
    struct queue_read *r;
    uint64_t place;

    if (!key)
        return false;
    r = read_slot(q, key);
    if (LOAD(&r->key) != key)
        return false;
    place = LOAD(&r->place);
    *disk = (unsigned)(place >> 56);
    *block = place % BLOCKS_MAX;
    return true;
}

/* --- remusd --- */

void queue_start(struct queue *q)
{
    lock(q);
    STORE(&q->shared->tail, q->shared->head);
    STORE(&q->shared->logging, 1);
    unlock(q);
}

void queue_stop(struct queue *q)
{
    STORE(&q->shared->logging, 0);
    futex_wake(&q->shared->room);
    futex_wake(&q->shared->pressed);
}

uint64_t queue_barrier(struct queue *q, uint64_t *head)
{
    uint64_t generation;

    lock(q);
    *head = q->shared->head;
    generation = q->shared->generation++;
    unlock(q);
    return generation;
}

uint64_t queue_head(struct queue *q)
{
    return LOAD(&q->shared->head);
}

bool queue_pressed(const struct queue *q)
{
    return LOAD(&q->shared->head) - LOAD(&q->shared->tail) >= much(q);
}

void queue_wait_pressed(struct queue *q, uint32_t *seen, unsigned ms)
{
    futex_wait(&q->shared->pressed, *seen, ms);
    *seen = LOAD(&q->shared->pressed);
}

/* Its head. */
static struct entry entry_at(const struct queue *q, uint64_t at)
{
    struct wire_reader r = wire_reader(q->data + index_of(q, at), ENTRY_HEAD);
    struct entry e = {.kind = wire_get_u8(&r)};

    e.disk = wire_get_u8(&r);
    wire_get_u16(&r);
    e.length = wire_get_u32(&r);
    e.offset = wire_get_u64(&r);
    return e;
}

static size_t ring_size(const struct entry *e)
{
    return e->kind == ENTRY_PAD ? e->length : entry_size(e->kind, e->length);
}

void queue_lock(struct queue *q, uint64_t *head)
{
    lock(q);
    *head = q->shared->head;
}

void queue_unlock(struct queue *q)
{
    unlock(q);
}

bool queue_touches(const struct queue *q, uint64_t from, uint64_t to, unsigned disk, uint64_t offset, uint32_t length)
{
    for (struct entry e; from < to; from += ring_size(&e)) {
        e = entry_at(q, from);
        if (e.kind != ENTRY_PAD && e.disk == disk && e.offset < offset + length && offset < e.offset + e.length)
            return true;
    }
    return false;
}

size_t queue_peek(struct queue *q, uint64_t limit, size_t max, const uint8_t **entries)
{
    uint64_t tail = q->shared->tail, at;
    struct entry e;

    if (tail < limit && (e = entry_at(q, tail)).kind == ENTRY_PAD)
        STORE(&q->shared->tail, tail += e.length);
    for (at = tail; at < limit;) {
        e = entry_at(q, at);
        if (e.kind == ENTRY_PAD || at + ring_size(&e) - tail > max)
            break;
        at += ring_size(&e);
        if (index_of(q, at) == 0)
            break;
    }
    *entries = q->data + index_of(q, tail);
    return (size_t)(at - tail);
}

void queue_done(struct queue *q, size_t octets)
{
    STORE(&q->shared->tail, q->shared->tail + octets);
    futex_wake(&q->shared->room);
}

void queue_stats(const struct queue *q, struct queue_stats *stats)
{
    const struct queue_shared *s = q->shared;

    *stats = (struct queue_stats){
        .used_bytes = LOAD(&s->logging) ? (size_t)(LOAD(&s->head) - LOAD(&s->tail)) : 0,
        .max_bytes = q->capacity,
        .written_bytes = LOAD(&s->written_bytes),
        .full_ns = LOAD(&s->full_ns),
        .errors = LOAD(&s->errors),
    };
}

void queue_let_write(struct queue *q)
{
    STORE(&q->shared->writable, 1);
}
