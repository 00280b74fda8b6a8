/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "log.h"

static const char *const names[] = {"error", "warning", "info", "debug"};
static const int syslog_level[] = {3, 4, 6, 7};
static _Atomic int max_level = LOG_LEVEL_INFO;

void log_set_level(enum log_level level)
{
    max_level = (int)level;
}

int log_level_parse(const char *name)
{
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (strcmp(name, names[i]) == 0)
            return (int)i;
    return -1;
}

void log_at(enum log_level level, const char *vm, const char *fmt, ...)
{
    char line[1024];
    int n;
    va_list ap;

    if ((int)level > max_level)
        return;
    if (getenv("JOURNAL_STREAM")) {
        n = snprintf(line, sizeof(line), "<%d>", syslog_level[level]);
    } else {
        struct timespec ts;
        struct tm tm;
        clock_gettime(CLOCK_REALTIME, &ts);
        localtime_r(&ts.tv_sec, &tm);
        n = snprintf(line, sizeof(line), "%02d:%02d:%02d.%03ld %s ", tm.tm_hour, tm.tm_min,
                     tm.tm_sec, ts.tv_nsec / 1000000, names[level]);
    }
    n += snprintf(line + n, sizeof(line) - (size_t)n, "%.64s%s", vm ? vm : "", vm ? ": " : "");
    va_start(ap, fmt);
    n += vsnprintf(line + n, sizeof(line) - (size_t)n, fmt, ap);
    va_end(ap);
    if (n > (int)sizeof(line) - 2)
        n = (int)sizeof(line) - 2;
    line[n++] = '\n';
    if (write(STDERR_FILENO, line, (size_t)n) < 0)
        return; /* nowhere left to say it */
}
