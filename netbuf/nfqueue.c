/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The nfqueue port: the kernel holds the guest's packets in a netfilter queue, the gate says when they go on.
 *
 *     guest --> bridge or router --queue N--> gate: the kernel waits for our verdict      accept: it goes on its way
 *     guest <-- bridge or router <--queue N+1--  the gate reads, a takeover's resets take; all others are accepted at once
 *
 * A copy of each packet goes through the gate, with the packet's number behind it where Ethernet has its padding.
 * A release is one message, "accept all up to this number": all below it are released too, or have been accepted, because the gate's queue is in
 * the order of the numbers.  What the gate cannot take yet stays in the socket, and beyond the socket's size is lost, which
 * the kernel counts.  When the socket is closed, also by the kernel for a daemon that died, the kernel drops what waits.
 *
 * Netlink is spoken as <linux/netfilter/nfnetlink_queue.h> has it: three messages.  libnl-nf-3 (3.7) cannot read the Ethernet header and the
 * VLAN tag of a bridged packet, and neither it nor libnetfilter_queue reads more than one packet with a call.
 *
 * Both sockets and the gate are under `lock`; verdicts are sent under it, which waits for nobody.
 */
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <linux/if_packet.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
#include <poll.h>
#include <pthread.h>
#include <spawn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "port-common.h"

#define BATCH 32u
#define RX_MAX (65536u + 1024u) /* a packet, its attributes, and its number behind it */
#define SOCKET_BUFFER (8 << 20)
#define BARRIER_ROUNDS 4096u /* of reading: far more than a stopped guest can have sent */
#define KERNEL_PACKET_MIN 64u

/* Where a packet was routed, there is no such station: its frames are made up, and never sent. */
static const uint8_t router_mac[6] = {2, 0, 0, 0, 0, 1};

struct verdict {
    struct nlmsghdr nl;
    struct nfgenmsg nfgen;
    struct nlattr attr;
    struct nfqnl_msg_verdict_hdr hdr;
};
_Static_assert(sizeof(struct verdict) == 32, "as netlink wants it");

struct queue {
    int fd;
    uint16_t number;
    struct verdict verdicts[BATCH]; /* to be sent */
    unsigned count;
};

struct nfqueue_port {
    struct gate_port g;
    int raw, raw4, raw6; /* to send with: a bridge's frames, a router's packets */
    int bridge;          /* its index, 0: the packets are routed */
    char name[CONFIG_TAPLEN_MAX + 1]; /* of the guest's interface */

    /* under g.lock */
    struct queue from_guest, to_guest;
    int vif; /* index of the guest's interface, 0: not seen yet */
    uint8_t (*rx)[RX_MAX];
    uint64_t in, refused;
};

struct packet_in {
    uint32_t id;
    uint8_t *frame;
    size_t len;
    int indev;
};

static struct nfqueue_port *of(struct port *p)
{
    return (struct nfqueue_port *)p;
}

/* --- netlink --- */

static void fill_header(struct nlmsghdr *nl, size_t len, uint16_t type, uint16_t flags, uint16_t queue)
{
    struct nfgenmsg *g = (struct nfgenmsg *)(nl + 1);

    *nl = (struct nlmsghdr){.nlmsg_len = (uint32_t)len,
                            .nlmsg_type = (uint16_t)(NFNL_SUBSYS_QUEUE << 8 | type),
                            .nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags)};
    *g = (struct nfgenmsg){.nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0, .res_id = htons(queue)};
}

static void flush_verdicts(struct queue *q)
{
    if (q->count && send(q->fd, q->verdicts, q->count * sizeof(q->verdicts[0]), 0) < 0)
        q->count = 0; /* the queue is gone, and its packets with it */
    q->count = 0;
}

/* type: NFQNL_MSG_VERDICT, or NFQNL_MSG_VERDICT_BATCH for all up to id. */
static void add_verdict(struct queue *q, uint16_t type, uint32_t verdict, uint32_t id)
{
    struct verdict *v = &q->verdicts[q->count++];

    fill_header(&v->nl, sizeof(*v), type, 0, q->number);
    v->attr = (struct nlattr){.nla_len = sizeof(v->attr) + sizeof(v->hdr), .nla_type = NFQA_VERDICT_HDR};
    v->hdr = (struct nfqnl_msg_verdict_hdr){htonl(verdict), htonl(id)};
    if (q->count == BATCH)
        flush_verdicts(q);
}

/* Sends attributes of configuration; 0, or the kernel's errno. */
static int configure(struct queue *q, const void *attrs, size_t len)
{
    struct {
        struct nlmsghdr nl;
        struct nfgenmsg nfgen;
        uint8_t attrs[32];
    } m;
    struct {
        struct nlmsghdr nl;
        struct nlmsgerr err;
        uint8_t more[256];
    } answer;
    ssize_t n;

    fill_header(&m.nl, offsetof(typeof(m), attrs) + NLA_ALIGN(len), NFQNL_MSG_CONFIG, NLM_F_ACK, q->number);
    memset(m.attrs, 0, sizeof(m.attrs));
    memcpy(m.attrs, attrs, len);
    if (send(q->fd, &m, m.nl.nlmsg_len, 0) < 0)
        return errno;
    do /* what else comes is a packet, which a barrier would count for a later epoch: dropped at close */
        n = recv(q->fd, &answer, sizeof(answer), 0);
    while (n >= (ssize_t)sizeof(answer.nl) && answer.nl.nlmsg_type != NLMSG_ERROR);
    return n < (ssize_t)(sizeof(answer.nl) + sizeof(answer.err)) ? EIO : -answer.err.error;
}

/* Bound last but for the copying, without which the kernel drops: no packet comes before all is set. */
static int set_up_queue(struct queue *q, size_t queue_bytes)
{
    const struct {
        struct nlattr attr;
        struct nfqnl_msg_config_cmd cmd;
    } bind = {{sizeof(bind), NFQA_CFG_CMD}, {.command = NFQNL_CFG_CMD_BIND}};
    const struct {
        struct nlattr most_attr;
        uint32_t most;
        struct nlattr flags_attr;
        uint32_t flags;
        struct nlattr mask_attr;
        uint32_t mask;
    } limits = {{8, NFQA_CFG_QUEUE_MAXLEN}, htonl((uint32_t)(queue_bytes / KERNEL_PACKET_MIN)),
                {8, NFQA_CFG_FLAGS}, htonl(NFQA_CFG_F_GSO), /* large segments whole; never fail open */
                {8, NFQA_CFG_MASK}, htonl(NFQA_CFG_F_GSO | NFQA_CFG_F_FAIL_OPEN)};
    const struct {
        struct nlattr attr;
        struct nfqnl_msg_config_params params;
    } copy = {{4 + sizeof(copy.params), NFQA_CFG_PARAMS},
              {.copy_range = htonl(0xffff - NLA_HDRLEN), .copy_mode = NFQNL_COPY_PACKET}};
    int rc = configure(q, &bind, sizeof(bind));

    if (rc == 0)
        rc = configure(q, &limits, sizeof(limits));
    return rc ? rc : configure(q, &copy, 4 + sizeof(copy.params));
}

static int open_queue(struct queue *q, unsigned number, size_t queue_bytes, struct error *err)
{
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    int size = SOCKET_BUFFER, one = 1, rc;

    q->number = (uint16_t)number;
    q->fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
    if (q->fd < 0 || connect(q->fd, (struct sockaddr *)&kernel, sizeof(kernel)) < 0)
        return error_set(err, "nfqueue %u: netlink: %s", number, strerror(errno));
    if (setsockopt(q->fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) < 0)
        setsockopt(q->fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
    setsockopt(q->fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &one, sizeof(one));
    rc = set_up_queue(q, queue_bytes);
    switch (rc) {
    case 0:
        return 0;
    case EBUSY:
    case EPERM:
        return error_set(err, "nfqueue %u: in use by another process, or we are not root; take another number", number);
    case EINVAL:
    case EOPNOTSUPP:
        error_set(err, "nfqueue %u: this kernel has none; load the module nfnetlink_queue", number);
        errno = EOPNOTSUPP;
        return -1;
    default:
        return error_set(err, "nfqueue %u: %s", number, strerror(rc));
    }
}

/* The attributes of a packet that we use. */
struct attrs {
    const uint8_t *value[NFQA_MAX + 1];
    size_t len[NFQA_MAX + 1];
};

static void parse_attrs(struct attrs *a, const uint8_t *at, size_t len, unsigned max)
{
    size_t step;

    memset(a, 0, sizeof(*a));
    while (len >= NLA_HDRLEN) {
        struct nlattr h;

        memcpy(&h, at, sizeof(h));
        if (h.nla_len < NLA_HDRLEN || h.nla_len > len)
            return;
        if ((h.nla_type & NLA_TYPE_MASK) <= max) {
            a->value[h.nla_type & NLA_TYPE_MASK] = at + NLA_HDRLEN;
            a->len[h.nla_type & NLA_TYPE_MASK] = h.nla_len - NLA_HDRLEN;
        }
        step = ((size_t)h.nla_len + 3) / 4 * 4;
        if (step >= len)
            return;
        at += step;
        len -= step;
    }
}

static bool has(const struct attrs *a, unsigned type, size_t len)
{
    return a->value[type] && a->len[type] >= len;
}

/* Writes the Ethernet header of the packet, with its tag; its length. */
static size_t put_ethernet(uint8_t *head, const struct attrs *a, const struct nfqnl_msg_packet_hdr *hdr)
{
    struct attrs vlan;

    if (!has(a, NFQA_L2HDR, ETH_HEADER)) { /* routed */
        memcpy(head, router_mac, 6);
        memset(head + 6, 0, 6);
        if (has(a, NFQA_HWADDR, 10))
            memcpy(head + 6, a->value[NFQA_HWADDR] + 4, 6);
        memcpy(head + 12, &hdr->hw_protocol, 2);
        return ETH_HEADER;
    }
    memcpy(head, a->value[NFQA_L2HDR], 12);
    if (has(a, NFQA_VLAN, 1)) {
        parse_attrs(&vlan, a->value[NFQA_VLAN], a->len[NFQA_VLAN], NFQA_VLAN_MAX);
        if (has(&vlan, NFQA_VLAN_PROTO, 2) && has(&vlan, NFQA_VLAN_TCI, 2)) {
            memcpy(head + 12, vlan.value[NFQA_VLAN_PROTO], 2);
            memcpy(head + 14, vlan.value[NFQA_VLAN_TCI], 2);
            memcpy(head + 16, a->value[NFQA_L2HDR] + 12, 2);
            return ETH_HEADER + 4;
        }
    }
    memcpy(head + 12, a->value[NFQA_L2HDR] + 12, 2);
    return ETH_HEADER;
}

static int index_of(const struct attrs *a)
{
    unsigned type = has(a, NFQA_IFINDEX_PHYSINDEV, 4) ? NFQA_IFINDEX_PHYSINDEV : NFQA_IFINDEX_INDEV;

    return has(a, type, 4) ? (int)get_be32(a->value[type]) : 0;
}

/* False: it is no packet.  The frame is made in place, before the payload, where the attributes were that have been read. */
static bool parse_packet(struct packet_in *p, uint8_t *msg, size_t len)
{
    const size_t before = sizeof(struct nlmsghdr) + sizeof(struct nfgenmsg);
    struct nfqnl_msg_packet_hdr hdr;
    uint8_t head[ETH_HEADER + 4];
    struct nlmsghdr nl;
    struct attrs a;
    size_t n;

    if (len < before)
        return false;
    memcpy(&nl, msg, sizeof(nl));
    if (nl.nlmsg_type != (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET) || nl.nlmsg_len < before || nl.nlmsg_len > len)
        return false;
    parse_attrs(&a, msg + before, nl.nlmsg_len - before, NFQA_MAX);
    if (!has(&a, NFQA_PACKET_HDR, sizeof(hdr)))
        return false;
    memcpy(&hdr, a.value[NFQA_PACKET_HDR], sizeof(hdr));
    *p = (struct packet_in){.id = ntohl(hdr.packet_id), .indev = index_of(&a)};
    if (a.value[NFQA_PAYLOAD]) {
        n = put_ethernet(head, &a, &hdr);
        p->frame = msg + (a.value[NFQA_PAYLOAD] - msg) - n; /* more than n octets are before it */
        p->len = n + a.len[NFQA_PAYLOAD];
        memcpy(p->frame, head, n);
    }
    return true;
}

/* --- packets --- */

static void send_raw(struct nfqueue_port *f, int index, const uint8_t *frame, size_t len)
{
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = index, .sll_halen = 6};

    memcpy(to.sll_addr, frame, 6);
    if (index && sendto(f->raw, frame, len, MSG_DONTWAIT, (struct sockaddr *)&to, sizeof(to)) < 0)
        return; /* as on a wire: what matters is sent again */
}

/* Without its Ethernet header. */
static void send_routed(struct nfqueue_port *f, const uint8_t *frame, size_t len)
{
    struct sockaddr_in to4 = {.sin_family = AF_INET};
    struct sockaddr_in6 to6 = {.sin6_family = AF_INET6};
    struct packet p;
    ssize_t n = 0;

    if (!packet_parse(&p, frame, len) || p.tags)
        return;
    if (p.ethertype == ETHERTYPE_IPV4_ && p.family == 4) {
        memcpy(&to4.sin_addr, p.dst, 4);
        n = sendto(f->raw4, frame + ETH_HEADER, len - ETH_HEADER, MSG_DONTWAIT, (struct sockaddr *)&to4, sizeof(to4));
    } else if (p.ethertype == ETHERTYPE_IPV6_ && p.family == 6) {
        memcpy(&to6.sin6_addr, p.dst, 16);
        n = sendto(f->raw6, frame + ETH_HEADER, len - ETH_HEADER, MSG_DONTWAIT, (struct sockaddr *)&to6, sizeof(to6));
    }
    if (n < 0)
        return;
}

static void send_reset(struct nfqueue_port *f, const struct reset_frame *r)
{
    if (!r->len)
        return;
    if (!f->bridge)
        send_routed(f, r->data, r->len);
    else
        send_raw(f, r->to == RESET_GUEST ? f->vif : f->bridge, r->data, r->len);
}

/* R3: is it of a connection that is being reset?  Then it is answered and must be dropped. */
static bool is_reset(struct nfqueue_port *f, enum reset_side from, const uint8_t *frame, size_t len)
{
    struct reset_frame answer;

    if (!f->g.takeover.reset || !reset_take(f->g.takeover.reset, from, frame, len, &answer))
        return false;
    send_reset(f, &answer);
    return true;
}

static void take_from_guest(struct nfqueue_port *f, const struct packet_in *p)
{
    enum gate_verdict verdict = GATE_REFUSED;

    if (p->frame && p->len + 4 <= GATE_FRAME_MAX) {
        f->vif = p->indev;
        put_be32(p->frame + p->len, p->id);
        verdict = gate_send(f->g.gate, p->frame, p->len + 4, clock_ns());
    }
    if (verdict == GATE_REFUSED || verdict == GATE_FULL) {
        f->refused++;
        add_verdict(&f->from_guest, NFQNL_MSG_VERDICT, NF_DROP, p->id);
    }
}

static void take_to_guest(struct nfqueue_port *f, const struct packet_in *p)
{
    bool drop = p->frame && is_reset(f, RESET_CLIENT, p->frame, p->len);

    if (p->frame && !drop && gate_reads_clients(f->g.gate))
        gate_receive(f->g.gate, p->frame, p->len);
    f->in += !drop;
    add_verdict(&f->to_guest, NFQNL_MSG_VERDICT, drop ? NF_DROP : NF_ACCEPT, p->id);
}

/* How many messages it read, none of them more than once; with the lock held. */
static unsigned read_queue(struct nfqueue_port *f, struct queue *q, size_t room,
                           void (*take)(struct nfqueue_port *f, const struct packet_in *p))
{
    struct mmsghdr msg[BATCH];
    struct iovec iov[BATCH];
    struct packet_in p;
    unsigned max = room < BATCH ? (unsigned)room : BATCH;
    int n;

    for (unsigned i = 0; i < max; i++) {
        iov[i] = (struct iovec){f->rx[i], RX_MAX - 8};
        msg[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &iov[i], .msg_iovlen = 1}};
    }
    n = max ? recvmmsg(q->fd, msg, max, MSG_DONTWAIT, NULL) : 0;
    for (int i = 0; i < n; i++)
        if (parse_packet(&p, f->rx[i], msg[i].msg_len))
            take(f, &p);
    flush_verdicts(q);
    return n > 0 ? (unsigned)n : 0;
}

static unsigned read_guest(struct nfqueue_port *f)
{
    return read_queue(f, &f->from_guest, gate_room(f->g.gate), take_from_guest);
}

/* A batch accepts what waits before it too: nothing does, or it is released. */
static void accept_released(struct nfqueue_port *f)
{
    struct iovec v[BATCH];
    unsigned n;

    while ((n = gate_peek(f->g.gate, v, f->g.takeover.reset ? 1 : BATCH)) > 0) {
        bool one_by_one = f->g.takeover.reset || gate_peeked_passing(f->g.gate);

        for (unsigned i = one_by_one ? 0 : n - 1; i < n; i++) {
            const uint8_t *frame = v[i].iov_base;
            size_t len = v[i].iov_len - 4;
            bool drop = is_reset(f, RESET_GUEST, frame, len);

            add_verdict(&f->from_guest, one_by_one ? NFQNL_MSG_VERDICT : NFQNL_MSG_VERDICT_BATCH,
                        drop ? NF_DROP : NF_ACCEPT, get_be32(frame + len));
        }
        flush_verdicts(&f->from_guest);
        gate_pop(f->g.gate, n, clock_ns());
    }
}

/* Announces and pokes what is due; returns when the next one is. */
static uint64_t work_of_takeover(struct nfqueue_port *f)
{
    uint64_t now = clock_ns(), announce, poke;
    struct reset_frame frame;
    struct iovec v;

    while (announcer_next(&f->g.takeover.announcer, now, &v)) {
        send_raw(f, f->bridge, v.iov_base, v.iov_len);
        announcer_sent(&f->g.takeover.announcer);
    }
    while (f->g.takeover.reset && reset_poke(f->g.takeover.reset, now, &frame)) {
        send_reset(f, &frame);
        reset_poked(f->g.takeover.reset);
    }
    announce = announcer_due(&f->g.takeover.announcer);
    poke = takeover_reset_due(&f->g.takeover, now);
    return announce < poke ? announce : poke;
}

static void wait_for_work(struct nfqueue_port *f, bool room, uint64_t due)
{
    struct pollfd fds[] = {{f->g.wake, POLLIN, 0},
                           {room ? f->from_guest.fd : -1, POLLIN, 0},
                           {f->to_guest.fd, POLLIN, 0}};
    uint64_t now = clock_ns(), wait = due > now ? due - now : 0, counter;
    struct timespec ts = {(time_t)(wait / NS_PER_S), (long)(wait % NS_PER_S)};

    if (ppoll(fds, 3, due == TIME_NEVER ? NULL : &ts, NULL) > 0 && fds[0].revents &&
        read(f->g.wake, &counter, sizeof(counter)) < 0)
        return;
}

static void *nfqueue_thread(void *arg)
{
    struct nfqueue_port *f = arg;
    uint64_t due = TIME_NEVER;
    bool room = true;

    while (!f->g.stop) {
        wait_for_work(f, room, due);
        pthread_mutex_lock(&f->g.lock);
        read_guest(f);
        accept_released(f);
        read_queue(f, &f->to_guest, BATCH, take_to_guest);
        due = work_of_takeover(f);
        room = gate_room(f->g.gate) > 0;
        pthread_mutex_unlock(&f->g.lock);
    }
    return NULL;
}

/* --- the seam --- */

static int nfqueue_barrier(struct port *p, uint64_t epoch, struct buffer *net_state)
{
    struct nfqueue_port *f = of(p);
    SCOPED_LOCK(&f->g.lock);

    /* What is still on its way through the kernel belongs to a later epoch: held longer, never shorter. */
    for (unsigned i = 0; i < BARRIER_ROUNDS && read_guest(f) > 0; i++)
        ;
    return gate_barrier(f->g.gate, epoch, net_state);
}

/* What the kernel found no room for, in the queue or in the socket. */
static uint64_t kernel_dropped(const struct nfqueue_port *f)
{
    FILE *file = fopen("/proc/self/net/netfilter/nfnetlink_queue", "re");
    unsigned number, queue_dropped, user_dropped;
    uint64_t n = 0;

    while (file && fscanf(file, "%u %*u %*u %*u %*u %u %u%*[^\n]", &number, &queue_dropped, &user_dropped) == 3)
        if (number == f->from_guest.number)
            n = (uint64_t)queue_dropped + user_dropped;
    if (file)
        fclose(file);
    return n;
}

static void nfqueue_stats(struct port *p, struct port_stats *stats)
{
    struct nfqueue_port *f = of(p);

    gate_port_stats(&f->g, stats);
    pthread_mutex_lock(&f->g.lock);
    stats->frames_in = f->in;
    stats->refused = f->refused;
    pthread_mutex_unlock(&f->g.lock);
    stats->dropped_out = kernel_dropped(f);
}

static void nfqueue_free(struct nfqueue_port *f)
{
    int fds[] = {f->from_guest.fd, f->to_guest.fd, f->raw, f->raw4, f->raw6};

    for (unsigned i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        if (fds[i] >= 0)
            close(fds[i]);
    free(f->rx);
    gate_port_fini(&f->g);
    free(f);
}

/* 0, or errno, or -1: nft has said why not. */
static int run_nft(char *rules)
{
    char *argv[] = {"nft", rules, NULL}, *no_environment[] = {NULL};
    int status = -1, rc;
    pid_t pid;

    rc = posix_spawnp(&pid, argv[0], NULL, NULL, argv, no_environment);
    while (rc == 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return rc ? rc : status ? -1 : 0;
}

/* There may be no such table: only one that is there can be deleted. */
#define NO_TABLES "add table bridge remus-%s; delete table bridge remus-%s; add table inet remus-%s; delete table inet remus-%s;"

static void nfqueue_leave(struct port *p)
{
    const char *v = of(p)->name;
    char rules[512];

    snprintf(rules, sizeof(rules), NO_TABLES, v, v, v, v);
    run_nft(rules);
}

static void nfqueue_close(struct port *p)
{
    struct nfqueue_port *f = of(p);

    gate_port_stop(&f->g);
    nfqueue_free(f);
}

static const struct port_ops nfqueue_ops = {
    .name = "nfqueue",
    .barrier = nfqueue_barrier,
    .release = gate_port_release,
    .urgent = gate_port_urgent,
    .hold = gate_port_hold,
    .pass = gate_port_pass,
    .activate = gate_port_activate,
    .stats = nfqueue_stats,
    .leave = nfqueue_leave,
    .close = nfqueue_close,
};

/* R1: no packet of the guest gets past the queue from here on, whether somebody reads it or not. */
static int make_rules(const struct nfqueue_port_config *cfg, bool bridged, struct error *err)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_";
    const char *v = cfg->vif;
    char rules[1024];
    int rc;

    if (!*v || strlen(v) > CONFIG_TAPLEN_MAX || strspn(v, letters) != strlen(v))
        return error_set(err, "vif '%s': want letters, digits, '.', '-' and '_'", v);
    snprintf(rules, sizeof(rules),
             NO_TABLES
             "table %s remus-%s { chain out { type filter hook prerouting priority -350; iifname \"%s\" queue num %u; };"
             " chain in { type filter hook postrouting priority 350; oifname \"%s\" queue num %u; }; }",
             v, v, v, v, bridged ? "bridge" : "inet", v, v, cfg->queue, v, cfg->queue + 1u);
    rc = run_nft(rules);
    if (rc == 0)
        return 0;
    if (rc > 0)
        error_set(err, "vif %s: cannot run nft: %s; install nftables", v, strerror(rc));
    else
        error_set(err, "vif %s: nft did not take the rules for its packets (see above); does this kernel have "
                  "the modules nft_queue%s?", v, bridged ? " and nft_meta_bridge" : "");
    errno = EOPNOTSUPP;
    return -1;
}

/* protocol 0: sends only. */
static int open_senders(struct nfqueue_port *f, const char *bridge, struct error *err)
{
    f->raw = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    f->raw4 = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
    f->raw6 = socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW); /* may be absent, with IPv6 */
    if (f->raw < 0 || f->raw4 < 0)
        return error_set(err, "nfqueue port: raw socket: %s", strerror(errno));
    if (bridge && *bridge && (f->bridge = (int)if_nametoindex(bridge)) == 0)
        return error_set(err, "bridge %s: %s", bridge, strerror(errno));
    return 0;
}

int nfqueue_port_open(struct port **out, const struct nfqueue_port_config *cfg, struct error *err)
{
    struct nfqueue_port *f = calloc(1, sizeof(*f));
    int rc;

    if (!f)
        return error_set(err, "nfqueue port: %s", strerror(ENOMEM));
    gate_port_init(&f->g, &nfqueue_ops);
    f->raw = f->raw4 = f->raw6 = f->from_guest.fd = f->to_guest.fd = -1;
    f->rx = malloc(BATCH * sizeof(*f->rx));
    if (!f->rx) {
        error_set(err, "nfqueue port: %s", strerror(ENOMEM));
        goto fail;
    }
    snprintf(f->name, sizeof(f->name), "%s", cfg->vif);
    if (gate_port_open(&f->g, cfg->mac, cfg->queue_bytes, cfg->services, cfg->open_active, err) < 0 ||
        open_senders(f, cfg->bridge, err) < 0 ||
        open_queue(&f->from_guest, cfg->queue, cfg->queue_bytes, err) < 0 ||
        open_queue(&f->to_guest, cfg->queue + 1u, cfg->queue_bytes, err) < 0 ||
        make_rules(cfg, f->bridge != 0, err) < 0 || gate_port_start(&f->g, nfqueue_thread, err) < 0)
        goto fail;
    *out = &f->g.port;
    return 0;
fail:
    rc = errno;
    nfqueue_free(f);
    errno = rc;
    return -1;
}
