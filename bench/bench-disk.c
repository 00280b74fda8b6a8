/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * remus-bench disk: what protection costs the guest's disk, and how fast the backup follows.  Four disk servers side by side,
 * used in turn by one NBD client, so that a noisy machine is noisy for all of them:
 *
 *     bare       nbdkit's own file plugin
 *     plugin     our plugin, no protection
 *     protected  our plugin, a real engine, a memory channel, a real receiver and journal.  The backup's image is in
 *                /dev/shm, since the other host has a disk of its own and this machine has one
 *     primary    the same with another host that takes nothing of this one's processors: what the link sends is copied once, as
 *                into a socket, and an END is acknowledged at once
 *
 *     write      64 KiB writes one behind the other, 8 under way, a flush every 16 MiB.  A round begins with some that do not
 *                count, so that as much is under way at the beginning as at the end, and waits before it until nothing is.
 *                Shares are of the plugin's rate in the same round
 *     fsync      4 KiB write and flush, one at a time: median latency
 *     scan       read tracking: a guest reads its disk, 8 MiB in 0.4 s, into memory whose pages are all written; octets on the
 *                link a page, with and without
 *     no hit     the same with pages that are on no disk; processor time of all threads of both hosts a page, and what tracking
 *                takes of it, round by round
 *     apply      at the backup, on the disk of --dir: changes through journal and images, until both are durable, against
 *                writing and syncing the image alone, and against the least that a journal can cost: the same octets into
 *                another file, synced, and into the image, synced
 *     drain      from the word to take over until 64 MiB of committed changes are in the image
 */
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/backup.h"
#include "bench/bench.h"
#include "common/clock.h"
#include "common/wire.h"
#include "disk/server.h"
#include "remusd/engine.h"

#define MIB (1u << 20)
#define DISK_SIZE (256u * MIB)
#define CHUNK 65536u
#define WINDOW 8
#define FLUSH_EVERY (16 * MIB)
#define ROUNDS 7
#define ROUND_OCTETS (256u * MIB)
#define START_OCTETS (64u * MIB) /* of a round, not counted */
#define ROUND_SYNCS 200
#define SETTLE_US 300000 /* until the backup has applied what was written */
#define EPOCH_OCTETS MIB

enum { BARE, PLUGIN, PROTECTED, PRIMARY, MODES };
static const char *const modes[MODES] = {"bare", "plugin", "protected", "primary"};

enum { NBD_READ = 0, NBD_WRITE = 1, NBD_DISC = 2, NBD_FLUSH = 3 };

static void fatal(const char *what)
{
    fprintf(stderr, "remus-bench disk: ");
    perror(what);
    exit(1);
}

static void print(const char *name, const char *mode, double value, const char *unit)
{
    printf("{\"case\": \"%s\", \"mode\": \"%s\", \"value\": %.3f, \"unit\": \"%s\"}\n", name, mode, value, unit);
    fflush(stdout);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double median(double *values, size_t count)
{
    qsort(values, count, sizeof(*values), by_value);
    return values[count / 2];
}

/* --- an NBD client --- */

static void put(int fd, const void *data, size_t n)
{
    for (const uint8_t *p = data; n;) {
        ssize_t done = send(fd, p, n, MSG_NOSIGNAL);

        if (done <= 0)
            fatal("nbd");
        p += done;
        n -= (size_t)done;
    }
}

static void get(int fd, void *data, size_t n)
{
    if (recv(fd, data, n, MSG_WAITALL) != (ssize_t)n)
        fatal("nbd");
}

static int nbd_connect(const char *path)
{
    static const uint8_t hello[] = "\0\0\0\3IHAVEOPT\0\0\0\1\0\0\0"; /* NBD_OPT_EXPORT_NAME, "" */
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    uint8_t greeting[18];

    snprintf(addr.sun_path, sizeof(addr.sun_path), "%.107s", path);
    for (int i = 0; connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0; i++) {
        if (i == 500)
            fatal(path);
        usleep(10000);
    }
    get(fd, greeting, sizeof(greeting));
    put(fd, hello, sizeof(hello));
    get(fd, greeting, 10);
    return fd;
}

static void nbd_request(int fd, unsigned kind, uint64_t offset, uint32_t length, const void *data)
{
    uint8_t head[28];
    struct wire_writer w = wire_writer(head, sizeof(head));

    wire_put_uint(&w, 0x25609513, 4);
    wire_put_uint(&w, kind, 4);
    wire_put_uint(&w, offset, 8);
    wire_put_uint(&w, offset, 8);
    wire_put_uint(&w, length, 4);
    put(fd, head, sizeof(head));
    if (kind == NBD_WRITE)
        put(fd, data, length);
}

static void nbd_reply(int fd)
{
    uint8_t reply[16];

    get(fd, reply, sizeof(reply));
    if (reply[4] | reply[5] | reply[6] | reply[7]) {
        fprintf(stderr, "remus-bench disk: a write failed\n");
        exit(1);
    }
}

static void write_some(int fd, const uint8_t *data, uint64_t at, uint64_t octets)
{
    unsigned waiting = 0;

    for (uint64_t done = 0; done < octets; done += CHUNK) {
        if (waiting == WINDOW) {
            nbd_reply(fd);
            waiting--;
        }
        nbd_request(fd, NBD_WRITE, (at + done) % DISK_SIZE, CHUNK, data);
        waiting++;
        if ((done + CHUNK) % FLUSH_EVERY == 0) {
            nbd_request(fd, NBD_FLUSH, 0, 0, NULL);
            waiting++;
            for (; waiting; waiting--)
                nbd_reply(fd);
        }
    }
}

/* MiB a second */
static double write_round(int fd, const uint8_t *data)
{
    uint64_t began;

    usleep(SETTLE_US);
    write_some(fd, data, 0, START_OCTETS);
    began = clock_ns();
    write_some(fd, data, START_OCTETS, ROUND_OCTETS);
    return (double)ROUND_OCTETS / MIB / ((double)(clock_ns() - began) / 1e9);
}

/* us */
static double sync_round(int fd, const uint8_t *data)
{
    double times[ROUND_SYNCS];

    for (unsigned i = 0; i < ROUND_SYNCS; i++) {
        uint64_t began = clock_ns();

        nbd_request(fd, NBD_WRITE, (uint64_t)random() % (DISK_SIZE / 4096) * 4096, 4096, data);
        nbd_reply(fd);
        nbd_request(fd, NBD_FLUSH, 0, 0, NULL);
        nbd_reply(fd);
        times[i] = (double)(clock_ns() - began) / 1e3;
    }
    return median(times, ROUND_SYNCS);
}

/* --- the servers --- */

/* Another host whose work is not seen here. */
struct sink {
    struct chan chan, *back;
    struct link *peer;
    uint8_t space[4 * MIB];
    size_t at;
};

/* A record, as the link sends it. */
static int sink_send(struct chan *chan, struct iovec *iov, int count)
{
    struct sink *s = (struct sink *)chan;
    struct proto_header h;
    struct error err;

    if (proto_get_header(&h, iov[0].iov_base, &err) < 0)
        return -1;
    for (int i = 0; i < count; i++) {
        if (s->at + iov[i].iov_len > sizeof(s->space))
            s->at = 0;
        memcpy(s->space + s->at, iov[i].iov_base, iov[i].iov_len);
        s->at += iov[i].iov_len;
    }
    return h.type == PROTO_END ? link_send_empty(s->peer, PROTO_ACK, h.epoch) : 0;
}

static ssize_t sink_recv(struct chan *chan, void *buf, size_t len, uint64_t deadline)
{
    struct chan *back = ((struct sink *)chan)->back;

    return back->ops->recv(back, buf, len, deadline);
}

static void sink_shutdown(struct chan *chan)
{
    struct chan *back = ((struct sink *)chan)->back;

    back->ops->shutdown(back);
}

static uint64_t sink_rate(struct chan *chan)
{
    (void)chan;
    return 0;
}

static void sink_close(struct chan *chan)
{
    struct chan *back = ((struct sink *)chan)->back;

    back->ops->close(back);
    free(chan);
}

static struct chan *sink_new(struct chan *back, struct link *peer)
{
    static const struct chan_ops ops = {sink_send, sink_recv, sink_shutdown, sink_rate, sink_close};
    struct sink *s = calloc(1, sizeof(*s));

    s->chan = (struct chan){.ops = &ops, .peer = "sink"};
    s->back = back;
    s->peer = peer;
    return &s->chan;
}

static void make_image(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (fd < 0 || posix_fallocate(fd, 0, DISK_SIZE) || fdatasync(fd) < 0)
        fatal(path);
    close(fd);
}

static pid_t bare_start(const char *socket, const char *image)
{
    pid_t pid = fork();

    if (pid == 0) {
        execlp("nbdkit", "nbdkit", "-f", "-U", socket, "file", image, (char *)NULL);
        _exit(127);
    }
    return pid;
}

static bool epochs_stop;

static void *epochs_run(void *arg)
{
    struct engine *e = arg;
    struct error err;

    while (!__atomic_load_n(&epochs_stop, __ATOMIC_ACQUIRE)) {
        uint64_t now = clock_ns(), due;

        pthread_mutex_lock(&e->lock);
        while ((due = pacer_due(&e->pacer, now)) > now && e->link_end == LINK_UP) {
            engine_wait(e, due);
            now = clock_ns();
        }
        pthread_mutex_unlock(&e->lock);
        if (engine_checkpoint(e, true, &err) < 0) {
            fprintf(stderr, "remus-bench disk: %s\n", err.text);
            exit(1);
        }
    }
    return NULL;
}

/* A protected VM that does nothing but write to its disk. */
struct protected {
    struct engine engine;
    struct backup backup;
    struct vm *vm;
    struct port *port;
    pthread_t epochs;
};

static int receive(struct protected *p, char *const replica[], struct error *err)
{
    const struct disk_info *info = disk_infos(p->engine.disk);
    struct backup *b = &p->backup;

    if (backup_init(b, p->vm->pages) < 0 || journal_open(&b->journal, replica, info, 1, 256u * MIB, err) < 0 ||
        journal_begin(b->journal, info, START_ANEW, err) < 0)
        return -1;
    receiver_set_journal(b->receiver, b->journal);
    return 0;
}

static int protect(struct protected *p, const struct vm_config *cfg, char *const replica[], struct error *err)
{
    struct engine *e = &p->engine;
    struct chan *chan;
    struct disk_sync sync;

    engine_init(e, cfg);
    e->send_blocks = true;
    p->port = null_port_new();
    if (disk_server_start(cfg, false, err) < 0 || disk_open(&e->disk, cfg, err) < 0 ||
        vm_platform("fake")->open(&p->vm, cfg, err) < 0 || engine_open(e, p->vm, p->port, err) < 0 ||
        (replica && receive(p, replica, err) < 0))
        return -1;
    if (backup_start(&p->backup, &chan) < 0 ||
        engine_attach(e, link_new(replica ? chan : sink_new(chan, p->backup.link)), 0, err) < 0)
        return -1;
    do {
        usleep(1000);
        disk_sync_state(e->disk, &sync);
    } while (!sync.done);
    return engine_precopy(e, err) < 0 || pthread_create(&p->epochs, NULL, epochs_run, e) ? -1 : 0;
}

static void unprotect(struct protected *p)
{
    __atomic_store_n(&epochs_stop, true, __ATOMIC_RELEASE);
    pthread_join(p->epochs, NULL);
    engine_detach(&p->engine);
    backup_free(&p->backup);
    p->vm->ops->destroy(p->vm);
    p->port->ops->close(p->port);
}

static void measure(char sockets[][108])
{
    static double rates[MODES][ROUNDS], shares[MODES][ROUNDS], latencies[MODES][ROUNDS];
    uint8_t *data = malloc(CHUNK);
    char mode[32];
    int fds[MODES];

    memset(data, 0x5a, CHUNK);
    for (int i = 0; i < MODES; i++) {
        fds[i] = nbd_connect(sockets[i]);
        write_round(fds[i], data);
    }
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < MODES; i++)
            rates[i][round] = write_round(fds[i], data);
        for (int i = 0; i < MODES; i++)
            shares[i][round] = rates[i][round] / rates[PLUGIN][round];
    }
    usleep(SETTLE_US);
    for (unsigned round = 0; round < ROUNDS; round++)
        for (int i = 0; i < MODES; i++)
            latencies[i][round] = sync_round(fds[i], data);
    for (int i = 0; i < MODES; i++)
        print("write", modes[i], median(rates[i], ROUNDS), "MiB/s");
    for (int i = PROTECTED; i < MODES; i++) {
        snprintf(mode, sizeof(mode), "%s, share", modes[i]);
        print("write", mode, median(shares[i], ROUNDS), "of plugin");
    }
    for (int i = 0; i < MODES; i++)
        print("fsync", modes[i], median(latencies[i], ROUNDS), "us");
    for (int i = 0; i < MODES; i++)
        close(fds[i]);
    free(data);
}

static int bench_guest(const char *dir, const char *fast, struct error *err)
{
    static struct protected vms[2];
    char path[512], replica[512], sockets[MODES][108], image[512];
    struct config config;
    int rc = -1;
    pid_t bare;
    FILE *f;

    snprintf(path, sizeof(path), "%s/conf", dir);
    snprintf(replica, sizeof(replica), "%s/replica.img", fast);
    f = fopen(path, "we");
    if (!f)
        fatal(path);
    fprintf(f, "run-dir = \"%s\"\n", fast); /* as /run: a tmpfs */
    for (int i = 0; i < MODES; i++) {
        snprintf(sockets[i], sizeof(sockets[i]), "%.90s/%s.nbd", fast, modes[i]);
        snprintf(image, sizeof(image), "%s/%s.img", dir, modes[i]);
        make_image(image);
        fprintf(f, "vm %s {\nplatform = fake\nmemory = 16\nfake-rate = 0\nfake-frames = 0\ntimeout = 60000\ndisks = {\"%s\"}\n}\n",
                modes[i], image);
    }
    fclose(f);
    snprintf(image, sizeof(image), "%s/%s.img", dir, modes[BARE]);
    bare = bare_start(sockets[BARE], image);
    if (config_load(&config, path, err) < 0)
        return -1;
    if (disk_server_start(&config.vms[PLUGIN], false, err) == 0 &&
        protect(&vms[0], &config.vms[PROTECTED], (char *[]){replica}, err) == 0 &&
        protect(&vms[1], &config.vms[PRIMARY], NULL, err) == 0) {
        measure(sockets);
        unprotect(&vms[0]);
        unprotect(&vms[1]);
        rc = 0;
    }
    for (int i = PLUGIN; i < MODES; i++)
        disk_server_stop(&config.vms[i], NULL);
    kill(bare, SIGTERM);
    waitpid(bare, NULL, 0);
    return rc;
}

/* --- a guest that reads --- */

#define SCAN_OCTETS (8u * MIB)
#define SCAN_EPOCH (512u << 10)
#define SCAN_ROUNDS 5
#define NO_HIT_ROUNDS 21 /* the difference is smaller than what a busy machine adds */
#define SCAN_PAGES (SCAN_OCTETS / PAGE_SIZE)

enum { OFF, ON, TRACKINGS };
static const char *const trackings[TRACKINGS] = {"off", "on"};

/* Rows of text and numbers, none like another. */
static void make_rows(uint8_t *data, size_t octets, unsigned seed)
{
    static const char *const words[] = {"ABLE", "PRI", "ESE", "ANTI", "CALLY", "ATION", "EING", "BAR", "OUGHT", "PRES"};

    for (size_t at = 0; at + 128 < octets;) {
        uint64_t row[2] = {(uint64_t)rand_r(&seed) * (uint64_t)rand_r(&seed), (uint64_t)rand_r(&seed)};

        memcpy(data + at, row, sizeof(row));
        at += sizeof(row);
        at += (size_t)snprintf((char *)data + at, 100, "%s%s%s|%08d|%s, %d %s|", words[rand_r(&seed) % 10],
                               words[rand_r(&seed) % 10], words[rand_r(&seed) % 10], rand_r(&seed) % 100000000,
                               words[rand_r(&seed) % 10], rand_r(&seed) % 1000, words[rand_r(&seed) % 10]);
    }
}

/* The guest's memory, so that what is written counts as written by the guest. */
static int guest_memory(const char *run_dir, const char *name, uint64_t *address)
{
    char path[256], line[512];
    uint64_t from, to;
    int pid = 0;
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s.fake.pid", run_dir, name);
    f = fopen(path, "re");
    if (!f || fscanf(f, "%d", &pid) != 1)
        fatal(path);
    fclose(f);
    snprintf(path, sizeof(path), "/proc/%d/maps", pid);
    f = fopen(path, "re");
    *address = 0;
    while (f && fgets(line, sizeof(line), f))
        if (strstr(line, "memfd:") && sscanf(line, "%" SCNx64 "-%" SCNx64, &from, &to) == 2 && to - from == 16 * MIB)
            *address = from;
    if (!f || !*address)
        fatal(path);
    fclose(f);
    snprintf(path, sizeof(path), "/proc/%d/mem", pid);
    return open(path, O_RDWR | O_CLOEXEC);
}

static uint64_t sent(struct engine *e)
{
    uint64_t octets;

    pthread_mutex_lock(&e->lock);
    octets = e->stats.sent[0];
    pthread_mutex_unlock(&e->lock);
    return octets;
}

/* data: what the pages get; NULL: what is read from `at` on. */
static void scan_round(int nbd, int memory, uint64_t address, uint64_t at, const uint8_t *data)
{
    static uint8_t chunk[CHUNK];

    for (uint64_t done = 0; done < SCAN_OCTETS; done += CHUNK) {
        if (!data) {
            nbd_request(nbd, NBD_READ, at + done, CHUNK, NULL);
            nbd_reply(nbd);
            get(nbd, chunk, CHUNK);
        }
        if (pwrite(memory, data ? data + done : chunk, CHUNK, (off_t)(address + MIB + done)) != CHUNK)
            fatal("the guest's memory");
        if ((done + CHUNK) % SCAN_EPOCH == 0)
            usleep(25000);
    }
    usleep(100000); /* all is sent */
}

static int bench_reads(const char *dir, const char *fast, struct error *err)
{
    static struct protected vms[TRACKINGS];
    static double octets[TRACKINGS][SCAN_ROUNDS], cpu[TRACKINGS][NO_HIT_ROUNDS], shares[NO_HIT_ROUNDS];
    static uint8_t rows[SCAN_OCTETS];
    char path[512], images[2][512], sockets[TRACKINGS][108];
    uint64_t addresses[TRACKINGS];
    int memories[TRACKINGS], fds[TRACKINGS];
    struct config config;
    FILE *f;

    snprintf(path, sizeof(path), "%s/conf-reads", dir);
    f = fopen(path, "we");
    if (!f)
        fatal(path);
    fprintf(f, "run-dir = \"%s\"\n", fast);
    for (int i = 0; i < TRACKINGS; i++) {
        snprintf(sockets[i], sizeof(sockets[i]), "%.90s/%s.nbd", fast, trackings[i]);
        snprintf(images[0], sizeof(images[0]), "%s/%s.img", dir, trackings[i]);
        make_image(images[0]);
        for (unsigned part = 0; part < SCAN_ROUNDS; part++) {
            int fd = open(images[0], O_RDWR | O_CLOEXEC);

            make_rows(rows, sizeof(rows), part);
            if (pwrite(fd, rows, sizeof(rows), (off_t)(part * SCAN_OCTETS)) != sizeof(rows))
                fatal(images[0]);
            close(fd);
        }
        fprintf(f, "vm %s {\nplatform = fake\nmemory = 16\nfake-rate = 0\nfake-frames = 0\ntimeout = 60000\ncompression = lz4\n"
                "disk-reads = %d\ndisks = {\"%s\"}\n}\n", trackings[i], 4 * i, images[0]);
    }
    fclose(f);
    if (config_load(&config, path, err) < 0)
        return -1;
    __atomic_store_n(&epochs_stop, false, __ATOMIC_RELEASE);
    for (int i = 0; i < TRACKINGS; i++) {
        snprintf(images[1], sizeof(images[1]), "%s/%s-replica.img", fast, trackings[i]);
        if (protect(&vms[i], &config.vms[i], (char *[]){images[1]}, err) < 0)
            return -1;
        fds[i] = nbd_connect(sockets[i]);
        memories[i] = guest_memory(fast, trackings[i], &addresses[i]);
    }
    usleep(SETTLE_US);
    for (unsigned round = 0; round < SCAN_ROUNDS; round++)
        for (int i = 0; i < TRACKINGS; i++) {
            uint64_t before = sent(&vms[i].engine);

            scan_round(fds[i], memories[i], addresses[i], round * SCAN_OCTETS, NULL);
            octets[i][round] = (double)(sent(&vms[i].engine) - before) / SCAN_PAGES;
        }
    for (unsigned round = 0; round < NO_HIT_ROUNDS; round++) {
        make_rows(rows, sizeof(rows), 100 + round);
        for (unsigned turn = 0; turn < TRACKINGS; turn++) {
            unsigned i = (turn + round) % TRACKINGS;
            uint64_t before = process_cpu_ns();

            scan_round(fds[i], memories[i], addresses[i], 0, rows);
            cpu[i][round] = (double)(process_cpu_ns() - before) / SCAN_PAGES;
        }
        shares[round] = cpu[ON][round] / cpu[OFF][round];
    }
    for (int i = 0; i < TRACKINGS; i++)
        print("scan", trackings[i], median(octets[i], SCAN_ROUNDS), "bytes a page");
    for (int i = 0; i < TRACKINGS; i++)
        print("no hit", trackings[i], median(cpu[i], NO_HIT_ROUNDS), "ns a page");
    print("no hit", "on, share", median(shares, NO_HIT_ROUNDS), "of off");
    for (int i = 0; i < TRACKINGS; i++) {
        close(fds[i]);
        close(memories[i]);
        unprotect(&vms[i]);
        disk_server_stop(&config.vms[i], NULL);
    }
    return 0;
}

/* --- the backup --- */

/* Each chunk to each of the files. */
static double plain_write(const char *const paths[], int files, const uint8_t *data)
{
    uint64_t began;
    int fds[2];

    for (int i = 0; i < files; i++)
        if ((fds[i] = open(paths[i], O_RDWR | O_CLOEXEC)) < 0)
            fatal(paths[i]);
    began = clock_ns();
    for (uint64_t at = 0; at < DISK_SIZE; at += CHUNK)
        for (int i = 0; i < files; i++)
            if (pwrite(fds[i], data, CHUNK, (off_t)at) != CHUNK)
                fatal(paths[i]);
    for (int i = 0; i < files; i++)
        if (fdatasync(fds[i]) < 0 || close(fds[i]) < 0)
            fatal(paths[i]);
    return (double)DISK_SIZE / MIB / ((double)(clock_ns() - began) / 1e9);
}

/* An epoch of EPOCH_OCTETS, from offset `at` on. */
static int send_epoch(struct journal *j, uint64_t epoch, uint64_t at, uint8_t *entries, struct error *err)
{
    size_t n = 0;

    for (uint64_t done = 0; done < EPOCH_OCTETS; done += CHUNK) {
        struct entry e = {.kind = ENTRY_WRITE, .length = CHUNK, .offset = (at + done) % DISK_SIZE};

        entry_put(entries + n, &e);
        n += entry_size(e.kind, e.length);
    }
    return journal_write(j, epoch, entries, n, err) < 0 ||
                   journal_end(j, epoch, err) < 0 ||
                   journal_commit(j, epoch, err) < 0
               ? -1 : 0;
}

static int bench_backup(const char *dir, struct error *err)
{
    static double plain[ROUNDS], twice[ROUNDS], through[ROUNDS], drain[ROUNDS];
    uint8_t *entries = calloc(1, 2 * EPOCH_OCTETS);
    char path[512], record[520], other[512];
    const char *const both[] = {path, other};
    struct disk_info info = {DISK_SIZE, 1};

    snprintf(path, sizeof(path), "%s/apply.img", dir);
    snprintf(other, sizeof(other), "%s/apply.twice", dir);
    snprintf(record, sizeof(record), "%s.remus", path);
    make_image(path);
    make_image(other);
    plain_write(both, 2, entries);
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct journal_stats stats;
        struct journal *j;
        uint64_t epoch = 1, began;

        plain[round] = plain_write(both, 1, entries);
        twice[round] = plain_write(both, 2, entries);
        unlink(record);
        if (journal_open(&j, (char *[]){path}, &info, 1, 256u * MIB, err) < 0 ||
            journal_begin(j, &info, START_ANEW, err) < 0)
            return -1;
        began = clock_ns();
        for (; epoch <= DISK_SIZE / EPOCH_OCTETS; epoch++)
            if (send_epoch(j, epoch, epoch * EPOCH_OCTETS, entries, err) < 0)
                return -1;
        do {
            usleep(500);
            journal_stats(j, &stats);
        } while (stats.applied_epoch != stats.committed_epoch);
        if (journal_begin(j, &info, START_ANEW, err) < 0)
            return -1;
        through[round] = (double)DISK_SIZE / MIB / ((double)(clock_ns() - began) / 1e9);
        for (uint64_t last = epoch + 64; epoch < last; epoch++)
            if (send_epoch(j, epoch, epoch * EPOCH_OCTETS, entries, err) < 0)
                return -1;
        began = clock_ns();
        if (journal_activate(j, epoch - 1, err) < 0)
            return -1;
        drain[round] = (double)(clock_ns() - began) / 1e6;
        journal_close(j);
    }
    print("apply", "image alone", median(plain, ROUNDS), "MiB/s");
    print("apply", "image and another file", median(twice, ROUNDS), "MiB/s");
    print("apply", "journal and image", median(through, ROUNDS), "MiB/s");
    print("drain", "64 MiB", median(drain, ROUNDS), "ms");
    free(entries);
    return 0;
}

int bench_disk(int argc, char **argv)
{
    char dir[256], fast[] = "/dev/shm/remus-bench-XXXXXX";
    const char *parent = "/var/tmp";
    struct error err = {""};
    int rc;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--dir") == 0 && i + 1 < argc)
            parent = argv[++i];
        else if (strcmp(argv[i], "--json") != 0) {
            fprintf(stderr, "usage: %s [--json] [--dir DIR]\n", argv[0]);
            return 2;
        }
    }
    snprintf(dir, sizeof(dir), "%s/remus-bench-XXXXXX", parent);
    if (!mkdtemp(dir) || !mkdtemp(fast))
        fatal(dir);
    rc = bench_guest(dir, fast, &err) < 0 || bench_reads(dir, fast, &err) < 0 || bench_backup(dir, &err) < 0;
    if (rc)
        fprintf(stderr, "remus-bench disk: %s\n", err.text);
    remove_folder(dir);
    remove_folder(fast);
    return rc;
}
