/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/arbiter.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/fault.h"
#include "common/log.h"
#include "common/run-file.h"
#include "detector.h"
#include "disk/image.h"
#include "disk/journal.h"
#include "disk/server.h"
#include "netbuf/port.h"
#include "receiver.h"
#include "standby.h"
#include "vm/vm.h"

#define TICK_NS (5 * NS_PER_MS)
#define HEALTH_NS (100 * NS_PER_MS)
#define RESETS_LAST_S 900 /* as long as a port goes on with them */
#define MACHINE_NS (5 * NS_PER_S)
#define HEARTBEAT_MIN_MS 1u
#define HEARTBEAT_MAX_MS 10000u
#define TIMEOUT_MAX_MS 600000u

struct takeover_times {
    uint64_t suspected, decided, running; /* clock_ns; running 0: none yet */
    uint64_t last_heard, epoch;
};

/* What the status shows; a copy is published at each turn of the thread. */
struct view {
    enum detector_state state;
    uint64_t since, heard;
    char reason[96];
    char primary[64];
    uint64_t epoch, checkpoints, bytes, memory_bytes;
    struct takeover_times takeover;
    bool has_disks, keeps;
    struct journal_stats disks;
    char last_error[512];
    uint64_t last_error_at;
};

struct standby {
    const struct vm_config *cfg;
    pthread_t thread;

    /* the thread's own */
    struct detector detector;
    struct arbiter arbiter;
    struct replica *replica;
    struct receiver *receiver;
    struct journal *journal; /* NULL: the VM has no disks */
    struct port *port;
    struct link *link;
    uint64_t session, bytes_before;
    uint64_t spent;        /* the session whose guest was activated here */
    bool handover;         /* the primary waits for ACTIVATED */
    uint64_t next_health;
    struct view view;

    pthread_mutex_t lock;
    pthread_cond_t changed; /* CLOCK_MONOTONIC */
    struct view published;
    struct link *offered;
    struct proto_hello offer;
    bool want_takeover, want_discard, stopping;
};

static void note(struct standby *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void note(struct standby *s, const char *fmt, ...)
{
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (strcmp(text, s->view.last_error) != 0)
        log_warning(s->cfg->name, "%s", text);
    memcpy(s->view.last_error, text, sizeof(text));
    s->view.last_error_at = clock_ns();
}

/*
 * RUN_DIR/NAME.active: "SESSION runs" while the guest of that session runs here, "SESSION ended" afterwards.  A daemon
 * that starts anew must know: what the primary may still hold of that guest is void for ever (R7).
 */
static void mark_active(struct standby *s, const char *word)
{
    struct error err;
    char text[32];
    int n = snprintf(text, sizeof(text), "%016" PRIx64 " %s\n", s->spent, word);

    if (run_file_write(s->cfg, ".active", text, (size_t)n, &err) < 0)
        note(s, "%s; a remus-backupd that is restarted will not know that the VM runs here", err.text);
}

/*
 * RUN_DIR/NAME.guest is what a remusd of this host knows of a guest that it had.  The one that is about to run is another: were it
 * protected from here later on under that name, its backup would take it for one that is out of date.
 */
static void forget_guest(const struct standby *s)
{
    run_file_remove(s->cfg, ".guest");
}

/*
 * RUN_DIR/NAME.net: the network state of the checkpoint that was activated.  A daemon that starts anew must go on with
 * the resets (R3) for as long as they take.
 */
static void keep_net_state(struct standby *s, const struct receiver_checkpoint *ck)
{
    struct error err;

    if (run_file_write(s->cfg, ".net", ck->net, ck->net_length, &err) < 0)
        note(s, "cannot keep the list of connections to reset, should remus-backupd end now: %s", err.text);
}

/* In place of pass: -1 when the guest's packets must stay held. */
static int resume_net(struct standby *s, struct error *err)
{
    struct port *port = s->port;
    char path[PATH_MAX];
    struct stat st;
    uint8_t *data;
    size_t len;
    FILE *f;
    int rc;

    run_path(s->cfg, ".net", path, sizeof(path));
    f = fopen(path, "re");
    if (!f || fstat(fileno(f), &st) < 0 || time(NULL) - st.st_mtime > RESETS_LAST_S) {
        if (f)
            fclose(f);
        port->ops->pass(port);
        return 0;
    }
    data = malloc(NET_STATE_MAX);
    len = data ? fread(data, 1, NET_STATE_MAX, f) : 0;
    rc = data && !ferror(f) ? port->ops->activate(port, data, len, err) : error_set(err, "%s: cannot be read", path);
    free(data);
    fclose(f);
    return rc;
}

static void drop_link(struct standby *s)
{
    if (!s->link)
        return;
    s->bytes_before += link_bytes_received(s->link);
    link_free(s->link);
    s->link = NULL;
}

/* The disks of a guest that runs here stay; it holds on to their server. */
static void drop_disks(struct standby *s)
{
    struct error err;

    journal_close(s->journal);
    s->journal = NULL;
    if (s->cfg->disk_count && s->detector.state != DT_ACTIVE && disk_server_stop(s->cfg, &err) < 0)
        note(s, "%s", err.text);
}

static void drop_replica(struct standby *s)
{
    receiver_free(s->receiver);
    s->receiver = NULL;
    if (s->replica)
        s->replica->ops->close(s->replica);
    s->replica = NULL;
    drop_disks(s);
    if (s->port)
        s->port->ops->close(s->port);
    s->port = NULL;
    s->session = 0;
}

/* The checkpoint that could be activated; epoch 0 for none. */
static struct receiver_checkpoint held_checkpoint(const struct standby *s)
{
    struct receiver_checkpoint ck = {0};

    if (s->receiver)
        receiver_checkpoint(s->receiver, &ck);
    return ck;
}

/* --- a primary arrives --- */

static int check_hello(struct standby *s, const struct proto_hello *hello, struct error *err)
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
    /* Where a description comes, it tells the memory that the pages are numbers of. */
    if (strcmp(hello->platform, s->cfg->platform) != 0 ||
        (!(hello->features & FEATURE_MACHINE) && hello->pages * PAGE_SIZE != s->cfg->memory_bytes)) {
        error_set(err, "%s: the primary has platform %s and %" PRIu64 " MiB, the backup's section "
                  "says %s and %" PRIu64 " MiB: make them equal", s->cfg->name, hello->platform,
                  hello->pages * PAGE_SIZE >> 20, s->cfg->platform, s->cfg->memory_bytes >> 20);
        return REFUSE_PROFILE;
    }
    if (hello->disk_count != s->cfg->disk_count) {
        error_set(err, "%s: the primary has %u disks, the backup's section names %u: make them equal",
                  s->cfg->name, hello->disk_count, s->cfg->disk_count);
        return REFUSE_PROFILE;
    }
    return 0;
}

/* Who may protect this VM here, and start its guest there (R7). */
static int check_state(struct standby *s, const struct proto_hello *hello, struct error *err)
{
    switch (s->detector.state) {
    case DT_TAKING_OVER:
    case DT_ACTIVE:
        error_set(err, "%s runs on this backup since checkpoint %" PRIu64, s->cfg->name,
                  s->view.takeover.epoch);
        return REFUSE_ACTIVE;
    case DT_SUSPECT:
    case DT_ASKING:
        if (hello->session == s->session)
            return 0;
        error_set(err, "%s: checkpoint %" PRIu64 " of a guest that vanished waits here: remusctl "
                  "takeover runs it, remusctl discard on the backup throws it away",
                  s->cfg->name, held_checkpoint(s).epoch);
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

static int open_port(struct standby *s, struct error *err)
{
    char guest[108], port[108];
    struct frames_port_config cfg = {
        .guest_path = guest,
        .guest_bridge = s->cfg->guest_bridge,
        .port_path = port,
        .tap = s->cfg->tap,
        .mac = s->cfg->mac,
        .queue_bytes = s->cfg->net_queue_bytes,
    };

    if (!s->cfg->tap[0])
        return (s->port = null_port_new()) ? 0 : error_set(err, "no memory");
    if (vm_net_paths(s->cfg, guest, port) < 0)
        return error_set(err, "run-dir '%s' is too long for a socket's name", s->cfg->run_dir);
    return frames_port_open(&s->port, &cfg, err);
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
    return link_send(s->link, PROTO_DISKS, 0, &iov, 1) < 0 ? error_set(err, "the primary went away") : 0;
}

static int open_replica(struct standby *s, const struct proto_hello *hello,
                        const struct buffer *description, struct error *err)
{
    const struct replica_ops *ops = replica_platform(hello->platform);

    if (!ops)
        return error_set(err, "this build has no platform '%s'", hello->platform);
    if (open_port(s, err) < 0 || open_disks(s, hello, err) < 0 ||
        ops->open(&s->replica, s->cfg, hello->pages, hello->profile, description, err) < 0)
        return -1;
    s->receiver = receiver_new(s->replica->memory, s->replica->pages, s->cfg->memory_bytes);
    return s->receiver ? 0 : error_set(err, "no memory for the stage");
}

/* MACHINE, which the primary sends right behind its HELLO. */
static int take_description(struct standby *s, const struct proto_hello *hello, struct buffer *into,
                            struct error *err)
{
    struct record rec;
    enum link_result r;

    if (!(hello->features & FEATURE_MACHINE))
        return 0;
    do
        r = link_recv(s->link, &rec, clock_ns() + MACHINE_NS, err);
    while (r == LINK_RECORD && rec.type == PROTO_HEARTBEAT);
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

    if (hello->session != s->session || held_checkpoint(s).epoch == 0)
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
    if (take_description(s, hello, &description, err) < 0)
        return REFUSE_PROTOCOL;
    if (start == START_ANEW) {
        drop_replica(s);
        if (open_replica(s, hello, &description, err) < 0) {
            drop_replica(s);
            return REFUSE_RESOURCES;
        }
        s->session = hello->session;
    }
    receiver_start(s->receiver, start);
    w.features = hello->features & FEATURES_KNOWN;
    if (begin_disks(s, hello, start, err) < 0) {
        drop_replica(s);
        return REFUSE_RESOURCES;
    }
    w.committed = start == START_RESUME ? held_checkpoint(s).epoch : 0;
    iov.iov_len = proto_put_welcome(body, &w);
    if (link_send(s->link, PROTO_WELCOME, 0, &iov, 1) < 0)
        return error_set(err, "the primary went away"), REFUSE_PROTOCOL;
    detector_connected(&s->detector, start != START_ANEW, hello->timeout_ms * NS_PER_MS, clock_ns());
    log_info(s->cfg->name, "primary %s connected, %s", link_peer(s->link), words[start]);
    return 0;
}

static void refuse(struct link *link, int code, const struct error *err)
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

static void take_offer(struct standby *s)
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
        log_warning(s->cfg->name, "refused primary %s: %s", link_peer(link), err.text);
        refuse(link, refusal, &err);
        return;
    }
    drop_link(s); /* the same primary, back on a new connection */
    s->link = link;
    snprintf(s->view.primary, sizeof(s->view.primary), "%s", link_peer(link));
    refusal = welcome(s, &hello, &err);
    if (refusal) {
        note(s, "refused primary %s: %s", link_peer(link), err.text);
        s->link = NULL;
        refuse(link, refusal, &err);
        detector_goodbye(&s->detector, clock_ns());
    }
}

/* --- records --- */

static void whole_checkpoint(struct standby *s)
{
    uint64_t epoch = receiver_staged(s->receiver);

    fault_crash("backup-before-ack", epoch);
    if (!fault_hit("ack-held-back", epoch))
        link_send_empty(s->link, PROTO_ACK, epoch); /* a broken link shows in recv */
    fault_crash("backup-before-apply", epoch);
    receiver_apply(s->receiver);
    fault_crash("backup-after-apply", epoch);
    s->view.checkpoints++;
    detector_committed(&s->detector, clock_ns());
}

/* A record of a checkpoint, or of no checkpoint yet. */
static int take_record(struct standby *s, const struct record *rec, struct error *err)
{
    uint64_t kept = receiver_keeps(s->receiver) ? held_checkpoint(s).epoch : 0;
    enum receiver_result result = receiver_record(s->receiver, rec, err);

    if (kept && held_checkpoint(s).epoch == 0) {
        note(s, "too much has changed to keep checkpoint %" PRIu64 " until synchronising is whole", kept);
        detector_given_up(&s->detector, clock_ns());
    }
    if (result == RECEIVER_WHOLE)
        whole_checkpoint(s);
    return result == RECEIVER_ERROR ? -1 : 0;
}

static int handle(struct standby *s, const struct record *rec, struct error *err)
{
    struct proto_notice notice;

    if (s->detector.state == DT_ACTIVE)
        return 0; /* the primary lives and has not read ACTIVATED yet: its word counts no more (R7) */
    switch (rec->type) {
    case PROTO_HEARTBEAT:
        return 0;
    case PROTO_GOODBYE:
        if (proto_get_notice(&notice, rec->body, rec->length, err) < 0)
            return -1;
        log_info(s->cfg->name, "the primary says goodbye: %s", notice.text);
        link_send_notice(s->link, PROTO_GOODBYE, 0, "goodbye");
        detector_goodbye(&s->detector, clock_ns());
        drop_link(s);
        drop_replica(s);
        return 0;
    case PROTO_HANDOVER:
        if (rec->epoch == 0 || rec->epoch > held_checkpoint(s).epoch || receiver_keeps(s->receiver))
            return error_set(err, "handover of checkpoint %" PRIu64 ", but %" PRIu64 " is held",
                             rec->epoch, held_checkpoint(s).epoch);
        s->handover = true;
        detector_handover(&s->detector, clock_ns());
        return 0;
    default:
        return take_record(s, rec, err);
    }
}

/* The link is of no use any more; whoever it was did not say goodbye. */
static void link_broken(struct standby *s, const char *why)
{
    note(s, "primary %s: %s", link_peer(s->link), why);
    drop_link(s);
    detector_closed(&s->detector, why, clock_ns());
    if (s->detector.state == DT_WAITING)
        drop_replica(s);
}

static void receive(struct standby *s)
{
    struct record rec;
    struct error err;
    enum link_result r = link_recv(s->link, &rec, clock_ns() + TICK_NS, &err);

    detector_heard(&s->detector, link_last_heard(s->link), clock_ns());
    if (r == LINK_RECORD && handle(s, &rec, &err) < 0) {
        link_send_notice(s->link, PROTO_REFUSE, REFUSE_PROTOCOL, err.text);
        link_broken(s, err.text);
    } else if (r == LINK_CORRUPT) {
        link_send_notice(s->link, PROTO_REFUSE, REFUSE_CORRUPT, err.text);
        link_broken(s, err.text);
    } else if (r == LINK_CLOSED) {
        link_broken(s, "closed the connection without a goodbye");
    }
}

/* --- takeover --- */

static void announce(struct standby *s, const struct receiver_checkpoint *ck)
{
    struct error err;

    /* R3: without the list of open flows none may go on; better no network than a wrong one */
    if (s->port->ops->activate(s->port, ck->net, ck->net_length, &err) < 0)
        note(s, "takeover: the network state is of no use, the guest's packets stay held: %s",
             err.text);
}

/* R5: all that the checkpoint has of the disks is in the images, and they are the valid ones, before the guest runs. */
static int activate_disks(struct standby *s, uint64_t epoch, struct error *err)
{
    struct queue queue;
    char path[108];

    if (!s->journal)
        return 0;
    if (journal_activate(s->journal, epoch, err) < 0 || disk_queue_path(s->cfg, path) < 0 ||
        queue_open(&queue, path, err) < 0)
        return -1;
    queue_let_write(&queue);
    queue_close(&queue);
    return 0;
}

static void take_over(struct standby *s)
{
    struct receiver_checkpoint ck = held_checkpoint(s);
    struct takeover_times *t = &s->view.takeover;
    struct error err;
    bool ok;

    *t = (struct takeover_times){
        .suspected = s->detector.suspected,
        .last_heard = s->detector.heard,
        .decided = clock_ns(),
        .epoch = ck.epoch,
    };
    fault_crash("backup-before-activate", ck.epoch);
    receiver_restore(s->receiver);
    s->spent = s->session;
    forget_guest(s);
    keep_net_state(s, &ck);
    mark_active(s, "runs"); /* before it can run: whoever comes after a crash must not welcome a primary */
    ok = activate_disks(s, ck.epoch, &err) == 0 &&
         s->replica->ops->activate(s->replica, ck.state, ck.state_length, &err) == 0;
    detector_activated(&s->detector, ok, clock_ns());
    if (!ok) {
        note(s, "takeover of checkpoint %" PRIu64 " failed: %s", ck.epoch, err.text);
        if (s->link)
            link_send_notice(s->link, PROTO_REFUSE, REFUSE_RESOURCES, err.text);
        drop_link(s);
        drop_replica(s);
        s->spent = 0;
        run_file_remove(s->cfg, ".active");
        return;
    }
    t->running = clock_ns();
    announce(s, &ck);
    if (s->link)
        link_send_empty(s->link, PROTO_ACTIVATED, ck.epoch); /* should it live, it must stop */
    log_warning(s->cfg->name,
                "TAKEOVER: runs here from checkpoint %" PRIu64 " (primary %s); %" PRIu64
                " ms after the last sign of life, %" PRIu64 " us to activate",
                ck.epoch, s->detector.reason, (t->running - t->last_heard) / NS_PER_MS,
                (t->running - t->decided) / 1000);
}

static void ask_arbiter(struct standby *s)
{
    struct error err;

    log_warning(s->cfg->name, "primary %s: asking the arbiter", s->detector.reason);
    if (arbiter_ask(&s->arbiter, s->cfg->arbiter, s->cfg->name, "backup",
                    held_checkpoint(s).epoch, s->cfg->arbiter_timeout_ms * NS_PER_MS, &err) < 0) {
        note(s, "%s", err.text);
        detector_arbiter(&s->detector, false, clock_ns());
    }
}

static void poll_arbiter(struct standby *s)
{
    struct error err;
    enum arbiter_answer answer = arbiter_poll(&s->arbiter, clock_ns(), &err);

    if (answer == ARBITER_DENIED)
        note(s, "no takeover: %s", err.text);
    if (answer != ARBITER_PENDING)
        detector_arbiter(&s->detector, answer == ARBITER_GRANTED, clock_ns());
}

static void act(struct standby *s)
{
    enum detector_action action;

    if (s->arbiter.pid)
        poll_arbiter(s);
    while ((action = detector_run(&s->detector, clock_ns())) != DT_NOTHING)
        switch (action) {
        case DT_ASK:
            ask_arbiter(s);
            break;
        case DT_CANCEL:
            arbiter_cancel(&s->arbiter);
            break;
        case DT_ACTIVATE:
            take_over(s);
            break;
        case DT_NOTHING:
            break;
        }
}

/* --- the thread --- */

static void take_wishes(struct standby *s)
{
    struct error err;
    bool takeover, discard;

    pthread_mutex_lock(&s->lock);
    takeover = s->want_takeover;
    discard = s->want_discard;
    s->want_takeover = s->want_discard = false;
    pthread_mutex_unlock(&s->lock);
    if (takeover && detector_operator(&s->detector, clock_ns(), &err) < 0)
        note(s, "takeover refused: %s", err.text);
    if (discard && s->detector.state == DT_SUSPECT) {
        log_warning(s->cfg->name, "replica thrown away by the operator");
        drop_link(s);
        drop_replica(s);
        detector_goodbye(&s->detector, clock_ns());
    }
}

static void publish(struct standby *s)
{
    struct view *v = &s->view;

    v->state = s->detector.state;
    v->since = s->detector.since;
    v->heard = s->detector.heard;
    memcpy(v->reason, s->detector.reason, sizeof(v->reason));
    if (s->receiver)
        v->epoch = held_checkpoint(s).epoch;
    v->keeps = s->receiver && receiver_keeps(s->receiver);
    v->bytes = s->bytes_before + (s->link ? link_bytes_received(s->link) : 0);
    v->memory_bytes = s->replica ? s->cfg->memory_bytes : 0;
    v->has_disks = s->journal;
    if (s->journal)
        journal_stats(s->journal, &v->disks);
    SCOPED_LOCK(&s->lock);
    s->published = *v;
}

static void check_health(struct standby *s)
{
    static const char *const words[] = {
        [VM_SHUT_DOWN] = "the guest shut down", [VM_DIED] = "the guest's process died"};
    enum vm_health health;
    uint64_t now = clock_ns();

    if (s->detector.state != DT_ACTIVE || !s->replica || now < s->next_health)
        return;
    s->next_health = now + HEALTH_NS;
    health = s->replica->ops->health(s->replica);
    if (health == VM_ALIVE)
        return;
    note(s, "%s on this host", words[health]);
    drop_link(s);
    drop_replica(s);
    mark_active(s, "ended");
    detector_init(&s->detector, s->detector.has_arbiter, s->detector.automatic, now);
}

/* `remusctl verify' on the primary, or synchronising with an image that was here before. */
static void report_checks(struct standby *s)
{
    uint8_t body[PROTO_SMALL_MAX];
    struct iovec iov = {.iov_base = body};
    struct proto_compared c;

    while (s->journal && s->link && s->detector.state != DT_ACTIVE && journal_compared(s->journal, &c)) {
        if (c.count && s->detector.state == DT_READY)
            note(s, "disk %" PRIu32 " differs from the primary's: %" PRIu32 " octets at %" PRIu64
                 ", and perhaps elsewhere; remusctl verify on the primary says where", c.differ[0].disk,
                 c.differ[0].length, c.differ[0].offset);
        iov.iov_len = proto_put_compared(body, &c);
        link_send(s->link, PROTO_COMPARED, 0, &iov, 1); /* a broken link shows in recv */
    }
}

/* Images that cannot be written are no replica: better none, and the primary knows it. */
static void check_disks(struct standby *s)
{
    struct error err;

    if (!s->journal || !s->link || s->detector.state == DT_ACTIVE || journal_check(s->journal, &err) == 0)
        return;
    note(s, "the replica is thrown away: %s", err.text);
    link_send_notice(s->link, PROTO_REFUSE, REFUSE_RESOURCES, err.text);
    drop_link(s);
    drop_replica(s);
    detector_goodbye(&s->detector, clock_ns());
}

/* A daemon before this one may have died with disks that lag behind its journal. */
static void recover_disks(struct standby *s, bool activating)
{
    struct error err;
    int rc = s->cfg->disk_count ? journal_recover(s->cfg->disks, s->cfg->disk_count, activating, &err) : 0;

    if (rc < 0)
        note(s, "%s", err.text);
    else if (rc)
        log_info(s->cfg->name, "the disks have all that was committed from their journal");
}

/* A daemon before this one activated the VM: it runs, and its packets need a way out. */
static void find_active(struct standby *s)
{
    char path[PATH_MAX], word[8] = "";
    struct error err;
    FILE *f;

    run_path(s->cfg, ".active", path, sizeof(path));
    f = fopen(path, "re");
    if (!f && errno == ENOENT) {
        recover_disks(s, false);
        return;
    }
    if (f) {
        if (fscanf(f, "%" SCNx64 " %7s", &s->spent, word) != 2)
            word[0] = '\0'; /* whatever it means, the safe side is that it runs */
        fclose(f);
    }
    if (strcmp(word, "ended") == 0)
        return;
    if (!vm_platform(s->cfg->platform)->running(s->cfg)) {
        recover_disks(s, true);
        note(s, "the VM was taken over here, and its process is gone: start it by its own means");
        mark_active(s, "ended");
        return;
    }
    s->detector.state = DT_ACTIVE;
    if (open_port(s, &err) < 0)
        note(s, "active, but without network: %s", err.text);
    else if (resume_net(s, &err) < 0)
        note(s, "active, but the guest's packets stay held: %s", err.text);
}

static void wait_a_little(struct standby *s)
{
    uint64_t when = clock_ns() + TICK_NS;
    struct timespec ts = {(time_t)(when / NS_PER_S), (long)(when % NS_PER_S)};
    SCOPED_LOCK(&s->lock);

    if (!s->offered && !s->stopping && !s->want_takeover)
        pthread_cond_timedwait(&s->changed, &s->lock, &ts);
}

static bool must_stop(struct standby *s)
{
    SCOPED_LOCK(&s->lock);

    return s->stopping;
}

static void *run(void *arg)
{
    struct standby *s = arg;

    find_active(s);
    while (!must_stop(s)) {
        take_offer(s);
        take_wishes(s);
        if (s->link)
            receive(s);
        else
            wait_a_little(s);
        act(s);
        report_checks(s);
        check_disks(s);
        check_health(s);
        publish(s);
    }
    arbiter_cancel(&s->arbiter);
    if (s->link)
        link_send_notice(s->link, PROTO_GOODBYE, 0, "remus-backupd stops");
    drop_link(s);
    drop_replica(s);
    return NULL;
}

/* --- from other threads --- */

struct standby *standby_start(const struct vm_config *cfg, struct error *err)
{
    struct standby *s = calloc(1, sizeof(*s));
    pthread_condattr_t attr;
    int rc;

    if (!s) {
        error_set(err, "no memory");
        return NULL;
    }
    s->cfg = cfg;
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &attr);
    pthread_condattr_destroy(&attr);
    detector_init(&s->detector, cfg->arbiter[0] != '\0', cfg->takeover == TAKEOVER_AUTOMATIC,
                  clock_ns());
    publish(s);
    rc = pthread_create(&s->thread, NULL, run, s);
    if (rc) {
        error_set(err, "%s: cannot start a thread: %s", cfg->name, strerror(rc));
        free(s);
        return NULL;
    }
    return s;
}

const char *standby_vm(const struct standby *s)
{
    return s->cfg->name;
}

void standby_offer(struct standby *s, struct link *link, const struct proto_hello *hello)
{
    struct error err;

    pthread_mutex_lock(&s->lock);
    if (!s->offered && !s->stopping) {
        s->offered = link;
        s->offer = *hello;
        link = NULL;
        pthread_cond_signal(&s->changed);
    }
    pthread_mutex_unlock(&s->lock);
    if (link) {
        error_set(&err, "%s: another primary is just being answered: try again", s->cfg->name);
        refuse(link, REFUSE_LATER, &err);
    }
}

int standby_takeover(struct standby *s, struct error *err)
{
    struct detector copy;
    SCOPED_LOCK(&s->lock);

    /* The same question to a copy, so that the operator hears a refusal at once. */
    detector_init(&copy, s->cfg->arbiter[0] != '\0', false, clock_ns());
    copy.state = s->published.state;
    copy.heard = s->published.heard;
    if (detector_operator(&copy, clock_ns(), err) < 0)
        return -1;
    s->want_takeover = true;
    pthread_cond_signal(&s->changed);
    return 0;
}

int standby_discard(struct standby *s, struct error *err)
{
    SCOPED_LOCK(&s->lock);

    if (s->published.state != DT_SUSPECT)
        return error_set(err, "%s is %s: only the replica of a vanished primary can be thrown away",
                         s->cfg->name, detector_name(s->published.state));
    s->want_discard = true;
    pthread_cond_signal(&s->changed);
    return 0;
}

static json_t *ms(uint64_t ns)
{
    return json_real((double)(ns / 1000) / 1000);
}

static json_t *takeover_status(const struct view *v)
{
    const struct takeover_times *t = &v->takeover;

    if (!t->running)
        return json_null();
    return json_pack("{s:s, s:o, s:o, s:o, s:I}", "reason", v->reason, "detected_ms",
                     ms(t->suspected - t->last_heard), "activate_ms", ms(t->running - t->decided),
                     "total_ms", ms(t->running - t->suspected), "epoch", (json_int_t)t->epoch);
}

/* in_step: disk and memory could be activated together. */
static json_t *disks_status(const struct view *v)
{
    const struct journal_stats *d = &v->disks;

    if (!v->has_disks)
        return json_null();
    return json_pack("{s:b, s:I, s:I, s:I, s:I, s:o}", "in_step",
                     v->epoch && d->committed_epoch == v->epoch, "committed_epoch",
                     (json_int_t)d->committed_epoch, "applied_epoch", (json_int_t)d->applied_epoch,
                     "journal_bytes", (json_int_t)d->used_bytes, "journal_max_bytes",
                     (json_int_t)d->max_bytes, "full_ms", ms(d->waited_ns));
}

static const char *advice(const struct standby *s, const struct view *v)
{
    switch (v->state) {
    case DT_SUSPECT:
        if (s->cfg->arbiter[0])
            return "the primary is lost and the arbiter has not granted a takeover; it is asked again";
        return "the primary is lost. Make certain that the guest does not run there (power it off), then: "
               "remusctl takeover";
    case DT_FAILED:
        return "the replica could not be activated and is gone; start the VM from its own means";
    case DT_WAITING:
        return "waits for a primary: remusctl protect there";
    case DT_READY:
        return v->keeps ? "the primary sends everything anew; should it be lost meanwhile, the checkpoint from before "
                          "that is taken over"
                        : NULL;
    default:
        return NULL;
    }
}

json_t *standby_status(struct standby *s)
{
    uint64_t now = clock_ns();
    const char *todo;
    struct view v;
    json_t *o;

    pthread_mutex_lock(&s->lock);
    v = s->published;
    pthread_mutex_unlock(&s->lock);
    todo = advice(s, &v);
    o = json_pack("{s:s, s:s, s:s, s:f, s:s, s:s, s:I, s:I, s:I, s:I, s:s}", "vm", s->cfg->name,
                  "role", "backup", "state", detector_name(v.state), "since_s",
                  (double)(now - v.since) / 1e9, "primary", v.primary, "platform",
                  s->cfg->platform, "epoch", (json_int_t)v.epoch, "checkpoints",
                  (json_int_t)v.checkpoints, "bytes_received", (json_int_t)v.bytes, "memory_bytes",
                  (json_int_t)v.memory_bytes, "takeover_policy",
                  s->cfg->takeover == TAKEOVER_AUTOMATIC ? "automatic" : "manual");
    json_object_set_new(o, "last_heard_ms", v.heard ? ms(now - v.heard) : json_null());
    json_object_set_new(o, "takeover", takeover_status(&v));
    json_object_set_new(o, "disks", disks_status(&v));
    json_object_set_new(o, "arbiter",
                        s->cfg->arbiter[0] ? json_sprintf("exec %s", s->cfg->arbiter)
                                           : json_string("none"));
    json_object_set_new(o, "last_error",
                        v.last_error[0] ? json_string(v.last_error) : json_null());
    json_object_set_new(o, "last_error_s",
                        v.last_error[0] ? json_real((double)(now - v.last_error_at) / 1e9)
                                        : json_null());
    json_object_set_new(o, "advice", todo ? json_string(todo) : json_null());
    return o;
}

void standby_stop(struct standby *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->stopping = true;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    if (s->offered)
        link_free(s->offered);
    free(s);
}
