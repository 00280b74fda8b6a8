/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One QEMU process and its files, the same on both sides, so that an activated replica is a guest
 * like any other and the next remusd attaches to it.
 *
 *   RUN_DIR/NAME.qmp       QMP socket; the kernel says (SO_PEERCRED) which process listens there
 *   RUN_DIR/NAME.pid       written and locked by QEMU: a second QEMU for this guest does not start
 *   RUN_DIR/NAME.ram-info  written by vm/uffd-preload.c inside QEMU: where it has mapped the RAM
 *   RUN_DIR/NAME.console   the guest's serial console, cut when it has CONSOLE_MAX octets
 *   RUN_DIR/NAME.qemu.log  QEMU's stderr
 *   /dev/shm/remusd-HASH-NAME.ram   the RAM; HASH is of RUN_DIR
 *
 * QEMU runs in a session of its own and outlives the daemon.
 */
#ifndef REMUS_QEMU_PROCESS_H
#define REMUS_QEMU_PROCESS_H

#include "qmp.h"
#include "vm/vm.h"

#define CONSOLE_MAX (16 << 20)

/* Both sides: RAM is not in the stream, the end of a migration is an event. */
#define QEMU_CAPABILITIES                                                                          \
    "{\"capabilities\":[{\"capability\":\"x-ignore-shared\",\"state\":true},"                      \
    "{\"capability\":\"events\",\"state\":true}]}"

struct qemu {
    char qmp_path[108], pid_path[108], info_path[108], console_path[108], log_path[108];
    char ram_path[160];
    char guest_path[108];      /* of the network; see vm_net_paths */
    uint64_t memory_bytes;
    char accelerator[16];
    pid_t pid;
    int pidfd;
    struct qmp *qmp;
    uint64_t guest_address;    /* of the RAM in QEMU, 0 when writes are not tracked there */
    int memory_fd;             /* the RAM file, mapped here at `memory` */
    uint8_t *memory;
    unsigned health_calls;
};

/* Does a QEMU hold the pid file of this guest? */
bool qemu_running(const struct vm_config *cfg);

/*
 * Finds the QEMU of this guest: 1 and *qemu when it runs, 0 when it does not (and what a dead one
 * left is removed), -1 when it runs but cannot be attached to.  qemu_start() makes the RAM and
 * starts one, `incoming` as a standby that waits for machine state.  Both connect QMP and map the
 * RAM; qemu_close() lets go of it all.
 */
int qemu_attach(struct qemu *qemu, const struct vm_config *cfg, struct error *err);
int qemu_start(struct qemu *qemu, const struct vm_config *cfg, const char *accelerator,
               bool incoming, struct error *err);

/* What the running QEMU says of its guest: "running", "paused", "inmigrate", ... */
int qemu_status(struct qemu *qemu, char status[32], struct error *err);

/* Puts the last line of QEMU's stderr behind the text of err. */
int qemu_quote_log(const struct qemu *qemu, struct error *err);

/* Is there room for the RAM and a QEMU?  "not enough memory ..." */
int qemu_check_room(uint64_t memory_bytes, struct error *err);

enum vm_health qemu_health(struct qemu *qemu);

/* Kills the process, waits until it is gone, removes its files.  The logs stay. */
void qemu_kill(struct qemu *qemu);
void qemu_close(struct qemu *qemu);

/* FNV-1a: for names of files that belong to something with a longer name. */
uint64_t qemu_hash(const char *text);

#endif
