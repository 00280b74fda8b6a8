/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "qemu-guest.h"

/* Source of the format: Linux Documentation/driver-api/early-userspace/buffer-format.rst. */
static void cpio_entry(FILE *out, const char *name, unsigned mode, unsigned major, unsigned minor,
                       const char *data, size_t len)
{
    static const char zeros[4];
    size_t name_len = strlen(name) + 1;

    fprintf(out, "070701%08X%08X%08X%08X%08X%08X%08zX%08X%08X%08X%08X%08zX%08X", 0u, mode, 0u, 0u,
            1u, 0u, len, 0u, 0u, major, minor, name_len, 0u);
    fwrite(name, 1, name_len, out);
    fwrite(zeros, 1, -(110 + name_len) % 4, out);
    fwrite(data, 1, len, out);
    fwrite(zeros, 1, -len % 4, out);
}

int guest_write_initramfs(const char *path, const char *program)
{
    FILE *in = fopen(program, "r"), *out = fopen(path, "w");
    char *data = malloc(8 << 20);
    size_t len = in && data ? fread(data, 1, 8 << 20, in) : 0;

    if (len && out) {
        cpio_entry(out, "dev", 0040755, 0, 0, "", 0);
        cpio_entry(out, "dev/console", 0020600, 5, 1, "", 0);
        cpio_entry(out, "init", 0100755, 0, 0, data, len);
        cpio_entry(out, "TRAILER!!!", 0, 0, 0, "", 0);
    }
    free(data);
    if (in)
        fclose(in);
    return out && fclose(out) == 0 && len ? 0 : -1;
}

struct vm_config guest_config(const char *run_dir, const char *initrd, const char *append)
{
    static char *no_args[] = {NULL};
    const char *kernel = getenv("REMUS_TEST_KERNEL");
    struct vm_config cfg = {
        .run_dir = (char *)run_dir,
        .platform = (char *)"qemu", .memory_bytes = 128 << 20, .cpus = 1,
        .tracker = (char *)"auto", .tap = (char *)"", .mac = (char *)"52:54:00:00:00:09",
        .qemu = (char *)"qemu-system-x86_64", .accelerator = (char *)"tcg",
        .kernel = (char *)(kernel ? kernel : ""), .initrd = (char *)initrd,
        .append = (char *)append,
        .machine_state = (char *)"devices", .qemu_args = no_args,
    };

    snprintf(cfg.name, sizeof(cfg.name), "guest-%d", (int)getpid());
    mkdir(run_dir, 0700);
    return cfg;
}

int guest_count(const struct vm_config *cfg)
{
    char path[256], line[256];
    int count = -1, n;
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s.console", cfg->run_dir, cfg->name);
    f = fopen(path, "r");
    while (f && fgets(line, sizeof(line), f)) {
        if (strstr(line, "CORRUPT"))
            count = -2;
        else if (count != -2 && strchr(line, '\n') && sscanf(line, "C %d", &n) == 1)
            count = n;
    }
    if (f)
        fclose(f);
    return count;
}

int guest_wait_count(const struct vm_config *cfg, int count)
{
    int n = -1;

    for (int i = 0; i < 600; i++) {
        n = guest_count(cfg);
        if (n >= count || n == -2)
            break;
        usleep(50000);
    }
    return n;
}
