/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The files of a VM in run-dir: RUN_DIR/NAME and a suffix such as ".guest".  They outlive the daemons, not the host. */
#ifndef REMUS_RUN_FILE_H
#define REMUS_RUN_FILE_H

#include <stddef.h>

#include "common/config.h"
#include "common/error.h"

#define RUN_SOCKET_MAX 108 /* octets of a path that a unix socket can have */

/* -1, and an empty path, when it does not fit. */
int run_path(const struct vm_config *cfg, const char *suffix, char *path, size_t size);

/* The old content or the new one is there, whatever ends the daemon meanwhile. */
int run_file_write(const struct vm_config *cfg, const char *suffix, const void *data, size_t len, struct error *err);

void run_file_remove(const struct vm_config *cfg, const char *suffix);

/* Puts the last line of fd, the log of a program that failed, behind err.  Returns -1, as error_set does. */
int run_log_quote(int fd, struct error *err);

#endif
