/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Shared by the files that are the protection of one VM: protection.c, guest.c, handshake.c, status.c. */
#ifndef REMUS_PROTECTION_IMPL_H
#define REMUS_PROTECTION_IMPL_H

#include "common/arbiter.h"
#include "engine.h"
#include "lifecycle.h"
#include "protection.h"

struct protection {
    const struct vm_config *section;
    struct vm_learned learned;
    const struct vm_config *cfg; /* of learned; what may change in it does so under engine.lock */
    pthread_t thread;
    struct vm *vm;
    struct port *port;
    uint64_t session;  /* this run of the guest, see HELLO */
    bool continuous;   /* every page that changed since the backup's checkpoint is known */
    struct arbiter arbiter;
    struct engine engine;
    uint64_t committed; /* what the backup held when the link came up */
    bool synchronised; /* it lacks nothing that is not in the next checkpoint */
    bool handing_over; /* the guest is suspended, HANDOVER may be on its way */
    bool held_before;  /* what the guest sent was held before this link */
    bool again;        /* a guest that has shut down is wanted again, or there */
    uint64_t look_at;  /* when to look for one */

    /* under engine.lock */
    bool ready;        /* vm, port and engine are there */
    bool can_verify;   /* the backup compares disks */
    struct lifecycle lc;
    enum protection_request request;
    char last_error[512];
    uint64_t last_error_at;
};

#define EVENT(p, call)                                                                             \
    do {                                                                                           \
        pthread_mutex_lock(&(p)->engine.lock);                                                     \
        call;                                                                                      \
        pthread_mutex_unlock(&(p)->engine.lock);                                                   \
    } while (0)

/* An error: logged when it is another one than before, and kept for the status. */
void protection_note(struct protection *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* --- guest.c --- */

/* Starts or finds the guest, its disks and its port, and begins the lifecycle. */
int protection_open_guest(struct protection *p, struct error *err);
/* After it has shut down, so that another one of that name may be opened. */
void protection_close_guest(struct protection *p);
/* RUN_DIR/NAME.guest: "held", "free" or "handed"; see there. */
int protection_save_identity(const struct protection *p, const char *word, struct error *err);
/* R5: what the guest on the backup writes from now on is not in the images here. */
void protection_disown_disks(struct protection *p);

/* --- handshake.c --- */

enum answer {
    ANSWER_WELCOME,
    ANSWER_REFUSED, /* something must be mended */
    ANSWER_TAKEN,   /* another guest of this VM is, or may be, or waits to be somewhere else */
    ANSWER_ACTIVE,  /* the backup runs it */
    ANSWER_FAILED,  /* no answer that means anything */
};

/* Connects and says HELLO.  *link is NULL unless the answer is a welcome. */
enum answer protection_dial(struct protection *p, uint32_t flags, struct link **link, struct proto_welcome *welcome,
                            struct error *err);

#endif
