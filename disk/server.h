/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The disk server of a VM: nbdkit with plugin.c, one process for all disks of the VM, on both hosts.
 *
 *   RUN_DIR/NAME.nbd         NBD socket; export N is disk N
 *   RUN_DIR/NAME.disk-queue  the write queue (queue.h); locked for as long as the server lives
 *   RUN_DIR/NAME.nbdkit.log  its stderr
 *
 * It outlives the daemon, as the guest does, and ends by itself when the guest's hypervisor lets go of the last disk.
 */
#ifndef REMUS_DISK_SERVER_H
#define REMUS_DISK_SERVER_H

#include <stdbool.h>

#include "common/config.h"
#include "common/error.h"

/* Of the queue.  -1 when run_dir is too long. */
int disk_queue_path(const struct vm_config *cfg, char path[108]);

/* Returns when it answers on its socket.  standby: the guest may not write yet.  One that runs already is an error. */
int disk_server_start(const struct vm_config *cfg, bool standby, struct error *err);

bool disk_server_alive(const struct vm_config *cfg);

/* Ends it and waits until it is gone.  No server is no error. */
int disk_server_stop(const struct vm_config *cfg, struct error *err);

#endif
