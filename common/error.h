/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The text of a failure on its way up to the level that reports it.
 *
 * A function that can fail for a reason which a person must read takes a `struct error *` as its last
 * parameter, fills it once with error_set() and returns -1.  The text names the thing, the value and the
 * way out.  Whoever knows the VM and the epoch logs it, once.
 */
#ifndef REMUS_ERROR_H
#define REMUS_ERROR_H

struct error {
    char text[512];
};

/* Always returns -1, so that `return error_set(err, ...)` reads well.  err may be NULL. */
int error_set(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Puts "WHAT: " before a text that a deeper level has set. */
int error_prefix(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
