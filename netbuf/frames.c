/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The frames port: guest's unix datagram socket, or tap on the guest's bridge <-> gate <-> tap.
 *
 *     guest --rx--> gate (held here) --> tap     gate full: rx is not read, the guest waits
 *     guest <--tx-- down (one batch) <-- tap     tx full: the tap is not read, the network waits
 *
 * The gate is under `lock`; everything else belongs to the port's thread.  A barrier reads rx from
 * the caller's thread, under the lock, so no frame can be between the socket and the gate when the
 * epoch closes.  Frames are written to the tap without the lock, so a barrier never waits for the
 * network (R8).
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "port-common.h"

#define BATCH 32u
#define ROUNDS 16u /* of batches before the other side has its turn */
#define SOCKET_BUFFER (1 << 20)
#define QLEN_ENOUGH 256 /* net.unix.max_dgram_qlen below this throttles the guest */
/*
 * Octets (with the kernel's own overhead) of ours that may be on their way through the host at
 * once.  This is what paces the release: beyond it the tap answers EAGAIN until the network has
 * taken some, so that an epoch's worth of frames overruns no device queue (1,000 frames by
 * default; a small frame counts for 768 octets).
 */
#define TAP_SNDBUF (512 << 10)
#define RETRY_NS                                                                                   \
    (5 * NS_PER_MS) /* network that cannot take a frame and does not say when it can               \
                     */

/* Frames on their way through the thread. */
struct batch {
    struct mmsghdr msg[BATCH];
    struct iovec iov[BATCH];
    unsigned first, count; /* msg[first ... count - 1] are waiting */
    uint8_t (*frame)[GATE_FRAME_MAX + 16];
};

struct frames_port {
    struct gate_port g;
    int rx, tx; /* from the guest, to the guest */
    int tap;    /* -1: no network */
    bool tap_is_socket;
    bool guest_is_tap; /* rx and tx are the same tap */
    struct sockaddr_un guest_address, port_address, tap_address;
    char warning[160];

    struct batch up; /* under g.lock: read from the guest; always emptied into the gate at once */

    struct batch down; /* read from the tap, not yet taken by the guest */
    uint64_t retry_at; /* the tap did not take a frame: 0, or when to try again at the latest */
    bool tap_full;     /* it said EAGAIN: poll tells when there is room */
    bool tap_gone;     /* the interface was deleted: what is released waits here (R9) */
    _Atomic uint64_t in, dropped_in, tap_refused;
};

static struct frames_port *of(struct port *p)
{
    return (struct frames_port *)p;
}

static int batch_init(struct batch *b)
{
    b->frame = malloc(BATCH * sizeof(*b->frame));
    if (!b->frame)
        return -1;
    for (unsigned i = 0; i < BATCH; i++) {
        b->iov[i].iov_base = b->frame[i];
        b->msg[i].msg_hdr = (struct msghdr){.msg_iov = &b->iov[i], .msg_iovlen = 1};
    }
    return 0;
}

static int read_guest_tap(struct frames_port *f, unsigned max)
{
    unsigned n = 0;
    ssize_t len;

    while (n < max && (len = read(f->rx, f->up.frame[n], sizeof(*f->up.frame))) >= 0)
        f->up.msg[n++].msg_len = (unsigned)len;
    return (int)n;
}

/* Guest to gate.  Returns how many frames it read; with the lock held. */
static unsigned read_guest(struct frames_port *f)
{
    size_t room = gate_room(f->g.gate);
    unsigned max = room < BATCH ? (unsigned)room : BATCH;
    uint64_t now;
    int n;

    if (max == 0)
        return 0;
    for (unsigned i = 0; i < max; i++)
        f->up.iov[i].iov_len =
            sizeof(*f->up.frame); /* longer than the gate takes: so it refuses those */
    n = f->guest_is_tap ? read_guest_tap(f, max)
                        : recvmmsg(f->rx, f->up.msg, max, MSG_DONTWAIT, NULL);
    now = clock_ns();
    for (int i = 0; i < n; i++)
        gate_send(f->g.gate, f->up.frame[i], f->up.msg[i].msg_len, now);
    return n > 0 ? (unsigned)n : 0;
}

static bool is_full(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK;
}

/* How many of the frames the network took; fewer than n: errno says why. */
static unsigned write_network(struct frames_port *f, struct iovec *v, unsigned n)
{
    struct mmsghdr msg[BATCH];
    unsigned i = 0;
    int sent;

    if (f->tap < 0)
        return n;
    if (!f->tap_is_socket) {
        while (i < n && write(f->tap, v[i].iov_base, v[i].iov_len) >= 0)
            i++;
        return i;
    }
    for (i = 0; i < n; i++)
        msg[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &v[i], .msg_iovlen = 1}};
    sent = sendmmsg(f->tap, msg, n, MSG_NOSIGNAL);
    if (sent < 0 && !is_full(errno) &&
        connect(f->tap, (struct sockaddr *)&f->tap_address, sizeof(f->tap_address)) == 0)
        sent = sendmmsg(f->tap, msg, n, MSG_NOSIGNAL);
    if (sent >= 0 && (unsigned)sent < n)
        errno = EAGAIN;
    return sent > 0 ? (unsigned)sent : 0;
}

/* The network did not take a frame.  True when it never will, because of what the frame is. */
static bool network_refused(struct frames_port *f)
{
    if (errno == EINVAL || errno == EMSGSIZE) {
        f->tap_refused++;
        return true;
    }
    f->tap_full = is_full(errno);
    f->retry_at = clock_ns() + RETRY_NS;
    return false;
}

/* False: not sent, the network cannot take it now.  A guest that cannot misses it. */
static bool send_reset(struct frames_port *f, struct reset_frame *r)
{
    struct iovec v = {r->data, r->len};

    if (r->to == RESET_CLIENT)
        return write_network(f, &v, 1) == 1 || network_refused(f);
    if (f->guest_is_tap)
        return write(f->tx, r->data, r->len) >= 0 || !is_full(errno);
    if (send(f->tx, r->data, r->len, MSG_NOSIGNAL) < 0 && !is_full(errno) &&
        connect(f->tx, (struct sockaddr *)&f->guest_address, sizeof(f->guest_address)) == 0)
        send(f->tx, r->data, r->len, MSG_NOSIGNAL);
    return true;
}

/* R3: is the frame of a connection that is being reset?  Then it is answered, and goes no
 * further. */
static bool is_reset(struct frames_port *f, enum reset_side from, const struct iovec *frame)
{
    struct reset_frame answer;
    bool taken;

    pthread_mutex_lock(&f->g.lock);
    taken = f->g.takeover.reset && reset_take(f->g.takeover.reset, from, frame->iov_base, frame->iov_len, &answer);
    pthread_mutex_unlock(&f->g.lock);
    if (taken && answer.len)
        send_reset(f, &answer);
    return taken;
}

/* Returns when the next poke is due. */
static uint64_t poke(struct frames_port *f)
{
    struct reset_frame frame;
    uint64_t now = clock_ns();
    struct reset *r;
    SCOPED_LOCK(&f->g.lock);

    r = f->g.takeover.reset;
    while (r && !f->retry_at && reset_poke(r, now, &frame) && send_reset(f, &frame))
        reset_poked(r);
    return takeover_reset_due(&f->g.takeover, now);
}

/* Returns true while there may be more to write at once. */
static bool write_released(struct frames_port *f)
{
    struct iovec v[BATCH];
    unsigned n, sent;
    bool resetting;

    pthread_mutex_lock(&f->g.lock);
    resetting = f->g.takeover.reset != NULL;
    n = gate_peek(f->g.gate, v, resetting ? 1 : BATCH);
    pthread_mutex_unlock(&f->g.lock);
    if (n == 0)
        return false;
    sent = resetting && is_reset(f, RESET_GUEST, v) ? 1 : write_network(f, v, n);
    if (sent < n && network_refused(f))
        sent++;
    pthread_mutex_lock(&f->g.lock);
    gate_pop(f->g.gate, sent, clock_ns());
    pthread_mutex_unlock(&f->g.lock);
    return f->retry_at == 0;
}

/* Returns when the next announcement is due. */
static uint64_t announce(struct frames_port *f)
{
    struct announcer *a = &f->g.takeover.announcer;
    struct iovec v;
    SCOPED_LOCK(&f->g.lock);

    while (!f->retry_at && announcer_next(a, clock_ns(), &v)) {
        if (write_network(f, &v, 1) == 0 && !network_refused(f))
            break;
        announcer_sent(a);
    }
    return announcer_due(a);
}

/* The gate sees what comes for the guest, in `down`, before the guest can answer it. */
static void read_clients(struct frames_port *f)
{
    if (f->down.count == 0 || !gate_reads_clients(f->g.gate))
        return;
    pthread_mutex_lock(&f->g.lock);
    for (unsigned i = 0; i < f->down.count; i++)
        gate_receive(f->g.gate, f->down.frame[i], f->down.iov[i].iov_len);
    pthread_mutex_unlock(&f->g.lock);
}

/* Tap to `down`. */
static void read_network(struct frames_port *f)
{
    struct batch *b = &f->down;
    ssize_t n;

    b->first = b->count = 0;
    while (b->count < BATCH) {
        n = read(f->tap, b->frame[b->count], sizeof(*b->frame));
        if (n < 0)
            break;
        b->iov[b->count].iov_len = (size_t)n;
        if (n < (ssize_t)ETH_HEADER || n > (ssize_t)GATE_FRAME_MAX)
            f->dropped_in++;
        else if (!is_reset(f, RESET_CLIENT, &b->iov[b->count]))
            b->count++;
    }
    read_clients(f);
}

/* `down` to the guest.  A guest that is not there loses its frames, as with a pulled cable. */
static void write_guest(struct frames_port *f)
{
    struct batch *b = &f->down;
    int n;

    for (; f->guest_is_tap && b->first < b->count; b->first++) {
        if (write(f->tx, b->iov[b->first].iov_base, b->iov[b->first].iov_len) >= 0)
            f->in++;
        else if (is_full(errno))
            return;
        else
            f->dropped_in++;
    }
    while (b->first < b->count) {
        n = sendmmsg(f->tx, b->msg + b->first, b->count - b->first, MSG_NOSIGNAL);
        if (n < 0 && is_full(errno))
            return;
        if (n < 0 && errno != EMSGSIZE &&
            connect(f->tx, (struct sockaddr *)&f->guest_address, sizeof(f->guest_address)) == 0)
            n = sendmmsg(f->tx, b->msg + b->first, b->count - b->first, MSG_NOSIGNAL);
        if (n < 0 && is_full(errno))
            return;
        if (n > 0)
            f->in += (unsigned)n;
        else
            f->dropped_in++;
        b->first += n > 0 ? (unsigned)n : 1;
    }
}

enum { WAKE, RX, TAP, TX, FDS };

static void wait_for_work(struct frames_port *f, struct pollfd fds[FDS], bool more, uint64_t due)
{
    bool down_waits = f->down.first < f->down.count, room;
    struct timespec ts, *timeout = &ts;
    uint64_t now = clock_ns(), wait, counter;

    pthread_mutex_lock(&f->g.lock);
    room = gate_room(f->g.gate) > 0;
    pthread_mutex_unlock(&f->g.lock);
    fds[WAKE] = (struct pollfd){.fd = f->g.wake, .events = POLLIN};
    fds[RX] = (struct pollfd){.fd = room ? f->rx : -1, .events = POLLIN};
    fds[TAP] =
        (struct pollfd){.fd = f->tap_gone ? -1 : f->tap,
                        .events = (short)((down_waits ? 0 : POLLIN) | (f->tap_full ? POLLOUT : 0))};
    if (fds[TAP].events == 0)
        fds[TAP].fd = -1;
    fds[TX] = (struct pollfd){.fd = down_waits ? f->tx : -1, .events = POLLOUT};

    if (f->retry_at)
        due = f->retry_at;
    wait = more || due <= now ? 0 : due - now;
    ts = (struct timespec){(time_t)(wait / NS_PER_S), (long)(wait % NS_PER_S)};
    if (!more && due == TIME_NEVER)
        timeout = NULL;
    if (ppoll(fds, FDS, timeout, NULL) < 0)
        for (unsigned i = 0; i < FDS; i++)
            fds[i].revents = 0;
    if (fds[WAKE].revents && read(f->g.wake, &counter, sizeof(counter)) < 0)
        fds[WAKE].revents = 0;
    if (fds[TAP].revents & POLLERR && !f->tap_is_socket)
        f->tap_gone = true;
    if (fds[TAP].revents & POLLOUT || (f->retry_at && clock_ns() >= f->retry_at)) {
        f->tap_full = false;
        f->retry_at = 0;
    }
}

/* From the guest to the gate, from there to the network.  Returns true while there may be more to write at once. */
static bool carry(struct frames_port *f, bool readable)
{
    bool more = true;

    for (unsigned i = 0; i < ROUNDS && (readable || more); i++) {
        if (readable) {
            pthread_mutex_lock(&f->g.lock);
            readable = read_guest(f) == BATCH;
            pthread_mutex_unlock(&f->g.lock);
        }
        more = f->retry_at == 0 && write_released(f);
    }
    return more;
}

static void *frames_thread(void *arg)
{
    struct frames_port *f = arg;
    struct pollfd fds[FDS];
    uint64_t due = TIME_NEVER, poke_due;
    bool more = true;

    while (!f->g.stop) {
        wait_for_work(f, fds, more, due);
        due = announce(f);
        poke_due = poke(f);
        due = poke_due < due ? poke_due : due;
        more = carry(f, fds[RX].revents);
        if (fds[TAP].revents & POLLIN)
            read_network(f);
        write_guest(f);
    }
    return NULL;
}

static int frames_barrier(struct port *p, uint64_t epoch, struct buffer *net_state)
{
    struct frames_port *f = of(p);
    SCOPED_LOCK(&f->g.lock);

    /*
     * The guest stands still, so this ends when its socket is empty.  With a full gate the rest
     * stays in the socket and belongs to a later epoch: held longer, never shorter.
     */
    while (read_guest(f) > 0)
        ;
    return gate_barrier(f->g.gate, epoch, net_state);
}

static void frames_stats(struct port *p, struct port_stats *stats)
{
    struct frames_port *f = of(p);

    gate_port_stats(&f->g, stats);
    stats->frames_in = f->in;
    stats->dropped_in = f->dropped_in;
    stats->refused += f->tap_refused;
}

static void frames_free(struct frames_port *f)
{
    if (f->rx >= 0 && !f->guest_is_tap) {
        close(f->rx);
        unlink(f->port_address.sun_path);
    }
    if (f->tx >= 0)
        close(f->tx);
    if (f->tap >= 0)
        close(f->tap);
    free(f->up.frame);
    free(f->down.frame);
    gate_port_fini(&f->g);
    free(f);
}

static void frames_close(struct port *p)
{
    struct frames_port *f = of(p);

    gate_port_stop(&f->g);
    frames_free(f);
}

static const struct port_ops frames_ops = {
    .name = "frames",
    .barrier = frames_barrier,
    .release = gate_port_release,
    .urgent = gate_port_urgent,
    .hold = gate_port_hold,
    .pass = gate_port_pass,
    .activate = gate_port_activate,
    .stats = frames_stats,
    .close = frames_close,
};

static int set_address(struct sockaddr_un *a, const char *path, struct error *err)
{
    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (!*path || strlen(path) >= sizeof(a->sun_path))
        return error_set(err, "socket path '%s': must have 1 to %zu characters", path,
                         sizeof(a->sun_path) - 1);
    strcpy(a->sun_path, path);
    return 0;
}

static int new_socket(int *fd, struct error *err)
{
    int size = SOCKET_BUFFER;

    *fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (*fd < 0)
        return error_set(err, "unix datagram socket: %s", strerror(errno));
    if (setsockopt(*fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0)
        setsockopt(*fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    return 0;
}

/* The path may be left over from a daemon that was killed, but must not belong to one that lives.
 */
static int open_rx(struct frames_port *f, struct error *err)
{
    const struct sockaddr *a = (const struct sockaddr *)&f->port_address;
    const char *path = f->port_address.sun_path;
    int fd;

    if (new_socket(&fd, err) < 0)
        return -1;
    if (connect(fd, a, sizeof(f->port_address)) == 0) {
        close(fd);
        return error_set(err, "%s: another port is listening there; stop the other daemon first",
                         path);
    }
    if (errno == ECONNREFUSED)
        unlink(path);
    if (bind(fd, a, sizeof(f->port_address)) < 0) {
        error_set(err, "%s: cannot make the socket for the guest's frames: %s", path,
                  strerror(errno));
        close(fd);
        return -1;
    }
    f->rx = fd;
    return 0;
}

static int open_tap_socket(struct frames_port *f, const char *path, struct error *err)
{
    struct sockaddr_un any = {.sun_family = AF_UNIX};

    f->tap_is_socket = true;
    if (set_address(&f->tap_address, path, err) < 0 || new_socket(&f->tap, err) < 0)
        return -1;
    if (bind(f->tap, (struct sockaddr *)&any, sizeof(any.sun_family)) < 0)
        return error_set(err, "tap unix:%s: bind: %s", path, strerror(errno));
    return 0;
}

static int tap_error(struct error *err, const char *name)
{
    switch (errno) {
    case EBUSY:
        return error_set(err,
                         "tap %s: in use by another process; stop it, or name another interface",
                         name);
    case EPERM:
    case EACCES:
        return error_set(err,
                         "tap %s: no permission; run as root, or make it with "
                         "`ip tuntap add dev %s mode tap user USER`",
                         name, name);
    case EINVAL:
        return error_set(err, "tap %s: exists but is no single-queue tap interface", name);
    default:
        return error_set(err, "tap %s: %s", name, strerror(errno));
    }
}

static int set_up(const char *name, struct error *err)
{
    struct ifreq ifr = {0};
    cleanup_close int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
    if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &ifr) < 0)
        return error_set(err, "tap %s: cannot read its flags: %s", name, strerror(errno));
    if (ifr.ifr_flags & IFF_UP)
        return 0;
    ifr.ifr_flags = (short)(ifr.ifr_flags | IFF_UP);
    if (ioctl(fd, SIOCSIFFLAGS, &ifr) < 0)
        return error_set(err, "tap %s: is down and cannot be set up: %s", name, strerror(errno));
    return 0;
}

static int open_interface(int *tap, const char *name, struct error *err)
{
    struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    int sndbuf = TAP_SNDBUF;

    if (strlen(name) >= IFNAMSIZ)
        return error_set(err, "tap %s: a name has at most %d characters", name, IFNAMSIZ - 1);
    *tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (*tap < 0)
        return error_set(err, "tap %s: /dev/net/tun: %s%s", name, strerror(errno),
                         errno == ENOENT ? "; load the module tun" : "");
    strcpy(ifr.ifr_name, name);
    if (ioctl(*tap, TUNSETIFF, &ifr) < 0)
        return tap_error(err, name);
    if (ioctl(*tap, TUNSETSNDBUF, &sndbuf) < 0)
        return error_set(err, "tap %s: TUNSETSNDBUF: %s", name, strerror(errno));
    return set_up(name, err);
}

static int open_tap(struct frames_port *f, const char *name, struct error *err)
{
    if (!*name)
        return 0;
    if (strncmp(name, "unix:", 5) == 0)
        return open_tap_socket(f, name + 5, err);
    return open_interface(&f->tap, name, err);
}

static int join_bridge(const char *tap, const char *bridge, struct error *err)
{
    struct ifreq ifr = {.ifr_ifindex = (int)if_nametoindex(tap)};
    cleanup_close int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (strlen(bridge) >= IFNAMSIZ)
        return error_set(err, "bridge %s: a name has at most %d characters", bridge,
                         IFNAMSIZ - 1);
    strcpy(ifr.ifr_name, bridge);
    if (fd < 0 || ioctl(fd, SIOCBRADDIF, &ifr) < 0)
        return error_set(err, "bridge %s: cannot add %s to it: %s%s", bridge, tap, strerror(errno),
                         errno == ENODEV ? "; make it with ip link add NAME type bridge" : "");
    return set_up(bridge, err);
}

/* The guest's side, of either kind. */
static int open_guest(struct frames_port *f, const struct frames_port_config *cfg,
                      struct error *err)
{
    char name[IFNAMSIZ];

    if (!cfg->guest_bridge || !*cfg->guest_bridge)
        return set_address(&f->guest_address, cfg->guest_path, err) < 0 ||
                       set_address(&f->port_address, cfg->port_path, err) < 0 ||
                       new_socket(&f->tx, err) < 0 || open_rx(f, err) < 0
                   ? -1 : 0;
    if (snprintf(name, sizeof(name), FRAMES_GUEST_TAP, cfg->tap) >= (int)sizeof(name))
        return error_set(err, "tap %s: at most %d characters with a guest-bridge", cfg->tap,
                         FRAMES_TAP_MAX);
    f->guest_is_tap = true;
    if (open_interface(&f->tx, name, err) < 0)
        return -1;
    f->rx = f->tx;
    return join_bridge(name, cfg->guest_bridge, err);
}

static void check_qlen(struct frames_port *f)
{
    static const char path[] = "/proc/sys/net/unix/max_dgram_qlen";
    FILE *file = fopen(path, "re");
    int qlen = QLEN_ENOUGH;

    if (!file)
        return;
    if (fscanf(file, "%d", &qlen) == 1 && qlen < QLEN_ENOUGH)
        snprintf(
            f->warning, sizeof(f->warning),
            "net.unix.max_dgram_qlen is %d: the guest's network will be slow; set it to 1000 with "
            "sysctl before the VM starts",
            qlen);
    fclose(file);
}

const char *frames_port_warning(const struct port *p)
{
    const struct frames_port *f = (const struct frames_port *)p;

    return f->warning[0] ? f->warning : NULL;
}

int frames_port_open(struct port **out, const struct frames_port_config *cfg, struct error *err)
{
    struct frames_port *f = calloc(1, sizeof(*f));

    if (!f)
        return error_set(err, "frames port: %s", strerror(ENOMEM));
    gate_port_init(&f->g, &frames_ops);
    f->rx = f->tx = f->tap = -1;
    check_qlen(f);
    if (batch_init(&f->up) < 0 || batch_init(&f->down) < 0) {
        error_set(err, "frames port: %s", strerror(ENOMEM));
        goto fail;
    }
    if (gate_port_open(&f->g, cfg->mac, cfg->queue_bytes, cfg->services, cfg->open_active, err) < 0 ||
        open_tap(f, cfg->tap, err) < 0 || open_guest(f, cfg, err) < 0 || gate_port_start(&f->g, frames_thread, err) < 0)
        goto fail;
    *out = &f->g.port;
    return 0;
fail:
    frames_free(f);
    return -1;
}
