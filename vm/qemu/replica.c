/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "accel.h"
#include "common/cleanup.h"
#include "machine.h"
#include "process.h"
#include "qemu.h"
#include "vm/preflight.h"

struct qemu_replica {
    struct replica replica;
    struct qemu qemu;
    bool active;
};

static struct qemu_replica *of(struct replica *r)
{
    return (struct qemu_replica *)r;
}

/* The value of `key` in "key=value key=value": its length, or -1. */
static int profile_value(const char *profile, const char *key, size_t key_len, const char **value)
{
    for (const char *p = profile; *p; p += strspn(p, " ")) {
        size_t len = strcspn(p, " ");

        if (len > key_len && p[key_len] == '=' && strncmp(p, key, key_len) == 0) {
            *value = p + key_len + 1;
            return (int)(len - key_len - 1);
        }
        p += len;
    }
    return -1;
}

/* Names every difference with both values. */
static int compare_profiles(const char *primary, const char *here, struct error *err)
{
    char text[400] = "";
    size_t n = 0;

    if (strcmp(primary, here) == 0)
        return 0;
    for (const char *p = here; *p && n < sizeof(text); p += strspn(p, " ")) {
        size_t len = strcspn(p, " "), key = strcspn(p, "=");
        const char *theirs;
        int their_len = profile_value(primary, p, key, &theirs);

        if (their_len < 0 || (size_t)their_len != len - key - 1 ||
            strncmp(theirs, p + key + 1, (size_t)their_len) != 0)
            n += (size_t)snprintf(text + n, sizeof(text) - n, "%s%.*s is %.*s there and %.*s here",
                                  n ? ", " : "", (int)key, p, their_len < 0 ? 7 : their_len,
                                  their_len < 0 ? "unknown" : theirs, (int)(len - key - 1),
                                  p + key + 1);
        p += len;
    }
    return error_set(err, "this host cannot run the primary's guest: %s",
                     n ? text : "the primary's profile has keys that are unknown here");
}

/* auto follows the primary: machine state of one accelerator does not run under another. */
static const char *choose_accelerator(const struct vm_config *cfg, const char *profile)
{
    const char *value;
    int len = profile_value(profile, "accelerator", strlen("accelerator"), &value);

    if (strcmp(cfg->accelerator, "auto") == 0 && len == 3 && strncmp(value, "tcg", 3) == 0)
        return "tcg";
    return qemu_accelerator(cfg);
}

/* A standby that a dead daemon left behind is in nobody's way; a guest that runs here is. */
static int check_unused(struct qemu *qemu, const struct vm_config *cfg, struct error *err)
{
    int running = qemu_attach(qemu, cfg, err);
    char status[32];

    if (running <= 0)
        return running;
    if (qemu_status(qemu, status, err) < 0) {
        qemu_close(qemu);
        return -1;
    }
    if (strcmp(status, "inmigrate") == 0) {
        qemu_kill(qemu);
        return 0;
    }
    qemu_close(qemu);
    return error_set(err, "guest \"%s\" itself runs on this host (QEMU pid %d, %s): it cannot hold"
                     " its own replica", cfg->name, (int)qemu->pid, status);
}

static int check_host(const struct vm_config *cfg, uint64_t pages, const char *profile,
                      const char **accelerator, struct error *err)
{
    char here[VM_PROFILE_MAX + 1], version[32];

    if (qemu_check_config(cfg, err) < 0 || qemu_binary_version(cfg, version, err) < 0)
        return -1;
    if (pages != cfg->memory_bytes / PAGE_SIZE)
        return error_set(err, "the primary's guest has %llu octets of memory, memory = %llu here",
                         (unsigned long long)pages * PAGE_SIZE,
                         (unsigned long long)cfg->memory_bytes);
    *accelerator = choose_accelerator(cfg, profile);
    if (qemu_profile(cfg, version, *accelerator, here, err) < 0 ||
        compare_profiles(profile, here, err) < 0)
        return -1;
    return 0;
}

static void replica_check(const struct vm_config *cfg, uint64_t pages, const char *profile,
                          const struct buffer *description, bool here, json_t *lacks)
{
    const char *accelerator;
    struct error err;

    (void)description;
    if (check_host(cfg, pages, profile, &accelerator, &err) < 0)
        preflight_lacks(lacks, "make the hosts and the sections equal", "%s", err.text);
    if (!here && qemu_check_room(cfg->memory_bytes, &err) < 0)
        preflight_lacks(lacks, "make room, or end something", "%s", err.text);
}

static int replica_open(struct replica **r, const struct vm_config *cfg, uint64_t pages,
                        const char *profile, const struct buffer *description, struct error *err)
{
    const char *accelerator;
    struct qemu_replica *q;

    (void)description;
    if (check_host(cfg, pages, profile, &accelerator, err) < 0)
        return -1;
    q = calloc(1, sizeof(*q));
    if (!q)
        return error_set(err, "out of memory");
    if (check_unused(&q->qemu, cfg, err) < 0 || qemu_check_room(cfg->memory_bytes, err) < 0 ||
        qemu_start(&q->qemu, cfg, accelerator, true, err) < 0) {
        free(q);
        return -1;
    }
    if (qmp_execute(q->qemu.qmp, "migrate-set-capabilities", QEMU_CAPABILITIES, NULL, err) < 0) {
        qemu_kill(&q->qemu);
        free(q);
        return -1;
    }
    q->replica = (struct replica){
        .ops = &qemu_replica_ops, .memory = q->qemu.memory, .pages = pages,
    };
    *r = &q->replica;
    return 0;
}

/* Hands QEMU the state in a memory file and waits until it is in. */
static int load(struct qemu *qemu, const uint8_t *state, size_t len, struct error *err)
{
    cleanup_close int fd = memfd_create("remus-machine-state", MFD_CLOEXEC);
    struct qmp_events *events = qmp_events(qemu->qmp);
    uint64_t id;

    if (fd < 0 || write(fd, state, len) != (ssize_t)len || lseek(fd, 0, SEEK_SET) < 0)
        return error_set(err, "memory file for machine state: %s", strerror(errno));
    events->migration = QMP_MIGRATION_NONE;
    if (qmp_send(qemu->qmp, "getfd", "{\"fdname\":\"state\"}", fd, &id, err) < 0 ||
        qmp_wait(qemu->qmp, id, NULL, err) < 0 ||
        qmp_execute(qemu->qmp, "migrate-incoming", "{\"uri\":\"fd:state\"}", NULL, err) < 0 ||
        qmp_wait_migration(qemu->qmp, err) < 0)
        return -1;
    if (events->migration != QMP_MIGRATION_DONE)
        return error_set(err, "QEMU cannot load the machine state");
    return 0;
}

static int replica_activate(struct replica *r, const uint8_t *state, size_t len, struct error *err)
{
    struct qemu_replica *q = of(r);

    if (load(&q->qemu, state, len, err) < 0 ||
        qmp_execute(q->qemu.qmp, "cont", NULL, NULL, err) < 0)
        return qemu_quote_log(&q->qemu, err);
    q->active = true;
    return 0;
}

static enum vm_health replica_health(struct replica *r)
{
    return qemu_health(&of(r)->qemu);
}

static void replica_close(struct replica *r)
{
    struct qemu_replica *q = of(r);

    if (q->active)
        qemu_close(&q->qemu);
    else
        qemu_kill(&q->qemu);
    free(q);
}

const struct replica_ops qemu_replica_ops = {
    .name = "qemu",
    .open = replica_open,
    .check = replica_check,
    .activate = replica_activate,
    .health = replica_health,
    .close = replica_close,
};
