/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A primary asks what this host would lack.  All of it on the connection's own thread: nothing of the VM's is touched. */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>

#include "common/buffer.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/log.h"
#include "disk/image.h"
#include "standby-impl.h"
#include "vm/preflight.h"

#define EVERYTHING_NS (10 * NS_PER_S) /* then the primary has given up, too */

/*
 * What check_state() of welcome.c would find, from what is published.  *here: a replica is here.  False: the VM itself runs here, and
 * what else is in the way is its own.
 */
static bool check_state(struct standby *s, const char *peer, bool *here, json_t *lacks)
{
    struct view v;

    pthread_mutex_lock(&s->lock);
    v = s->published;
    pthread_mutex_unlock(&s->lock);
    switch (v.state) {
    case DT_TAKING_OVER:
    case DT_ACTIVE:
        preflight_lacks(lacks, "protect it there, with this host as its backup: remus-backupd(8), Fail-back",
                        "%s runs on the backup", s->section->name);
        return false;
    case DT_SUSPECT:
    case DT_ASKING:
        preflight_lacks(lacks, "remusctl takeover on the backup runs it, remusctl discard there throws it away",
                        "checkpoint %" PRIu64 " of %s waits on the backup: its guest has vanished", v.epoch, s->section->name);
        break;
    case DT_SYNCING:
    case DT_READY:
        if (strcmp(peer, v.primary) != 0)
            preflight_lacks(lacks, "remusctl unprotect there", "%s is protected by the primary at %s", s->section->name, v.primary);
        break;
    default:
        break;
    }
    *here = v.memory_bytes;
    return true;
}

/* learns: of the guest itself what its section leaves out. */
static void check_equal(const struct vm_config *cfg, bool learns, const struct proto_hello *hello, json_t *lacks)
{
    const struct {
        const char *key, *there, *here;
    } keys[] = {
        {"mac", hello->mac, cfg->mac},
        {"guest-bridge", hello->guest_bridge, cfg->guest_bridge},
        {"vif", hello->vif, cfg->vif},
        {"netbuf", hello->netbuf, config_netbuf_name(cfg->netbuf)},
    };
    char remedy[64];

    for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++) {
        if (strcasecmp(keys[i].there, keys[i].here) == 0 || (learns && (!*keys[i].there || !*keys[i].here)))
            continue;
        snprintf(remedy, sizeof(remedy), "make %s equal in both sections", keys[i].key);
        preflight_lacks(lacks, remedy, "%s is %s on the primary, %s on the backup", keys[i].key,
                        *keys[i].there ? keys[i].there : "not set", *keys[i].here ? keys[i].here : "not set");
    }
}

/* What journal_open() would refuse. */
static void check_image(const char *image, uint64_t size, json_t *lacks)
{
    struct image_record rec;
    char remedy[256];
    uint64_t here;
    struct error err;
    int found = image_read(image, &rec, &err);

    if (found < 0) {
        preflight_lacks(lacks, "mend or remove it", "%s", err.text);
        return;
    }
    if (found && rec.role == IMAGE_VALID) {
        snprintf(remedy, sizeof(remedy), "remove %.200s.remus, to give it up for the primary's", image);
        preflight_lacks(lacks, remedy, "disk \"%s\" is itself a valid image: the VM ran on the backup (since checkpoint %" PRIu64 ")",
                        image, rec.epoch);
    }
    if (image_size(image, 0, &here, &err) < 0)
        preflight_lacks(lacks, "mend or remove it", "%s", err.text);
    else if (size != DISK_SIZE_UNKNOWN && here != size)
        preflight_lacks(lacks, "make them equal, or remove the backup's",
                        "disk \"%s\" has %" PRIu64 " octets, the primary's has %" PRIu64, image, here, size);
}

struct folder {
    dev_t device;
    uint64_t wanted;
    char path[PATH_MAX];
};

/* A file of `octets' that will be made. */
static void count_file(struct folder *folders, unsigned *count, const char *file, uint64_t octets)
{
    struct folder *f = &folders[*count];
    struct stat st;
    char *slash;
    unsigned i;

    if (stat(file, &st) == 0 || octets == DISK_SIZE_UNKNOWN)
        return;
    snprintf(f->path, sizeof(f->path), "%s", file);
    slash = strrchr(f->path, '/');
    slash[slash == f->path] = '\0';
    if (stat(f->path, &st) < 0) /* preflight() says it */
        return;
    for (i = 0; i < *count && folders[i].device != st.st_dev; i++)
        ;
    if (i == *count) {
        f->device = st.st_dev;
        f->wanted = 0;
        (*count)++;
    }
    folders[i].wanted += octets;
}

static void check_disks(const struct vm_config *cfg, const struct proto_hello *hello, json_t *lacks)
{
    struct folder folders[CONFIG_DISKS_MAX + 1];
    char journal[PATH_MAX];
    struct statvfs fs;
    unsigned count = 0;

    for (unsigned i = 0; i < cfg->disk_count && i < hello->disk_count; i++) {
        struct stat st;

        if (stat(cfg->disks[i], &st) == 0)
            check_image(cfg->disks[i], hello->disks[i].size, lacks);
        else
            count_file(folders, &count, cfg->disks[i], hello->disks[i].size);
    }
    if (cfg->disk_count && snprintf(journal, sizeof(journal), "%s.remus-journal", cfg->disks[0]) < (int)sizeof(journal))
        count_file(folders, &count, journal, cfg->disk_journal_bytes);
    for (unsigned i = 0; i < count; i++)
        if (statvfs(folders[i].path, &fs) == 0 && (uint64_t)fs.f_bavail * fs.f_frsize < folders[i].wanted)
            preflight_lacks(lacks, "make room there", "%s: images and journal may take %" PRIu64 " MiB, %" PRIu64 " MiB are free",
                            folders[i].path, folders[i].wanted >> 20, ((uint64_t)fs.f_bavail * fs.f_frsize) >> 20);
}

static json_t *find_lacks(struct standby *s, const struct proto_hello *hello, const struct buffer *description,
                          const char *peer)
{
    const struct vm_config *cfg = s->section;
    const struct replica_ops *ops = replica_platform(cfg->platform);
    bool learns = ops && ops->facts, here;
    struct vm_config known = *cfg;
    json_t *report, *lacks;
    struct error err;

    /* What the section leaves out comes with the guest. */
    if (learns && !known.memory_bytes)
        known.memory_bytes = hello->pages * PAGE_SIZE;
    if (learns && !*known.guest_bridge)
        known.guest_bridge = (char *)hello->guest_bridge;
    if (learns && !*known.tap && !*known.vif && *hello->mac)
        known.vif = (char *)"vif"; /* one it will have */
    report = preflight(&known, false);
    lacks = json_incref(json_object_get(report, "lacks"));
    json_decref(report);
    if (!check_state(s, peer, &here, lacks))
        return lacks;
    if (standby_check_machine(cfg, hello, &err))
        preflight_lacks(lacks, "make platform and memory equal in both sections", "%s", err.text);
    else if (ops && ops->check && *hello->profile)
        ops->check(cfg, hello->pages, hello->profile, description, here, lacks);
    check_equal(cfg, learns, hello, lacks);
    if (standby_check_disk_count(cfg, hello, &err))
        preflight_lacks(lacks, "name the same disks in both sections", "%s", err.text);
    check_disks(cfg, hello, lacks);
    return lacks;
}

static int send_lacks(struct link *link, const json_t *lacks)
{
    uint8_t body[PROTO_SMALL_MAX];
    struct iovec iov;
    json_t *lack;
    size_t i;

    json_array_foreach(lacks, i, lack) {
        if (i == PROTO_LACKS_MAX)
            break;
        iov = (struct iovec){body, proto_put_lack(body, json_string_value(json_object_get(lack, "what")),
                                                  json_string_value(json_object_get(lack, "remedy")))};
        if (link_send(link, PROTO_LACK, 0, &iov, 1) < 0)
            return -1;
    }
    return 0;
}

static int send_welcome(struct link *link, const struct proto_hello *hello, struct error *err)
{
    struct proto_welcome w = {.version = (uint16_t)proto_choose_version(hello, err), .features = FEATURE_PREFLIGHT};
    uint8_t body[PROTO_SMALL_MAX];
    struct iovec iov = {body, proto_put_welcome(body, &w)};

    return link_send(link, PROTO_WELCOME, 0, &iov, 1);
}

/* Until the primary has measured enough, and closes. */
static void answer_probes(struct link *link, uint64_t deadline)
{
    uint8_t body[PROTO_SMALL_MAX];
    struct proto_probe probe;
    struct iovec iov;
    struct record rec;
    struct error err;

    for (unsigned n = 0; n < PROTO_PROBES_MAX && clock_ns() < deadline &&
                         link_recv(link, &rec, deadline, &err) == LINK_RECORD;) {
        probe.received = clock_realtime_ns();
        if (rec.type == PROTO_HEARTBEAT)
            continue;
        if (rec.type != PROTO_PROBE)
            return;
        n++;
        probe.sent = clock_realtime_ns();
        iov = (struct iovec){body, proto_put_probe(body, &probe)};
        if (link_send(link, PROTO_PROBE, 0, &iov, 1) < 0)
            return;
    }
}

void standby_answer_preflight(struct standby *s, struct link *link, const struct proto_hello *hello)
{
    __attribute__((cleanup(buffer_free))) struct buffer description = {0};
    uint64_t deadline = clock_ns() + EVERYTHING_NS;
    struct error err;
    json_t *lacks;
    int refusal;

    link_limit_sends(link, deadline);
    refusal = standby_check_hello(hello, &err);
    if (!refusal && standby_take_description(link, hello, &description, &err) < 0)
        refusal = REFUSE_PROTOCOL;
    if (!refusal && link_start_heartbeats(link, hello->heartbeat_ms * NS_PER_MS) < 0)
        refusal = REFUSE_RESOURCES, error_set(&err, "cannot start a thread");
    if (refusal) {
        log_warning(s->section->name, "refused the preflight of %s: %s", link_peer(link), err.text);
        standby_refuse(link, refusal, &err);
        return;
    }
    lacks = find_lacks(s, hello, &description, link_peer(link));
    log_info(s->section->name, "preflight of %s: %zu things are missing or differ here", link_peer(link), json_array_size(lacks));
    if (send_lacks(link, lacks) == 0 && send_welcome(link, hello, &err) == 0)
        answer_probes(link, deadline);
    json_decref(lacks);
    link_free(link);
}

void standby_answer_preflight_of(const struct vm_config *section, struct link *link, const struct proto_hello *hello)
{
    struct standby nobody = {.section = section, .lock = PTHREAD_MUTEX_INITIALIZER};

    standby_answer_preflight(&nobody, link, hello);
}
