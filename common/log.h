/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Log lines on stderr, for the journal: "<3>db1: text" when systemd reads them, with a time stamp when a
 * person does.  Thread safe; one write(2) a line.  Never called while a guest is paused (R8).
 */
#ifndef REMUS_LOG_H
#define REMUS_LOG_H

#include <stdbool.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* Lines above `level` are not printed.  Default: info. */
void log_set_level(enum log_level level);

/* "error", "warning", "info", "debug" -> level; -1 for anything else. */
int log_level_parse(const char *name);

/* vm: the VM that the line is about, or NULL. */
void log_at(enum log_level level, const char *vm, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define log_error(vm, ...) log_at(LOG_LEVEL_ERROR, vm, __VA_ARGS__)
#define log_warning(vm, ...) log_at(LOG_LEVEL_WARNING, vm, __VA_ARGS__)
#define log_info(vm, ...) log_at(LOG_LEVEL_INFO, vm, __VA_ARGS__)
#define log_debug(vm, ...) log_at(LOG_LEVEL_DEBUG, vm, __VA_ARGS__)

#endif
