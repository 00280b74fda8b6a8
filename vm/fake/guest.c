/* SPDX-License-Identifier: GPL-2.0-or-later */
/* remus-fake-guest: the process of a fake guest.  See fake.h, control.h and model.h. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "common/clock.h"
#include "control.h"
#include "fake.h"
#include "vm/tracker.h"

#define BATCH 32                       /* pieces of work between two looks around */
#define ARREARS_NS (10 * NS_PER_MS)    /* what a guest that got no processor time may catch up with */
#define FULL_NS (NS_PER_MS / 5)        /* the port's queue is full: look again */
#define NO_PORT_NS (20 * NS_PER_MS)    /* nobody listens: look again */
#define FILE_CHECK_NS NS_PER_S

struct guest {
    struct model model;
    struct fake_control *ctl;
    int net;
    uint64_t next_work, next_frame, next_check;
    uint64_t net_blocked;               /* send nothing before this time */
    bool reply_waits;
    uint8_t reply[FAKE_FRAME_LEN];
};

static volatile sig_atomic_t power_button;

static void on_signal(int number)
{
    if (number == SIGTERM)
        power_button = 1;
}

/* SIGUSR1 (the daemon wants something) and SIGTERM arrive only while the guest waits in ppoll with `open`. */
static void catch_signals(sigset_t *open)
{
    struct sigaction sa = {.sa_handler = on_signal};
    sigset_t both;

    sigaction(SIGUSR1, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    sigemptyset(&both);
    sigaddset(&both, SIGUSR1);
    sigaddset(&both, SIGTERM);
    sigprocmask(SIG_BLOCK, &both, open);
    sigdelset(open, SIGUSR1);
    sigdelset(open, SIGTERM);
}

static _Noreturn void end(struct guest *g, enum fake_state state, const struct error *why)
{
    if (why)
        snprintf(g->ctl->error, sizeof(g->ctl->error), "%.250s", why->text);
    g->ctl->state = state;
    futex_wake(&g->ctl->state);
    exit(state == FAKE_FAILED);
}

static _Noreturn void fail(struct guest *g, const char *what)
{
    struct error err;

    error_set(&err, "%.150s: %s", what, strerror(errno));
    end(g, FAKE_FAILED, &err);
}

static void net_open(struct guest *g)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};

    memcpy(sa.sun_path, g->ctl->net_guest, sizeof(sa.sun_path));
    g->net = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    unlink(sa.sun_path);
    if (g->net < 0 || bind(g->net, (struct sockaddr *)&sa, sizeof(sa)))
        fail(g, sa.sun_path);
}

/* False: not sent, try again at net_blocked. */
static bool net_send(struct guest *g, const uint8_t frame[FAKE_FRAME_LEN], uint64_t now)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};

    memcpy(sa.sun_path, g->ctl->net_port, sizeof(sa.sun_path));
    if (sendto(g->net, frame, FAKE_FRAME_LEN, 0, (struct sockaddr *)&sa, sizeof(sa)) > 0)
        return true;
    g->net_blocked = now + (errno == EAGAIN || errno == ENOBUFS ? FULL_NS : NO_PORT_NS);
    return false;
}

static struct fake_frame frame(const struct guest *g, enum fake_frame_kind kind, uint64_t number)
{
    struct fake_frame f = {
        .kind = kind,
        .number = number,
        .seq = g->model.regs.seq,
        .requests = g->model.regs.requests,
    };

    memset(f.to, 0xff, 6);
    memcpy(f.from, g->ctl->mac, 6);
    return f;
}

static void send_beacon(struct guest *g, uint64_t now)
{
    struct fake_frame f = frame(g, FAKE_BEACON, g->model.regs.frames + 1);
    uint8_t octets[FAKE_FRAME_LEN];

    fake_frame_encode(&f, octets);
    if (!net_send(g, octets, now))
        return;
    g->ctl->frames = ++g->model.regs.frames;
    model_store(&g->model);
}

static void answer(struct guest *g, const struct fake_frame *request)
{
    struct fake_frame f;

    g->model.regs.last_request = request->number;
    g->ctl->requests = ++g->model.regs.requests;
    model_store(&g->model);
    f = frame(g, FAKE_REPLY, request->number);
    memcpy(f.to, request->from, 6);
    fake_frame_encode(&f, g->reply);
    g->reply_waits = true;
}

static bool must_park(const struct guest *g)
{
    return g->ctl->want & 1;
}

/* Requests in, one after another: the next when the reply to the one before has left. */
static void serve(struct guest *g, uint64_t now)
{
    uint8_t octets[FAKE_FRAME_LEN + 1];
    struct fake_frame f;
    ssize_t n;

    for (int i = 0; i < BATCH && now >= g->net_blocked && !must_park(g); i++) {
        if (g->reply_waits && !net_send(g, g->reply, now))
            return;
        g->reply_waits = false;
        n = recv(g->net, octets, sizeof(octets), 0);
        if (n < 0)
            return;
        if (fake_frame_decode(&f, octets, (size_t)n) && f.kind == FAKE_REQUEST)
            answer(g, &f);
    }
}

/* When something that happens `rate` times a second and was due at `due` is due again. */
static uint64_t next_due(uint64_t due, uint32_t rate, uint64_t now)
{
    due += NS_PER_S / rate;
    return due + ARREARS_NS < now ? now - ARREARS_NS : due;
}

static void work(struct guest *g, uint64_t now)
{
    struct fake_control *ctl = g->ctl;
    uint32_t rate = ctl->rate;

    for (int i = 0; i < BATCH && rate && g->next_work <= now && !must_park(g); i++) {
        if (!model_work(&g->model, ctl->pattern))
            ctl->bad++;
        ctl->writes++;
        ctl->seq = g->model.regs.seq;
        g->next_work = next_due(g->next_work, rate, now);
    }
}

static void send_frames(struct guest *g, uint64_t now)
{
    uint32_t rate = g->ctl->frame_rate;

    for (int i = 0; i < BATCH && rate && g->next_frame <= now && now >= g->net_blocked &&
                    !must_park(g); i++) {
        send_beacon(g, now);
        if (g->net_blocked <= now)
            g->next_frame = next_due(g->next_frame, rate, now);
    }
}

static void park(struct guest *g, uint32_t want)
{
    uint64_t since = clock_ns(), lost;

    g->ctl->regs = g->model.regs;
    g->ctl->parked = want;
    futex_wake(&g->ctl->parked);
    while (g->ctl->want == want)
        futex_wait(&g->ctl->want, want, NULL);
    lost = clock_ns() - since;
    g->next_work += lost;
    g->next_frame += lost;
}

/* Is this process still the one that the pid file names? */
static bool known(const struct guest *g)
{
    FILE *f = fopen(g->ctl->pid_file, "re");
    int pid = 0;

    if (f) {
        if (fscanf(f, "%d", &pid) != 1)
            pid = 0;
        fclose(f);
    }
    return pid == getpid();
}

static void make_known(struct guest *g)
{
    char temporary[sizeof(g->ctl->pid_file) + 8];
    FILE *f;

    snprintf(temporary, sizeof(temporary), "%s.new", g->ctl->pid_file);
    f = fopen(temporary, "we");
    if (!f)
        fail(g, temporary);
    fprintf(f, "%d\n", (int)getpid());
    if (fclose(f) || rename(temporary, g->ctl->pid_file))
        fail(g, g->ctl->pid_file);
}

static void wait_for_work(struct guest *g, const sigset_t *open)
{
    struct pollfd p = {.fd = g->net, .events = g->reply_waits ? 0 : POLLIN};
    uint64_t now = clock_ns(), until = g->next_check, net;
    struct timespec ts;

    if (g->ctl->rate && g->next_work < until)
        until = g->next_work;
    net = g->next_frame > g->net_blocked ? g->next_frame : g->net_blocked;
    if (g->ctl->frame_rate && net < until)
        until = net;
    if (g->reply_waits && g->net_blocked < until)
        until = g->net_blocked;
    until = until > now ? until - now : 0;
    ts = (struct timespec){(time_t)(until / NS_PER_S), (long)(until % NS_PER_S)};
    ppoll(&p, 1, &ts, open);
}

static _Noreturn void run(struct guest *g, const sigset_t *open)
{
    uint64_t now = clock_ns();
    uint32_t want;

    g->next_work = g->next_frame = now;
    g->next_check = now + FILE_CHECK_NS;
    g->ctl->state = FAKE_RUNNING;
    futex_wake(&g->ctl->state);
    for (;;) {
        while ((want = g->ctl->want) & 1)
            park(g, want);
        wait_for_work(g, open);
        if (power_button)
            end(g, FAKE_SHUT_DOWN, NULL);
        now = clock_ns();
        if (now >= g->next_check && !known(g))
            exit(1);
        if (now >= g->next_check)
            g->next_check = now + FILE_CHECK_NS;
        serve(g, now);
        send_frames(g, now);
        work(g, now);
    }
}

static void start_model(struct guest *g, uint8_t *memory)
{
    struct error err;
    uint64_t verified;

    if (g->ctl->restore) {
        g->model = (struct model){.regs = g->ctl->regs, .memory = memory, .pages = g->ctl->pages};
        g->ctl->bad = model_verify(&g->model, FAKE_RAM_FD, &verified, &err);
        g->ctl->verified = verified;
        if (g->ctl->bad)
            end(g, FAKE_FAILED, &err);
    } else {
        model_init(&g->model, memory, g->ctl->pages);
    }
    g->ctl->seq = g->model.regs.seq;
    g->ctl->frames = g->model.regs.frames;
    g->ctl->requests = g->model.regs.requests;
}

static int print_stats(const char *run_dir, const char *name)
{
    struct fake_guest_stats st;
    struct error err;

    if (fake_guest_stats(run_dir, name, &st, &err)) {
        fprintf(stderr, "remus-fake-guest: %s\n", err.text);
        return 1;
    }
    printf("{\"pid\": %d, \"seq\": %" PRIu64 ", \"writes\": %" PRIu64 ", \"bad\": %" PRIu64
           ", \"frames\": %" PRIu64 ", \"requests\": %" PRIu64 ", \"verified\": %" PRIu64 "}\n",
           (int)st.pid, st.seq, st.writes, st.bad, st.frames, st.requests, st.verified);
    return 0;
}

int main(int argc, char **argv)
{
    struct guest g = {0};
    sigset_t open;
    void *memory;
    size_t len;

    if (argc == 4 && strcmp(argv[1], "stats") == 0)
        return print_stats(argv[2], argv[3]);
    g.ctl = mmap(NULL, FAKE_CONTROL_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, FAKE_CONTROL_FD, 0);
    if (argc != 3 || g.ctl == MAP_FAILED || g.ctl->magic != FAKE_CONTROL_MAGIC) {
        fprintf(stderr, "usage: remus-fake-guest stats RUN_DIR NAME\n"
                        "The fake guest itself is started by remusd (platform = fake).\n");
        return 2;
    }
    catch_signals(&open);
    prctl(PR_SET_TIMERSLACK, 1000UL);
    g.ctl->pid = getpid();
    len = g.ctl->pages * PAGE_SIZE;
    memory = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, FAKE_RAM_FD, 0);
    if (memory == MAP_FAILED)
        fail(&g, "memory");
    start_model(&g, memory); /* first: in armed memory each page faults by itself */
    if (g.ctl->arm && tracker_arm(memory, len) == 0)
        g.ctl->address = (uintptr_t)memory;
    net_open(&g);
    make_known(&g);
    run(&g, &open);
}
