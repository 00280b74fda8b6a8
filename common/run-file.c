/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "run-file.h"

int run_path(const struct vm_config *cfg, const char *suffix, char *path, size_t size)
{
    int n = snprintf(path, size, "%s/%s%s", cfg->run_dir, cfg->name, suffix);

    if (n > 0 && (size_t)n < size)
        return 0;
    path[0] = '\0';
    errno = ENAMETOOLONG;
    return -1;
}

int run_file_write(const struct vm_config *cfg, const char *suffix, const void *data, size_t len, struct error *err)
{
    char path[PATH_MAX], tmp[PATH_MAX + 4];
    FILE *f;
    bool ok;

    if (run_path(cfg, suffix, path, sizeof(path)) < 0)
        return error_set(err, "run-dir = \"%.80s...\": %s", cfg->run_dir, strerror(errno));
    snprintf(tmp, sizeof(tmp), "%s.new", path);
    f = fopen(tmp, "we");
    ok = f && fwrite(data, 1, len, f) == len;
    if ((f && fclose(f) != 0) || !ok || rename(tmp, path) < 0)
        return error_set(err, "%s: %s", path, strerror(errno));
    return 0;
}

void run_file_remove(const struct vm_config *cfg, const char *suffix)
{
    char path[PATH_MAX];

    if (run_path(cfg, suffix, path, sizeof(path)) == 0)
        unlink(path);
}

int run_log_quote(int fd, struct error *err)
{
    struct error what = *err;
    char text[2048], *line;
    off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    off_t from = end > (off_t)sizeof(text) - 1 ? end - (off_t)sizeof(text) + 1 : 0;
    ssize_t n = end > 0 ? pread(fd, text, sizeof(text) - 1, from) : 0;

    while (n > 0 && text[n - 1] == '\n')
        n--;
    if (n <= 0)
        return -1;
    text[n] = '\0';
    line = strrchr(text, '\n');
    return error_set(err, "%.180s: %.300s", what.text, line ? line + 1 : text);
}
