/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Shared by the files of remus-backupd that are one VM's: standby.c, welcome.c, takeover.c, status.c. */
#ifndef REMUS_STANDBY_IMPL_H
#define REMUS_STANDBY_IMPL_H

#include <pthread.h>

#include "common/arbiter.h"
#include "detector.h"
#include "disk/journal.h"
#include "netbuf/port.h"
#include "receiver.h"
#include "standby.h"
#include "vm/vm.h"

struct takeover_times {
    uint64_t suspected, decided, running; /* clock_ns; running 0: none yet */
    uint64_t last_heard, epoch;
};

/* What the status shows; a copy is published at each turn of the thread. */
struct view {
    enum detector_state state;
    uint64_t since, heard;
    char reason[96];
    char primary[64];
    uint64_t epoch, checkpoints, bytes, memory_bytes;
    struct takeover_times takeover;
    bool has_disks, keeps;
    bool ended; /* the guest that was activated here, and no primary has come since */
    struct journal_stats disks;
    char last_error[512];
    uint64_t last_error_at;
};

struct standby {
    const struct vm_config *section;
    struct vm_learned learned;
    const struct vm_config *cfg; /* of learned, which only the thread looks at */
    pthread_t thread;

    /* the thread's own */
    struct detector detector;
    struct arbiter arbiter;
    struct replica *replica;
    struct receiver *receiver;
    struct journal *journal; /* NULL: the VM has no disks */
    struct port *port;
    struct link *link;
    uint64_t session, bytes_before;
    uint64_t spent;        /* the session whose guest was activated here */
    uint64_t next_health;
    const char *greeted;   /* how the primary was welcomed, and no checkpoint has come since */
    unsigned unseen;       /* looks in a row that did not find the guest */
    struct view view;

    pthread_mutex_t lock;
    pthread_cond_t changed; /* CLOCK_MONOTONIC */
    struct view published;
    struct link *offered;
    struct proto_hello offer;
    bool want_takeover, want_discard, stopping;
};

/* --- standby.c: all on the VM's thread --- */

/* An error: logged when it is another one than before, and kept for the status. */
void standby_note(struct standby *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void standby_drop_link(struct standby *s);
void standby_drop_replica(struct standby *s);
/* The checkpoint that could be activated; epoch 0 for none. */
struct receiver_checkpoint standby_held(const struct standby *s);
int standby_open_port(struct standby *s, struct error *err);

/* --- welcome.c --- */

/* Answers the primary that waits in s->offered, if any: WELCOME and s->link, or REFUSE. */
void standby_take_offer(struct standby *s);
void standby_refuse(struct link *link, int code, const struct error *err);
/* Does it make sense at all; does it fit this host's section?  0, or a refusal.  From any thread. */
int standby_check_hello(const struct proto_hello *hello, struct error *err);
int standby_check_machine(const struct vm_config *cfg, const struct proto_hello *hello, struct error *err);
int standby_check_disk_count(const struct vm_config *cfg, const struct proto_hello *hello, struct error *err);
/* MACHINE, when the HELLO has announced one. */
int standby_take_description(struct link *link, const struct proto_hello *hello, struct buffer *into, struct error *err);

/* --- takeover.c --- */

/* Activates the checkpoint that is held; tells the detector how that ended. */
void standby_take_over(struct standby *s);
/* At the daemon's start: did one before it activate the VM? */
void standby_find_active(struct standby *s);
/* That the guest which was activated "runs", or has "ended"; for a daemon that comes after this one. */
void standby_mark_active(struct standby *s, const char *word);

#endif
