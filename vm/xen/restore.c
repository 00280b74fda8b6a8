/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * remus-xen-restore NAME: has libxl restore a domain from the migration stream on stdin, under the
 * configuration (libxl's JSON) on descriptor 3, as NAME--replica; at the end of the stream it
 * becomes NAME and runs, and "running" goes to stdout.  Whatever fails is said on stderr, and the
 * domain is gone.
 *
 * A program of its own, because libxl takes hold of signals and children, and because this domain
 * must not outlive a remus-backupd that dies: its stream ends too early then.
 */
#include <libxl.h>
#include <libxl_utils.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xentoollog.h>

#include "xen.h"

#define CONFIG_FD 3

static char *read_config(void)
{
    static char text[VM_DESCRIPTION_MAX + 1];
    size_t len = 0;
    ssize_t n;

    while (len < sizeof(text) - 1 && (n = read(CONFIG_FD, text + len, sizeof(text) - 1 - len)) > 0)
        len += (size_t)n;
    text[len] = '\0';
    return text;
}

static int fail(const char *what, int rc)
{
    fprintf(stderr, "%s: %s (libxl %d)\n", XEN_RESTORE_PROGRAM, what, rc);
    return 1;
}

int main(int argc, char **argv)
{
    xentoollog_logger *log = (xentoollog_logger *)xtl_createlogger_stdiostream(stderr, XTL_WARN, 0);
    char name[CONFIG_NAME_MAX + sizeof(XEN_REPLICA_SUFFIX)];
    libxl_domain_restore_params params;
    uint32_t domid = INVALID_DOMID;
    libxl_domain_config config;
    libxl_ctx *ctx = NULL;
    int rc;

    if (argc != 2 || strlen(argv[1]) > CONFIG_NAME_MAX)
        return fail("started by remus-backupd only", 0);
    snprintf(name, sizeof(name), "%s" XEN_REPLICA_SUFFIX, argv[1]);
    if (!log || (rc = libxl_ctx_alloc(&ctx, LIBXL_VERSION, 0, log)))
        return fail("libxl does not start", log ? rc : 0);
    libxl_domain_config_init(&config);
    rc = libxl_domain_config_from_json(ctx, &config, read_config());
    if (rc)
        return fail("libxl does not understand the primary's configuration", rc);
    free(config.c_info.name);
    config.c_info.name = strdup(name);
    config.c_info.domid = INVALID_DOMID;

    libxl_domain_restore_params_init(&params);
    params.stream_version = 2;
    rc = libxl_domain_create_restore(ctx, &config, &domid, STDIN_FILENO, -1, &params, NULL, NULL);
    if (rc)
        return fail("the domain could not be restored", rc);
    if ((rc = libxl_domain_rename(ctx, domid, name, argv[1])) ||
        (rc = libxl_domain_unpause(ctx, domid, NULL))) {
        libxl_domain_destroy(ctx, domid, NULL);
        return fail("the restored domain does not run", rc);
    }
    if (write(STDOUT_FILENO, "running\n", strlen("running\n")) < 0)
        return 1;
    libxl_domain_config_dispose(&config);
    libxl_ctx_free(ctx);
    return 0;
}
