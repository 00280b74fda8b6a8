/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "accel.h"
#include "machine.h"
#include "process.h"
#include "qemu.h"
#include "vm/tracker.h"

#define SETTLE_MS 5000 /* for a migration that a dead daemon left behind */

struct qemu_vm {
    struct vm vm;
    struct qemu qemu;
    struct tracker *tracker;
    bool full;              /* machine-state = full */
    int state_fd;           /* memory file with the machine state */
    int write_fd;           /* QEMU's way into it; the offset of this descriptor is QEMU's too */
    char save_args[96];     /* of xen-save-devices-state */
    uint64_t save_id;       /* the command under way, 0 = none */
};

static struct qemu_vm *of(struct vm *vm)
{
    return (struct qemu_vm *)vm;
}

/*
 * A daemon that died in mid-epoch left the guest stopped.  A standby is not ours: it is a replica.
 */
static int set_running(struct qemu_vm *v, struct error *err)
{
    char status[32];

    for (int waited = 0;; waited += 10) {
        if (qemu_status(&v->qemu, status, err) < 0)
            return -1;
        if (strcmp(status, "finish-migrate") != 0)
            break;
        if (waited >= SETTLE_MS)
            return error_set(err, "QEMU does not end the migration that it is in");
        if (qmp_execute(v->qemu.qmp, "migrate_cancel", NULL, NULL, err) < 0)
            return -1;
        usleep(10000);
    }
    if (strcmp(status, "inmigrate") == 0)
        return error_set(err, "this host holds a replica of the guest that waits for its takeover:"
                         " use remusctl takeover, or end remus-backupd");
    if (strcmp(status, "running") == 0)
        return 0;
    return qmp_execute(v->qemu.qmp, "cont", NULL, NULL, err);
}

/*
 * Opened a second time, because a descriptor set answers only to the access mode asked for:
 * writing.
 */
static int make_state_file(struct qemu_vm *v, struct error *err)
{
    char path[64];

    v->state_fd = memfd_create("remus-machine-state", MFD_CLOEXEC);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", v->state_fd);
    if (v->state_fd >= 0)
        v->write_fd = open(path, O_WRONLY | O_CLOEXEC);
    if (v->write_fd < 0)
        return error_set(err, "memory file for machine state: %s", strerror(errno));
    return 0;
}

/* machine-state = devices: QEMU keeps the descriptor and writes to it again and again. */
static int share_state_file(struct qemu_vm *v, struct error *err)
{
    json_t *value;
    uint64_t id;
    int set;

    if (qmp_send(v->qemu.qmp, "add-fd", "{}", v->write_fd, &id, err) < 0 ||
        qmp_wait(v->qemu.qmp, id, &value, err) < 0)
        return error_prefix(err, "add-fd");
    set = (int)json_integer_value(json_object_get(value, "fdset-id"));
    json_decref(value);
    snprintf(v->save_args, sizeof(v->save_args), "{\"filename\":\"/dev/fdset/%d\",\"live\":false}",
             set);
    return 0;
}

static int track(struct qemu_vm *v, const struct vm_config *cfg, struct error *err)
{
    struct tracker_target target = {
        .pid = v->qemu.pid,
        .address = v->qemu.guest_address,
        .memory = v->qemu.memory,
        .pages = v->vm.pages,
        .fd = v->qemu.memory_fd,
    };

    v->tracker = tracker_new(cfg->tracker, &target, err);
    if (!v->tracker)
        return -1;
    snprintf(v->vm.tracker, sizeof(v->vm.tracker), "%s", tracker_name(v->tracker));
    v->vm.memory = tracker_memory(v->tracker);
    return 0;
}

static int set_up(struct qemu_vm *v, const struct vm_config *cfg, struct error *err)
{
    v->vm.pages = v->qemu.memory_bytes / PAGE_SIZE;
    strcpy(v->vm.accelerator, v->qemu.accelerator);
    if (qemu_profile(cfg, qmp_version(v->qemu.qmp), v->qemu.accelerator, v->vm.profile, err) < 0 ||
        qmp_execute(v->qemu.qmp, "migrate-set-capabilities", QEMU_CAPABILITIES, NULL, err) < 0 ||
        qmp_execute(v->qemu.qmp, "migrate-set-parameters", "{\"max-bandwidth\":100000000000}", NULL,
                    err) < 0 ||
        make_state_file(v, err) < 0 || (!v->full && share_state_file(v, err) < 0) ||
        track(v, cfg, err) < 0)
        return -1;
    return set_running(v, err);
}

static void let_go(struct qemu_vm *v)
{
    tracker_free(v->tracker);
    if (v->state_fd >= 0)
        close(v->state_fd);
    if (v->write_fd >= 0)
        close(v->write_fd);
    free(v);
}

static void vm_close(struct vm *vm)
{
    struct qemu_vm *v = of(vm);

    qemu_close(&v->qemu);
    let_go(v);
}

static void vm_destroy(struct vm *vm)
{
    struct qemu_vm *v = of(vm);

    qemu_kill(&v->qemu);
    let_go(v);
}

static int vm_open(struct vm **vm, const struct vm_config *cfg, struct error *err)
{
    struct qemu_vm *v = calloc(1, sizeof(*v));
    int attached;

    if (!v)
        return error_set(err, "out of memory");
    v->vm.ops = &qemu_vm_ops;
    v->full = strcmp(cfg->machine_state, "full") == 0;
    v->state_fd = v->write_fd = -1;
    attached = qemu_attach(&v->qemu, cfg, err);
    if (attached < 0 ||
        (!attached && (qemu_check_config(cfg, err) < 0 ||
                       qemu_check_room(cfg->memory_bytes, err) < 0 ||
                       qemu_start(&v->qemu, cfg, qemu_accelerator(cfg), false, err) < 0))) {
        let_go(v);
        return -1;
    }
    v->vm.attached = attached;
    if (set_up(v, cfg, err) < 0) {
        /* It lived before us, it lives on. */
        if (attached)
            vm_close(&v->vm);
        else
            vm_destroy(&v->vm);
        return -1;
    }
    *vm = &v->vm;
    return 0;
}

static int vm_resume(struct vm *vm, struct error *err)
{
    struct qemu_vm *v = of(vm);

    v->save_id = 0;
    return qmp_execute(v->qemu.qmp, "cont", NULL, NULL, err);
}

/*
 * With stop goes the command to save the devices, so that QEMU does it while the caller scans and
 * copies on another processor.
 */
static int vm_suspend(struct vm *vm, struct error *err)
{
    struct qemu_vm *v = of(vm);
    uint64_t id;

    if (lseek(v->write_fd, 0, SEEK_SET) < 0)
        return error_set(err, "machine state: lseek: %s", strerror(errno));
    if (qmp_send(v->qemu.qmp, "stop", NULL, -1, &id, err) < 0)
        return -1;
    if ((v->full || qmp_send(v->qemu.qmp, "xen-save-devices-state", v->save_args, -1, &v->save_id,
                             err) == 0) &&
        qmp_wait(v->qemu.qmp, id, NULL, err) == 0)
        return 0;
    vm_resume(vm, NULL);
    return error_prefix(err, "stop");
}

static int vm_scan(struct vm *vm, struct bitmap *dirty, struct error *err)
{
    return tracker_scan(of(vm)->tracker, dirty, err);
}

static int save_full(struct qemu_vm *v, struct error *err)
{
    struct qmp_events *events = qmp_events(v->qemu.qmp);
    uint64_t id;

    events->migration = QMP_MIGRATION_NONE;
    if (qmp_send(v->qemu.qmp, "getfd", "{\"fdname\":\"state\"}", v->write_fd, &id, err) < 0 ||
        qmp_wait(v->qemu.qmp, id, NULL, err) < 0 ||
        qmp_execute(v->qemu.qmp, "migrate", "{\"uri\":\"fd:state\"}", NULL, err) < 0 ||
        qmp_wait_migration(v->qemu.qmp, err) < 0)
        return -1;
    return events->migration == QMP_MIGRATION_DONE ? 0 : error_set(err, "migration failed");
}

/* What QEMU has written: up to the offset that it shares with us. */
static int read_state(struct qemu_vm *v, struct buffer *state, struct error *err)
{
    off_t len = lseek(v->write_fd, 0, SEEK_CUR);

    if (len <= 0 || len > (off_t)VM_STATE_MAX)
        return error_set(err, "machine state of %lld octets", (long long)len);
    if (buffer_reserve(state, (size_t)len) < 0)
        return error_set(err, "out of memory");
    if (pread(v->state_fd, state->data + state->len, (size_t)len, 0) != len)
        return error_set(err, "machine state: %s", strerror(errno));
    state->len += (size_t)len;
    return 0;
}

static int vm_save_state(struct vm *vm, struct buffer *state, struct error *err)
{
    struct qemu_vm *v = of(vm);
    int rc = v->full ? save_full(v, err) : qmp_wait(v->qemu.qmp, v->save_id, NULL, err);

    v->save_id = 0;
    if (rc < 0)
        return error_prefix(err, "machine state");
    return read_state(v, state, err);
}

static enum vm_health vm_health(struct vm *vm)
{
    return qemu_health(&of(vm)->qemu);
}

static int vm_describe(const struct vm_config *cfg, uint64_t *pages, char profile[VM_PROFILE_MAX + 1],
                       struct buffer *description, struct error *err)
{
    char version[32];

    (void)description;
    *pages = cfg->memory_bytes / PAGE_SIZE;
    if (qemu_check_config(cfg, err) < 0 || qemu_binary_version(cfg, version, err) < 0)
        return -1;
    return qemu_profile(cfg, version, qemu_accelerator(cfg), profile, err);
}

const struct vm_ops qemu_vm_ops = {
    .name = "qemu",
    .running = qemu_running,
    .describe = vm_describe,
    .open = vm_open,
    .suspend = vm_suspend,
    .resume = vm_resume,
    .scan = vm_scan,
    .save_state = vm_save_state,
    .health = vm_health,
    .destroy = vm_destroy,
    .close = vm_close,
};
