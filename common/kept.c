/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "kept.h"
#include "log.h"

#define SECTION "vm %s {\n%s}\n"

static int path_of(const struct config *cfg, const char *daemon, const char *name, char path[PATH_MAX], struct error *err)
{
    int n = snprintf(path, PATH_MAX, "%s/%s.%s.conf", cfg->state_dir, name, daemon);

    return n > 0 && n < PATH_MAX ? 0 : error_set(err, "state-dir = \"%.80s...\" is too long", cfg->state_dir);
}

static int sync_dir(const struct config *cfg)
{
    cleanup_close int fd = open(cfg->state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    return fd < 0 ? -1 : fsync(fd);
}

static int write_file(const struct config *cfg, const char *path, const char *name, const char *keys, struct error *err)
{
    char tmp[PATH_MAX + 4];
    FILE *f;
    bool ok;

    if (mkdir(cfg->state_dir, 0700) < 0 && errno != EEXIST)
        return error_set(err, "%s (state-dir): %s", cfg->state_dir, strerror(errno));
    snprintf(tmp, sizeof(tmp), "%s.new", path);
    f = fopen(tmp, "we");
    ok = f && fprintf(f, SECTION, name, keys) > 0 && fflush(f) == 0 && fsync(fileno(f)) == 0;
    if ((f && fclose(f) != 0) || !ok || rename(tmp, path) < 0 || sync_dir(cfg) < 0)
        return error_set(err, "%s: %s", path, strerror(errno));
    return 0;
}

struct vm_config *kept_draft(const struct config *cfg, const char *name, const char *keys, struct error *err)
{
    char text[KEPT_KEYS_MAX + CONFIG_NAME_MAX + 16];

    if (!config_good_name(name)) {
        error_set(err, "\"%.80s\" is not the name of a VM", name);
        return NULL;
    }
    snprintf(text, sizeof(text), SECTION, name, keys);
    return config_load_section(cfg, "a section that would be made", text, err);
}

struct vm_config *kept_make(const struct config *cfg, const char *daemon, const char *name, const char *keys,
                            struct error *err)
{
    struct vm_config *vm = NULL;
    char path[PATH_MAX];

    if (!config_good_name(name)) {
        error_set(err, "\"%.80s\" is not the name of a VM", name);
        return NULL;
    }
    if (path_of(cfg, daemon, name, path, err) < 0)
        return NULL;
    if (write_file(cfg, path, name, keys, err) == 0)
        vm = config_load_section(cfg, path, NULL, err);
    if (!vm)
        unlink(path);
    return vm;
}

int kept_each(const struct config *cfg, const char *daemon, int (*fn)(void *arg, struct vm_config *vm, struct error *err),
              void *arg, struct error *err)
{
    char path[PATH_MAX], suffix[64], name[CONFIG_NAME_MAX + 1];
    size_t end = (size_t)snprintf(suffix, sizeof(suffix), ".%s.conf", daemon);
    DIR *dir = opendir(cfg->state_dir);
    struct dirent *entry;
    int rc = 0;

    if (!dir)
        return errno == ENOENT ? 0 : error_set(err, "%s (state-dir): %s", cfg->state_dir, strerror(errno));
    while (rc == 0 && (entry = readdir(dir))) {
        size_t len = strlen(entry->d_name);
        struct vm_config *vm;

        if (len <= end || len - end > CONFIG_NAME_MAX || strcmp(entry->d_name + len - end, suffix) != 0)
            continue;
        snprintf(name, sizeof(name), "%.*s", (int)(len - end), entry->d_name);
        if (config_vm(cfg, name)) {
            log_warning(name, "%s/%s is not read: remusd.conf has a section for it", cfg->state_dir, entry->d_name);
            continue;
        }
        rc = path_of(cfg, daemon, name, path, err);
        vm = rc == 0 ? config_load_section(cfg, path, NULL, err) : NULL;
        if (vm && strcmp(vm->name, name) != 0) {
            error_set(err, "%s: is of a VM \"%s\"", path, vm->name);
            config_free_section(vm);
            vm = NULL;
        }
        rc = vm ? fn(arg, vm, err) : -1;
    }
    closedir(dir);
    return rc;
}

int kept_forget(const struct config *cfg, const char *daemon, const char *name, struct error *err)
{
    char path[PATH_MAX];

    if (path_of(cfg, daemon, name, path, err) < 0)
        return -1;
    if ((unlink(path) < 0 && errno != ENOENT) || sync_dir(cfg) < 0)
        return error_set(err, "%s: %s", path, strerror(errno));
    return 0;
}
