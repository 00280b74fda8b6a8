/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Programs started from a daemon that has threads. */
#ifndef REMUS_QEMU_SPAWN_H
#define REMUS_QEMU_SPAWN_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/*
 * Runs argv detached: in its own session, child of init, so that nobody here has to reap it.  stdin
 * is /dev/null, stdout and stderr go to `log`.  Returns its pid, or -1 with errno of what failed,
 * exec included.
 */
pid_t spawn_detached(char **argv, char **env, int log);

/*
 * Runs argv until its output contains `until` (NULL: until it ends) or timeout_ms are over, then
 * kills it. Returns whether the text came; `out` holds the first octets of the output, NUL-
 * terminated.
 */
bool spawn_until(char *const argv[], const char *until, unsigned timeout_ms, char *out,
                 size_t size);

#endif
