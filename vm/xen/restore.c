/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * remus-xen-restore NAME: has libxl restore a domain from the migration stream on stdin, under the
 * configuration (libxl's JSON) on descriptor 3, as NAME--replica; at the end of the stream it
 * becomes NAME and runs.  "prepared" goes to stdout once its devices are there, "running" at the
 * end.  Whatever fails is said on stderr, and the domain is gone.
 *
 * libxl would attach the devices when the stream has ended, one after the other, each with a script
 * to wait for: most of the time of a takeover.  So it is given a domain without devices, and they
 * are attached while it waits for its stream, which is what xl block-attach and xl network-attach
 * do.  All that libxl keeps of a domain's devices is in xenstore, where the restore leaves it
 * alone, and in the domain's stored configuration, which the restore writes anew at its end: then
 * the devices are put back.
 *
 * A program of its own, because libxl takes hold of signals and children, and because this domain
 * must not outlive a remus-backupd that dies: its stream ends too early then.
 */
#include <libxl.h>
#include <libxl_utils.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xentoollog.h>

#include "xen.h"

#define CONFIG_FD 3
#define STORED_CONFIG "libxl-json" /* userdata of a domain, where libxl keeps its configuration */
#define LOOK_NS 5000000            /* between looks whether the domain is there */

struct restore {
    libxl_ctx *ctx;
    libxl_domain_config config;  /* without devices; the thread's */
    libxl_domain_config devices; /* only its devices count */
    char *bare;                  /* config as JSON */
    uint32_t domid;
    int rc;
    pthread_t thread;
};

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

static int say(const char *word)
{
    return write(STDOUT_FILENO, word, strlen(word)) < 0 ? -1 : 0;
}

static void move_devices(libxl_domain_config *to, libxl_domain_config *from)
{
    to->disks = from->disks;
    to->num_disks = from->num_disks;
    to->nics = from->nics;
    to->num_nics = from->num_nics;
    from->disks = NULL;
    from->nics = NULL;
    from->num_disks = from->num_nics = 0;
}

static int store_config(struct restore *r, const char *text)
{
    return text ? libxl_userdata_store(r->ctx, r->domid, STORED_CONFIG, (const uint8_t *)text,
                                       (int)strlen(text) + 1)
                : ERROR_NOMEM;
}

static int load_config(struct restore *r, libxl_domain_config *config)
{
    uint8_t *text = NULL;
    int len = 0, rc = libxl_userdata_retrieve(r->ctx, r->domid, STORED_CONFIG, &text, &len);

    libxl_domain_config_init(config);
    if (rc == 0)
        rc = text && len > 0 && text[len - 1] == '\0'
                 ? libxl_domain_config_from_json(r->ctx, config, (const char *)text)
                 : ERROR_FAIL;
    free(text);
    return rc;
}

/* Whoever adds a device to a domain expects its configuration to be stored. */
static int attach(struct restore *r)
{
    int rc = store_config(r, r->bare);

    for (int i = 0; rc == 0 && i < r->devices.num_nics; i++)
        rc = libxl_device_nic_add(r->ctx, r->domid, &r->devices.nics[i], NULL);
    for (int i = 0; rc == 0 && i < r->devices.num_disks; i++)
        rc = libxl_device_disk_add(r->ctx, r->domid, &r->devices.disks[i], NULL);
    if (rc)
        return rc;
    libxl_domain_config_dispose(&r->devices);
    return load_config(r, &r->devices);
}

static int put_devices_back(struct restore *r)
{
    libxl_domain_config stored;
    int rc = load_config(r, &stored);
    char *text;

    if (rc)
        return rc;
    move_devices(&stored, &r->devices);
    text = libxl_domain_config_to_json(r->ctx, &stored);
    rc = store_config(r, text);
    free(text);
    return rc;
}

static void *restore(void *arg)
{
    libxl_domain_restore_params params;
    uint32_t domid = INVALID_DOMID;
    struct restore *r = arg;

    libxl_domain_restore_params_init(&params);
    params.stream_version = 2;
    r->rc = libxl_domain_create_restore(r->ctx, &r->config, &domid, STDIN_FILENO, -1, &params, NULL, NULL);
    return NULL;
}

/* The domain is there as soon as libxl has read the stream's header. */
static bool find_domain(struct restore *r, const char *name)
{
    const struct timespec pause = {.tv_nsec = LOOK_NS};

    while (libxl_name_to_domid(r->ctx, name, &r->domid)) {
        if (pthread_tryjoin_np(r->thread, NULL) == 0)
            return false;
        nanosleep(&pause, NULL);
    }
    return true;
}

int main(int argc, char **argv)
{
    xentoollog_logger *log = (xentoollog_logger *)xtl_createlogger_stdiostream(stderr, XTL_WARN, 0);
    char name[CONFIG_NAME_MAX + sizeof(XEN_REPLICA_SUFFIX)];
    struct restore r = {.domid = INVALID_DOMID};
    int rc;

    if (argc != 2 || strlen(argv[1]) > CONFIG_NAME_MAX)
        return fail("started by remus-backupd only", 0);
    snprintf(name, sizeof(name), "%s" XEN_REPLICA_SUFFIX, argv[1]);
    if (!log || (rc = libxl_ctx_alloc(&r.ctx, LIBXL_VERSION, 0, log)))
        return fail("libxl does not start", log ? rc : 0);
    libxl_domain_config_init(&r.config);
    libxl_domain_config_init(&r.devices);
    rc = libxl_domain_config_from_json(r.ctx, &r.config, read_config());
    if (rc)
        return fail("libxl does not understand the primary's configuration", rc);
    free(r.config.c_info.name);
    r.config.c_info.name = strdup(name);
    r.config.c_info.domid = INVALID_DOMID;
    move_devices(&r.devices, &r.config);
    r.bare = libxl_domain_config_to_json(r.ctx, &r.config);

    if (pthread_create(&r.thread, NULL, restore, &r))
        return fail("no thread", 0);
    if (!find_domain(&r, name))
        return fail("the domain could not be restored", r.rc);
    rc = attach(&r);
    if (rc && pthread_tryjoin_np(r.thread, NULL) == 0)
        return fail("the domain could not be restored", r.rc);
    if (rc) {
        libxl_domain_destroy(r.ctx, r.domid, NULL);
        return fail("the replica's devices could not be attached: NAME.restore.log in run-dir says why, and remusctl "
                    "preflight on the backup may", rc);
    }
    if (say("prepared\n") < 0)
        return 1;
    pthread_join(r.thread, NULL);
    if (r.rc)
        return fail("the domain could not be restored", r.rc);
    xen_note(STDERR_FILENO, "restored");
    if ((rc = libxl_domain_rename(r.ctx, r.domid, name, argv[1])) ||
        (xen_note(STDERR_FILENO, "renamed"), rc = libxl_domain_unpause(r.ctx, r.domid, NULL))) {
        libxl_domain_destroy(r.ctx, r.domid, NULL);
        return fail("the restored domain does not run", rc);
    }
    xen_note(STDERR_FILENO, "unpaused");
    rc = say("running\n") < 0;
    if (put_devices_back(&r))
        fail("xl list -l will not show the domain's devices", 0);
    return rc;
}
