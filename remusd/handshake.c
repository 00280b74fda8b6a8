/* SPDX-License-Identifier: GPL-2.0-or-later */
/* HELLO and what comes back. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "protection-impl.h"

#define CONNECT_NS NS_PER_S
#define WELCOME_SILENCE_NS (5 * NS_PER_S) /* the backup sends heartbeats while it prepares the replica */

/* Waits for a backup that says nothing delay no degrade policy. */
static uint64_t until(const struct protection *p, uint64_t at)
{
    uint64_t act = lifecycle_degrade_at(&p->lc);

    return at < act ? at : act;
}

/* --- the handshake --- */

static int send_hello(struct protection *p, struct link *link, uint32_t flags)
{
    struct proto_hello hello = {
        .version_min = PROTO_VERSION_MIN,
        .version_max = PROTO_VERSION_MAX,
        .session = p->session,
        .flags = flags,
        .pages = p->vm ? p->vm->pages : p->cfg->memory_bytes / PAGE_SIZE,
        .page_size = PAGE_SIZE,
        .heartbeat_ms = p->cfg->heartbeat_ms,
        .timeout_ms = p->cfg->timeout_ms,
    };
    uint8_t body[PROTO_SMALL_MAX];
    struct iovec iov = {.iov_base = body};

    snprintf(hello.vm, sizeof(hello.vm), "%s", p->cfg->name);
    snprintf(hello.platform, sizeof(hello.platform), "%s", p->cfg->platform);
    snprintf(hello.profile, sizeof(hello.profile), "%s", p->vm ? p->vm->profile : "");
    if (p->engine.disk) {
        hello.features |= FEATURE_DISKS | FEATURE_DISK_CHECKS | FEATURE_BLOCKS;
        hello.required |= FEATURE_DISKS;
        hello.disk_count = disk_count(p->engine.disk);
        for (unsigned i = 0; i < hello.disk_count; i++)
            hello.disks[i] = (struct proto_disk){disk_infos(p->engine.disk)[i].size,
                                                 disk_infos(p->engine.disk)[i].id};
    }
    if (p->vm && p->vm->description.len)
        hello.features |= FEATURE_MACHINE, hello.required |= FEATURE_MACHINE;
    iov.iov_len = proto_put_hello(body, &hello);
    if (link_send(link, PROTO_HELLO, 0, &iov, 1) < 0)
        return -1;
    if (!(hello.features & FEATURE_MACHINE) || flags & HELLO_QUERY)
        return 0;
    iov = (struct iovec){p->vm->description.data, p->vm->description.len};
    return link_send(link, PROTO_MACHINE, 0, &iov, 1);
}

static enum answer await_welcome(struct protection *p, struct link *link, bool query,
                                 struct proto_welcome *welcome, struct error *err)
{
    unsigned disks = p->engine.disk ? disk_count(p->engine.disk) : 0;

    struct proto_notice notice;
    struct record rec;

    do {
        uint64_t heard = link_last_heard(link), silent = heard + p->cfg->timeout_ms * NS_PER_MS;
        uint64_t deadline = until(p, heard + WELCOME_SILENCE_NS);
        enum link_result r = link_recv(link, &rec, deadline > silent ? deadline : silent, err);

        if (r == LINK_CLOSED)
            error_set(err, "it closed the connection");
        else if (r == LINK_TIMEOUT)
            error_set(err, "it did not answer; is that a remus-backupd?");
        if (r != LINK_RECORD)
            return ANSWER_FAILED;
        if (rec.type == PROTO_DISKS && disks) {
            if (proto_get_disks(p->engine.disk_base, disks, rec.body, rec.length, err) < 0)
                return ANSWER_FAILED;
            disks = 0;
            rec.type = PROTO_HEARTBEAT;
        }
    } while (rec.type == PROTO_HEARTBEAT);
    if (rec.type == PROTO_WELCOME && disks && !query) {
        error_set(err, "it did not say what it has of the disks");
        return ANSWER_FAILED;
    }
    if (rec.type == PROTO_WELCOME)
        return proto_get_welcome(welcome, rec.body, rec.length, err) < 0 ? ANSWER_FAILED
                                                                         : ANSWER_WELCOME;
    if (rec.type == PROTO_REFUSE) {
        if (proto_get_notice(&notice, rec.body, rec.length, err) < 0)
            return ANSWER_FAILED;
        error_set(err, "%s", notice.text);
        return notice.code == REFUSE_ACTIVE ? ANSWER_ACTIVE
               : notice.code == REFUSE_BUSY || notice.code == REFUSE_LATER ? ANSWER_TAKEN
                                                                           : ANSWER_REFUSED;
    }
    error_set(err, "it answered with %s", proto_type_name(rec.type));
    return ANSWER_FAILED;
}

enum answer protection_dial(struct protection *p, uint32_t flags, struct link **link,
                        struct proto_welcome *welcome, struct error *err)
{
    uint64_t now = clock_ns(), deadline = until(p, now + CONNECT_NS);
    struct chan *chan = tcp_connect(p->cfg->backup, deadline > now ? deadline - now : 0, err);
    enum answer answer = ANSWER_FAILED;

    *link = NULL;
    if (!chan)
        return answer;
    *link = link_new(chan);
    if (!*link || send_hello(p, *link, flags) < 0)
        error_set(err, "%s", strerror(errno));
    else
        answer = await_welcome(p, *link, flags & HELLO_QUERY, welcome, err);
    if (answer != ANSWER_WELCOME) {
        error_prefix(err, "backup %s", p->cfg->backup);
        link_free(*link);
        *link = NULL;
    }
    return answer;
}
