/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A primary arrives: may it protect this VM here, and what becomes of the checkpoint that is held? */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/buffer.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/log.h"
#include "disk/server.h"
#include "standby-impl.h"

#define MACHINE_NS (5 * NS_PER_S)
#define HEARTBEAT_MIN_MS 1u
#define HEARTBEAT_MAX_MS 10000u
#define TIMEOUT_MAX_MS 600000u

int standby_check_hello(const struct proto_hello *hello, struct error *err)
{
    if (hello->required & ~FEATURES_KNOWN) {
        error_set(err, "the primary requires features %#" PRIx64 " that this backup has not",
                  hello->required & ~FEATURES_KNOWN);
        return REFUSE_FEATURE;
    }
    if (hello->page_size != PAGE_SIZE || hello->pages == 0 ||
        hello->pages > UINT64_MAX / 2 / PAGE_SIZE || hello->session == 0 ||
        hello->heartbeat_ms < HEARTBEAT_MIN_MS || hello->heartbeat_ms > HEARTBEAT_MAX_MS ||
        hello->timeout_ms <= hello->heartbeat_ms || hello->timeout_ms > TIMEOUT_MAX_MS) {
        error_set(err, "HELLO with pages %" PRIu64 " of %u octets, session %" PRIx64
                  ", heartbeat %u, timeout %u makes no sense", hello->pages, hello->page_size,
                  hello->session, hello->heartbeat_ms, hello->timeout_ms);
        return REFUSE_PROTOCOL;
    }
    return 0;
}

int standby_check_machine(const struct vm_config *cfg, const struct proto_hello *hello, struct error *err)
{
    /* Where a description comes, it tells the memory that the pages are numbers of. */
    if (strcmp(hello->platform, cfg->platform) != 0 ||
        (!(hello->features & FEATURE_MACHINE) && hello->pages * PAGE_SIZE != cfg->memory_bytes)) {
        error_set(err, "%s: the primary has platform %s and %" PRIu64 " MiB, the backup's section "
                  "says %s and %" PRIu64 " MiB: make them equal", cfg->name, hello->platform,
                  hello->pages * PAGE_SIZE >> 20, cfg->platform, cfg->memory_bytes >> 20);
        return REFUSE_PROFILE;
    }
    return 0;
}

int standby_check_disk_count(const struct vm_config *cfg, const struct proto_hello *hello, struct error *err)
{
    if (hello->disk_count != cfg->disk_count) {
        error_set(err, "%s: the primary has %u disks, the backup's section names %u: make them equal",
                  cfg->name, hello->disk_count, cfg->disk_count);
        return REFUSE_PROFILE;
    }
    return 0;
}

static int check_hello(const struct standby *s, const struct proto_hello *hello, struct error *err)
{
    int refusal = standby_check_hello(hello, err);

    if (!refusal)
        refusal = standby_check_machine(s->section, hello, err);
    return refusal ? refusal : standby_check_disk_count(s->section, hello, err);
}

/* Who may protect this VM here, and start its guest there (R7). */
static int check_state(struct standby *s, const struct proto_hello *hello, struct error *err)
{
    switch (s->detector.state) {
    case DT_TAKING_OVER:
    case DT_ACTIVE:
        error_set(err, "%s runs on this backup: protect it there, with the other host as its backup", s->cfg->name);
        return REFUSE_ACTIVE;
    case DT_SUSPECT:
    case DT_ASKING:
        if (hello->session == s->session)
            return 0;
        error_set(err, "%s: checkpoint %" PRIu64 " of a guest that vanished waits here: remusctl "
                  "takeover runs it, remusctl discard on the backup throws it away",
                  s->cfg->name, standby_held(s).epoch);
        return REFUSE_BUSY;
    default:
        if (s->spent && hello->session == s->spent) {
            error_set(err, "%s was taken over by this backup and has ended here: the guest that the primary "
                      "holds is out of date", s->cfg->name);
            return REFUSE_ACTIVE;
        }
        if (!s->link || hello->session == s->session)
            return 0;
        error_set(err, "%s is protected here by the primary at %s", s->cfg->name,
                  link_peer(s->link));
        return REFUSE_BUSY;
    }
}

static void disk_infos_of(const struct proto_hello *hello, struct disk_info infos[DISKS_MAX])
{
    for (unsigned i = 0; i < hello->disk_count; i++)
        infos[i] = (struct disk_info){hello->disks[i].size, hello->disks[i].id};
}

/* The images are brought to a committed epoch before the replica sees them. */
static int open_disks(struct standby *s, const struct proto_hello *hello, struct error *err)
{
    struct disk_info infos[DISKS_MAX];

    if (s->cfg->disk_count == 0)
        return 0;
    disk_infos_of(hello, infos);
    if (disk_server_stop(s->cfg, err) < 0 ||
        journal_open(&s->journal, s->cfg->disks, infos, s->cfg->disk_count, s->cfg->disk_journal_bytes,
                     err) < 0)
        return -1;
    return disk_server_start(s->cfg, true, err);
}

/* Tells the primary what is here of each disk, and gets ready for the rest. */
static int begin_disks(struct standby *s, const struct proto_hello *hello, enum link_start start,
                       struct error *err)
{
    struct disk_info infos[DISKS_MAX];
    uint64_t bases[DISKS_MAX];
    uint8_t body[PROTO_SMALL_MAX];
    struct iovec iov = {.iov_base = body};

    receiver_set_journal(s->receiver, s->journal);
    if (!s->journal)
        return 0;
    disk_infos_of(hello, infos);
    journal_bases(s->journal, infos, bases);
    for (unsigned i = 0; i < hello->disk_count; i++)
        if (!bases[i] && start == START_ANEW && hello->features & FEATURE_DISK_CHECKS && journal_may_be_alike(s->journal, i))
            bases[i] = DISK_COMPARE;
    if (journal_begin(s->journal, infos, start, err) < 0)
        return -1;
    iov.iov_len = proto_put_disks(body, bases, hello->disk_count);
    link_send(s->link, PROTO_DISKS, 0, &iov, 1); /* a broken link shows in recv */
    return 0;
}

static int learn(struct standby *s, const struct replica_ops *ops, struct error *err)
{
    struct vm_facts facts;

    if (!ops->facts)
        return 0;
    ops->facts(s->replica, &facts);
    return vm_learn(&s->learned, s->section, &facts, err) < 0 ? error_prefix(err, "%s, as the backup's section has it",
                                                                            s->cfg->name)
                                                              : 0;
}

static int open_replica(struct standby *s, const struct proto_hello *hello,
                        const struct buffer *description, struct error *err)
{
    const struct replica_ops *ops = replica_platform(hello->platform);

    if (!ops)
        return error_set(err, "this build has no platform '%s'", hello->platform);
    if (open_disks(s, hello, err) < 0 ||
        ops->open(&s->replica, s->section, hello->pages, hello->profile, description, err) < 0 ||
        learn(s, ops, err) < 0 || standby_open_port(s, err) < 0)
        return -1;
    s->receiver = receiver_new(s->replica->memory, s->replica->pages, s->cfg->memory_bytes);
    if (!s->receiver)
        return error_set(err, "no memory for the stage");
    receiver_set_written(s->receiver, s->replica->written);
    return 0;
}

/* MACHINE, which the primary sends right behind its HELLO. */
int standby_take_description(struct link *link, const struct proto_hello *hello, struct buffer *into,
                             struct error *err)
{
    uint64_t deadline = clock_ns() + MACHINE_NS;
    struct record rec;
    enum link_result r;

    if (!(hello->features & FEATURE_MACHINE))
        return 0;
    do
        r = link_recv(link, &rec, deadline, err);
    while (r == LINK_RECORD && rec.type == PROTO_HEARTBEAT && clock_ns() < deadline);
    if (r == LINK_CORRUPT)
        return -1;
    if (r != LINK_RECORD || rec.type != PROTO_MACHINE || rec.length > VM_DESCRIPTION_MAX)
        return error_set(err, "HELLO without a MACHINE of at most %u octets behind it", VM_DESCRIPTION_MAX);
    return buffer_append(into, rec.body, rec.length) < 0 ? error_set(err, "no memory") : 0;
}

/* What becomes of the checkpoint that is here. */
static enum link_start choose_start(const struct standby *s, const struct proto_hello *hello)
{
    struct disk_info infos[DISKS_MAX];

    if (hello->session != s->session || standby_held(s).epoch == 0)
        return START_ANEW;
    if (!(hello->flags & HELLO_RESYNC) && !receiver_keeps(s->receiver))
        return START_RESUME;
    disk_infos_of(hello, infos);
    if (!(hello->flags & HELLO_HELD) || (s->journal && !journal_can_keep(s->journal, infos)))
        return START_ANEW;
    return START_KEEP;
}

/* Prepares for the link in s->link and welcomes it.  0, or a refusal. */
static int welcome(struct standby *s, const struct proto_hello *hello, struct error *err)
{
    static const char *const words[] = {
        [START_ANEW] = "synchronising; no checkpoint is held",
        [START_RESUME] = "going on from the checkpoint held",
        [START_KEEP] = "synchronising; until that is whole the checkpoint held still counts",
    };
    enum link_start start = choose_start(s, hello);
    struct proto_welcome w = {.version = (uint16_t)proto_choose_version(hello, err)};
    uint8_t body[PROTO_SMALL_MAX];
    struct iovec iov = {.iov_base = body};
    __attribute__((cleanup(buffer_free))) struct buffer description = {0};

    /* Preparing the replica may take seconds; the primary sees that we live. */
    if (link_start_heartbeats(s->link, hello->heartbeat_ms * NS_PER_MS) < 0)
        return error_set(err, "cannot start a thread"), REFUSE_RESOURCES;
    if (standby_take_description(s->link, hello, &description, err) < 0)
        return REFUSE_PROTOCOL;
    if (start == START_ANEW) {
        standby_drop_replica(s);
        if (open_replica(s, hello, &description, err) < 0) {
            standby_drop_replica(s);
            return REFUSE_RESOURCES;
        }
        s->session = hello->session;
    }
    receiver_start(s->receiver, start);
    w.features = hello->features & FEATURES_KNOWN;
    if (begin_disks(s, hello, start, err) < 0) {
        standby_drop_replica(s);
        return REFUSE_RESOURCES;
    }
    w.committed = start == START_RESUME ? standby_held(s).epoch : 0;
    iov.iov_len = proto_put_welcome(body, &w);
    link_send(s->link, PROTO_WELCOME, 0, &iov, 1); /* the same */
    s->view.ended = false;
    detector_connected(&s->detector, start != START_ANEW, hello->timeout_ms * NS_PER_MS, clock_ns());
    if (s->greeted != words[start])
        log_info(s->cfg->name, "primary %s connected, %s", link_peer(s->link), words[start]);
    s->greeted = words[start];
    return 0;
}

void standby_refuse(struct link *link, int code, const struct error *err)
{
    link_send_notice(link, PROTO_REFUSE, (unsigned)code, err->text);
    link_free(link);
}

static void answer_query(struct link *link)
{
    struct proto_welcome w = {.version = PROTO_VERSION_MAX};
    uint8_t body[PROTO_SMALL_MAX];
    struct iovec iov = {body, proto_put_welcome(body, &w)};

    link_send(link, PROTO_WELCOME, 0, &iov, 1);
    link_free(link);
}

void standby_take_offer(struct standby *s)
{
    struct proto_hello hello;
    struct link *link;
    struct error err;
    int refusal;

    pthread_mutex_lock(&s->lock);
    link = s->offered;
    hello = s->offer;
    s->offered = NULL;
    pthread_mutex_unlock(&s->lock);
    if (!link)
        return;
    refusal = check_state(s, &hello, &err);
    if (!refusal && hello.flags & HELLO_QUERY) {
        answer_query(link);
        return;
    }
    if (!refusal)
        refusal = check_hello(s, &hello, &err);
    if (refusal) {
        if (s->detector.state == DT_WAITING)
            standby_note(s, "refused a primary: %s", err.text);
        else /* what is wrong here is something else */
            log_warning(s->cfg->name, "refused primary %s: %s", link_peer(link), err.text);
        standby_refuse(link, refusal, &err);
        return;
    }
    standby_drop_link(s); /* the same primary, back on a new connection */
    s->link = link;
    snprintf(s->view.primary, sizeof(s->view.primary), "%s", link_peer(link));
    refusal = welcome(s, &hello, &err);
    if (refusal) {
        standby_note(s, "refused primary %s: %s", link_peer(link), err.text);
        s->link = NULL;
        standby_refuse(link, refusal, &err);
        if (standby_held(s).epoch) /* whoever it was, this checkpoint still counts */
            detector_closed(&s->detector, err.text, clock_ns());
        else
            detector_goodbye(&s->detector, clock_ns());
    }
}
