/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The seam between the epoch engine and whatever holds the guest's packets.
 *
 * A port carries frames between the guest and its network and asks the gate (netbuf/gate.h, pure
 * code) what to do with each.  One file an implementation: frames (unix datagram socket or tap, to a tap),
 * nfqueue (the kernel keeps the packets). A port runs a thread of its own; every call here may come from any
 * thread and returns quickly.
 *
 * Fail closed: a port whose daemon dies releases nothing.
 */
#ifndef REMUS_PORT_H
#define REMUS_PORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buffer.h"
#include "common/config.h"
#include "common/error.h"
#include "flows.h"

/* Octets that the network state of one checkpoint may have (addresses, later the flow list). */
#define NET_STATE_MAX (1u << 20)

struct port_stats {
    uint64_t held_frames, held_bytes;       /* waiting now */
    uint64_t held_frames_max;
    uint64_t frames_out, bytes_out;         /* left for the network, all time */
    uint64_t frames_in;                     /* given to the guest */
    uint64_t dropped_in;                    /* towards the guest: its socket stayed full or is gone */
    uint64_t dropped_out;                   /* from the guest: the kernel found no room for them */
    uint64_t refused;                       /* malformed: shorter than an Ethernet header, or too long */
    uint64_t full_ns;                       /* time in which the full queue held up the guest's sending */
    uint64_t hold_p50_ns, hold_p99_ns;      /* over the last releases */
    uint64_t by[FLOW_VERDICTS];             /* the guest's frames, by what became of them ... */
    uint64_t unprotected;                   /* ... and those that came when nothing was held */
    bool has_flows;                         /* commit protection is on, then: */
    struct flows_stats flows;
};

struct port {
    const struct port_ops *ops;
};

struct port_ops {
    const char *name;

    /*
     * The guest is suspended: everything it has sent up to now belongs to `epoch`, everything
     * later to a later one. Appends the network state of this checkpoint (R2) to net_state.
     * Inside the pause: no logging, no waiting on the network (R8).  Epochs rise over the life of
     * the port, also from one protection to the next: -1 with EINVAL otherwise; -1 with ENOMEM.
     * After a failure nothing of this epoch will be released.
     */
    int (*barrier)(struct port *p, uint64_t epoch, struct buffer *net_state);

    /* Checkpoint `epoch` is acknowledged: what belongs to it or to earlier ones may leave (R1). */
    void (*release)(struct port *p, uint64_t epoch);

    /* Do so many clients wait for the next checkpoint that it should come early?  NULL: the port cannot tell. */
    bool (*urgent)(struct port *p);

    /* From now on hold the guest's output until release (a protection begins or goes on). */
    void (*hold)(struct port *p);

    /* Protection is over, with the operator's word or the arbiter's grant: let out what is held, in order, and
     * hold nothing more. */
    void (*pass)(struct port *p);

    /*
     * The backup has activated the replica: tell the network where the guest's addresses live now
     * (gratuitous ARP, unsolicited neighbour advertisement), several times over the next seconds,
     * reset the connections that the checkpoint lists as open (netbuf/reset.h), and pass everything
     * else. net_state: from the activated checkpoint; checked like anything from outside (R10).
     */
    int (*activate)(struct port *p, const uint8_t *net_state, size_t len, struct error *err);

    void (*stats)(struct port *p, struct port_stats *stats);

    /* Optional, ahead of close: takes away what would hold the guest's packets when nobody has the port open. */
    void (*leave)(struct port *p);
    void (*close)(struct port *p);
};

struct frames_port_config {
    const char *guest_path;   /* unix datagram socket of the guest's device: bound, not connected;
                               * may come later */
    const char *port_path;    /* ours; made by open, unlinked by close */
    const char *tap;          /* tap interface, made when it does not exist; "" = none, frames end
                               * here; or "unix:PATH" (tests): frames go to the datagram socket PATH
                               * from a nameless one, so PATH finds the guest as a switch does, by the
                               * frames that come */
    const char *mac;          /* of the guest, announced when no address is known; "" = none */
    size_t queue_bytes;       /* bound of the held frames (R9), at least GATE_QUEUE_MIN: at the
                               * bound the guest's sending waits */
    const char *services;     /* commit-protected, as in struct vm_config; NULL or "": none */
    bool open_active;         /* open-when = active */
    const char *guest_bridge; /* the guest's device is on this bridge, alone: NULL or "": it is a socket */
};

/*
 * The interface that a port with a guest_bridge and this tap puts on that bridge, "TAP-g".  Whatever the guest
 * sends leaves the bridge there and nowhere else, as long as the two are alone on it.  A bridge hands frames
 * over with some delay: one that it holds at a barrier belongs to the next epoch, so waits longer, never shorter (R1).
 */
#define FRAMES_GUEST_TAP "%s-g"
#define FRAMES_TAP_MAX 13 /* characters of TAP with a guest_bridge */

/* Begins in hold. */
int frames_port_open(struct port **p, const struct frames_port_config *cfg, struct error *err);

/* What on this host will make a frames port slow, to be logged once; NULL: nothing. */
const char *frames_port_warning(const struct port *p);

/*
 * Packets that the kernel hands over: what comes from the guest's interface in netfilter queue `queue`, before the host routes or
 * bridges it; what goes there in `queue` + 1.  Opening the port makes nft rules for that, in a table "remus-VIF"; they stay
 * when it is closed: without a daemon the guest has no network.  At a takeover frames are sent on `bridge`.
 */
struct nfqueue_port_config {
    uint16_t queue;      /* below 65535 */
    const char *vif;     /* the guest's interface; may come later */
    const char *bridge;  /* that the guest's interface is on, with others; NULL or "": its packets are routed */
    const char *mac;     /* as above, and so on */
    size_t queue_bytes;  /* at the bound the kernel drops what the guest sends, and counts */
    const char *services;
    bool open_active;
};

/* Begins in hold.  -1 with EOPNOTSUPP: this host cannot, neither with another configuration. */
int nfqueue_port_open(struct port **p, const struct nfqueue_port_config *cfg, struct error *err);

/*
 * Packets that the kernel holds in a queue of kind plug, of the interface "ifb-VIF", to which what comes from the guest's interface
 * is redirected.  Strict: there is no commit protection, and activate fails when connections would have to be reset.  The interface
 * and the redirection stay when the port is closed: what was held then is held on, what passed passes on.
 */
struct plug_port_config {
    const char *vif;     /* the guest's interface; may come later */
    const char *bridge;  /* as above */
    const char *mac;
    size_t queue_bytes;  /* at the bound the kernel drops what the guest sends, and counts */
};
#define PLUG_IFB "ifb-%s"
#define PLUG_VIF_MAX 11

/* Begins in hold. */
int plug_port_open(struct port **p, const struct plug_port_config *cfg, struct error *err);

/*
 * The port that a VM's configuration asks for: nfqueue or plug with `vif`, frames with `tap`, else null.  guest_path, port_path: as
 * in struct frames_port_config.  primary: with its services; a backup's port only carries a takeover out.  With netbuf = auto, err
 * says after success why it is no better one, or nothing.
 */
int port_open(struct port **p, const struct vm_config *cfg, const char *guest_path, const char *port_path, bool primary,
              struct error *err);

/* A port without a network: barrier and release do nothing. */
struct port *null_port_new(void);

#endif
