/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The checkpoint path of one VM on the primary:
 *
 *     epoch.c    suspend, barrier, state, scan, copy into staging, resume      the VM's own thread
 *     ship.c     staging -> page codec -> link                                 ship thread, one a link
 *     acks.c     acknowledgements from the backup -> release of the packets     receive thread, one a link
 *
 * protection.c owns the engine, connects, and decides what to do when the link is lost.
 */
#ifndef REMUS_ENGINE_H
#define REMUS_ENGINE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/buffer.h"
#include "common/link.h"
#include "common/samples.h"
#include "compress/pagecodec.h"
#include "disk/disk.h"
#include "netbuf/port.h"
#include "pacer.h"
#include "staging.h"
#include "vm/vm.h"
#include "workers.h"

/* Phases of the pause, in order (R8). */
enum phase {
    PHASE_SUSPEND,
    PHASE_BARRIER,
    PHASE_STATE,
    PHASE_SCAN,
    PHASE_COPY,
    PHASE_RESUME,
    PHASE_TOTAL,
    PHASES
};
extern const char *const phase_names[PHASES];

/* A checkpoint from its suspend to its acknowledgement. */
struct checkpoint {
    uint64_t epoch;
    uint64_t suspended_at;
    struct bitmap pages;  /* which pages it carries: dirty again should it never be acknowledged */
    struct buffer state, net;
};

/* Why a link ended. */
enum link_end {
    LINK_UP,
    LINK_LOST,        /* closed, silent or broken */
    LINK_GOODBYE,     /* the backup stopped cleanly */
    LINK_PEER_ACTIVE, /* the backup runs the VM (R7) */
};

struct engine_stats {
    uint64_t checkpoints;           /* acknowledged, all time */
    uint64_t raw[2], sent[2];       /* octets of pages before coding, octets on the wire: [0] of checkpoints,
                                       [1] of synchronising */
    struct page_stats codec;
    uint64_t block_pages;           /* that went as blocks of disks */
    uint64_t encode_ns;
    struct samples pause[PHASES];   /* ns */
    struct samples dirty;           /* pages */
    struct samples ack_lag;         /* ns from suspend to acknowledgement */
};

struct engine {
    const struct vm_config *cfg;
    struct vm *vm;
    struct port *port;
    struct disk *disk;              /* NULL: the VM has none */
    struct staging *staging;
    struct page_encoder *encoder;
    struct workers *workers;        /* encode blocks at the same time */
    uint8_t *blocks;                /* room for one encoded block a worker */

    /* epoch thread only */
    struct bitmap dirty;            /* pages that the next checkpoint must carry */
    struct bitmap touched;          /* pages that ever were dirty: all others are zero, here and in a new replica */
    bool holding;                   /* the port holds the guest's output */
    pthread_t ship_thread, receive_thread;

    pthread_mutex_t lock;
    pthread_cond_t changed;         /* CLOCK_MONOTONIC: acks, the link's end, requests */
    struct pacer pacer;
    struct checkpoint inflight[PACER_IN_FLIGHT]; /* epoch N is in [N % PACER_IN_FLIGHT] */
    struct link *link;              /* NULL without one */
    uint64_t taken_before;          /* the last epoch taken before this link */
    uint64_t disk_base[DISKS_MAX];  /* what the backup has of each disk; set before engine_attach */
    bool disk_direct;               /* it holds no checkpoint: what is synchronised goes to its images at once */
    bool send_blocks;               /* it takes BLOCKS; set before engine_attach */
    uint64_t disk_acked;            /* generation of the last acknowledged checkpoint */
    uint64_t attached_at, encode_before; /* when it began, and stats.encode_ns then */
    enum link_end link_end;
    struct error link_error;
    uint64_t sync_sent, sync_total; /* pages of the synchronisation */
    unsigned sync_round;            /* 0: not synchronising */
    uint64_t sync_began;
    struct engine_stats stats;
};

/* cfg must outlive the engine.  The lock works from here on. */
void engine_init(struct engine *e, const struct vm_config *cfg);

/* Allocates all that the epochs will need; vm and port are borrowed. */
int engine_open(struct engine *e, struct vm *vm, struct port *port, struct error *err);
/* Gives back what engine_open took, and the disks; engine_open may follow. */
void engine_close(struct engine *e);
void engine_free(struct engine *e);

/*
 * Starts to ship over a link whose handshake is done; owns it until engine_detach.
 * committed: the checkpoint of this session that the backup holds, 0 for none.  With none, all that was ever
 * written becomes dirty.
 */
int engine_attach(struct engine *e, struct link *link, uint64_t committed, struct error *err);

/* Ends the link and its threads.  What was in flight becomes dirty again. */
void engine_detach(struct engine *e);

/* Live pre-copy: ships memory in rounds while the guest runs, until a pause can be short.  -1 when the link ended. */
int engine_precopy(struct engine *e, struct error *err);

/*
 * Takes one checkpoint; the caller has waited for pacer_due.  With resume = false the guest stays
 * suspended afterwards (switchover).  On failure the guest runs, and the pages stay dirty.
 */
int engine_checkpoint(struct engine *e, bool resume, struct error *err);

/* Ends the link for a reason; from any thread.  The first reason counts. */
void engine_end_link(struct engine *e, enum link_end end, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Waits until somebody has, for a while. */
void engine_await_end(struct engine *e, uint64_t ns);

/* LINK_UP as long as the link lives; otherwise why not, the words in why (may be NULL). */
enum link_end engine_link_state(struct engine *e, struct error *why);

/* Waits on `changed` until `when` at the latest; lock is held. */
void engine_wait(struct engine *e, uint64_t when);

/* Threads of a link. */
void *engine_ship(void *engine);
void *engine_receive(void *engine);

#endif
