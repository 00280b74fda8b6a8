/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A few threads that share out numbered pieces of work, one batch at a time; the caller's thread is one of them. */
#ifndef REMUS_WORKERS_H
#define REMUS_WORKERS_H

struct workers;

/* `threads` in all, at least 1: one means that no thread is started.  NULL with errno. */
struct workers *workers_new(unsigned threads);
void workers_free(struct workers *w);

/* Calls fn(arg, i) for each i below `count`, at the same time as far as there are threads; returns when all have. */
void workers_run(struct workers *w, unsigned count, void (*fn)(void *arg, unsigned i), void *arg);

#endif
