/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The VM runs here: the way to there, and what a daemon that comes later must know of it. */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "common/clock.h"
#include "common/fault.h"
#include "common/log.h"
#include "common/run-file.h"
#include "disk/queue.h"
#include "disk/server.h"
#include "standby-impl.h"

#define RESETS_LAST_S 900 /* as long as a port goes on with them */

/*
 * RUN_DIR/NAME.active: "SESSION runs" while the guest of that session runs here, "SESSION ended" afterwards.  A daemon
 * that starts anew must know: what the primary may still hold of that guest is void for ever (R7).
 */
void standby_mark_active(struct standby *s, const char *word)
{
    struct error err;
    char text[32];
    int n = snprintf(text, sizeof(text), "%016" PRIx64 " %s\n", s->spent, word);

    if (run_file_write(s->cfg, ".active", text, (size_t)n, &err) < 0)
        standby_note(s, "%s; a remus-backupd that is restarted will not know that the VM runs here", err.text);
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
        standby_note(s, "cannot keep the list of connections to reset, should remus-backupd end now: %s", err.text);
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

/* --- takeover --- */

static void announce(struct standby *s, const struct receiver_checkpoint *ck)
{
    struct error err;

    /* R3: without the list of open flows none may go on; better no network than a wrong one */
    if (s->port->ops->activate(s->port, ck->net, ck->net_length, &err) < 0)
        standby_note(s, "takeover: the network state is of no use, the guest's packets stay held: %s",
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

void standby_take_over(struct standby *s)
{
    struct receiver_checkpoint ck = standby_held(s);
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
    standby_mark_active(s, "runs"); /* before it can run: whoever comes after a crash must not welcome a primary */
    ok = activate_disks(s, ck.epoch, &err) == 0 &&
         s->replica->ops->activate(s->replica, ck.state, ck.state_length, &err) == 0;
    detector_activated(&s->detector, ok, clock_ns());
    if (!ok) {
        standby_note(s, "takeover of checkpoint %" PRIu64 " failed: %s", ck.epoch, err.text);
        if (s->link)
            link_send_notice(s->link, PROTO_REFUSE, REFUSE_RESOURCES, err.text);
        standby_drop_link(s);
        standby_drop_replica(s);
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
    if (s->replica->ops->settle)
        s->replica->ops->settle(s->replica);
}

/* A daemon before this one may have died with disks that lag behind its journal. */
static void recover_disks(struct standby *s, bool activating)
{
    struct error err;
    int rc = s->cfg->disk_count ? journal_recover(s->cfg->disks, s->cfg->disk_count, activating, &err) : 0;

    if (rc < 0)
        standby_note(s, "%s", err.text);
    else if (rc)
        log_info(s->cfg->name, "the disks have all that was committed from their journal");
}

static int learn(struct standby *s, const struct vm_ops *ops, struct error *err)
{
    struct vm_facts facts;

    if (!ops->facts)
        return 0;
    return ops->facts(s->section, &facts, err) < 0 ? -1 : vm_learn(&s->learned, s->section, &facts, err);
}

/* A daemon before this one activated the VM: it runs, and its packets need a way out. */
void standby_find_active(struct standby *s)
{
    const struct vm_ops *ops = vm_platform(s->cfg->platform);
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
    if (!ops->running(s->cfg)) {
        recover_disks(s, true);
        standby_note(s, "the guest that was taken over here has ended while no remus-backupd ran");
        s->view.ended = true;
        standby_mark_active(s, "ended");
        return;
    }
    s->detector.state = DT_ACTIVE;
    if (learn(s, ops, &err) < 0 || standby_open_port(s, &err) < 0)
        standby_note(s, "active, but without network: %s", err.text);
    else if (resume_net(s, &err) < 0)
        standby_note(s, "active, but the guest's packets stay held: %s", err.text);
}
