/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The fake platform: a guest in a process of its own (remus-fake-guest) that needs no hypervisor, works at
 * native speed and checks itself.  For unit tests, fault tests and measurements of the memory path.
 *
 * It lives in two memfds of that process: RAM (descriptor 3) and a control page (descriptor 4), which the daemon
 * opens through /proc/PID/fd.  So nothing is left behind when it ends, and a restarted daemon finds it by
 * RUN_DIR/NAME.fake.pid.  A guest whose pid file is gone or names another process ends by itself.  SIGTERM is its
 * power button.
 *
 * The work, the memory's layout and the self-check: model.h.  Before a replica runs it checks all of its memory
 * against the machine state, and activate() fails with what it found.
 */
#ifndef REMUS_FAKE_H
#define REMUS_FAKE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "vm/vm.h"

extern const struct vm_ops fake_vm_ops;
extern const struct replica_ops fake_replica_ops;

/*
 * Frames.  Ethernet II, EtherType 0x88b5 (IEEE local experimental), then in network byte order:
 *
 *     octets  4  magic 0x524d464b ("RMFK")
 *             4  kind
 *             8  number    beacon: 1, 2, 3, ... without a gap, part of the guest's state
 *                          request: the client's choice; reply: that of the request
 *             8  seq       pieces of work that the guest had done when it sent this
 *             8  requests  requests that it had answered, this one included
 *             8  check     FNV-1a, 64 bits, of the 32 octets from the magic on
 *
 * and six zeros to fill the smallest Ethernet frame.  A request is a small transaction: the guest counts it in its
 * memory before it replies, to the sender's address.  Beacons go to everyone, cfg->fake_frames a second.
 */
#define FAKE_ETHERTYPE 0x88b5
#define FAKE_FRAME_LEN 60
#define FAKE_FRAME_MAGIC 0x524d464bu

enum fake_frame_kind { FAKE_BEACON = 1, FAKE_REQUEST = 2, FAKE_REPLY = 3 };

struct fake_frame {
    uint8_t to[6], from[6];
    enum fake_frame_kind kind;
    uint64_t number, seq, requests;
};

void fake_frame_encode(const struct fake_frame *f, uint8_t out[FAKE_FRAME_LEN]);
/* False for anything that is not a whole frame of ours. */
bool fake_frame_decode(struct fake_frame *f, const uint8_t *data, size_t len);

/* For tests and benches: how the guest of this name fares, whoever started it. */
struct fake_guest_stats {
    pid_t pid;
    uint64_t seq;                   /* pieces of work, over all its lives */
    uint64_t writes;                /* pages written in this process */
    uint64_t bad;                   /* found different from what they must be */
    uint64_t frames, requests;      /* over all its lives */
    uint64_t verified;              /* pages checked before this process began to run; 0 = first start */
};

int fake_guest_stats(const char *run_dir, const char *name, struct fake_guest_stats *st,
                     struct error *err);

/* Changes the dirty rate of a guest (pages a second) while it runs. */
int fake_guest_set_rate(const char *run_dir, const char *name, unsigned rate, struct error *err);

#endif
