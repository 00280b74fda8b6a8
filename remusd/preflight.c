/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/link.h"
#include "common/random.h"
#include "disk/image.h"
#include "preflight.h"
#include "vm/preflight.h"
#include "vm/vm.h"

#define CONNECT_NS NS_PER_S
#define SILENCE_NS (4 * NS_PER_S)     /* the backup sends heartbeats while it looks */
#define EVERYTHING_NS (8 * NS_PER_S)  /* remusctl waits for 10 s */

/* --- measuring --- */

#define PINGS 8u
#define RATE_NS (500 * NS_PER_MS)
#define CHUNK 16384u                  /* octets in a PROBE that loads the link */
#define CHUNKS_MAX 1024u              /* 16 MiB in all */
#define QUEUE_SHARE 8u                /* of timeout: so much may the probes delay what else is on the link, heartbeats above all */

_Static_assert(PINGS + CHUNKS_MAX <= PROTO_PROBES_MAX, "the backup answers them all");

struct measured {
    uint64_t round_trip_ns;           /* median */
    int64_t clock_ahead_ns;           /* the backup's clock beyond ours ... */
    uint64_t clock_within_ns;         /* ... give or take so much */
    double octets_s;
};

/* The next record that is no heartbeat, whoever sends how many of these. */
static int next_record(struct link *link, struct record *rec, uint64_t deadline, struct error *err)
{
    for (;;) {
        uint64_t silence = clock_ns() + SILENCE_NS;
        enum link_result r = link_recv(link, rec, silence < deadline ? silence : deadline, err);

        if (r == LINK_CLOSED)
            return error_set(err, "it closed the connection");
        if (r == LINK_TIMEOUT || clock_ns() > deadline)
            return error_set(err, "it does not answer; is that a remus-backupd?");
        if (r == LINK_CORRUPT || rec->type != PROTO_HEARTBEAT)
            return r == LINK_CORRUPT ? -1 : 0;
    }
}

static int send_probe(struct link *link, const uint8_t *octets, size_t count, struct error *err)
{
    struct iovec iov = {(void *)octets, count};

    return link_send(link, PROTO_PROBE, 0, &iov, 1) < 0 ? error_set(err, "%s", strerror(errno)) : 0;
}

static int take_answer(struct link *link, struct proto_probe *answer, uint64_t deadline, struct error *err)
{
    struct record rec;

    if (next_record(link, &rec, deadline, err) < 0)
        return -1;
    if (rec.type != PROTO_PROBE)
        return error_set(err, "it answered a PROBE with %s", proto_type_name(rec.type));
    return proto_get_probe(answer, rec.body, rec.length, err);
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* Round trips, and from the fastest of them the clocks' difference, as NTP does (RFC 5905, 8: offset and delay). */
static int ping(struct link *link, struct measured *m, uint64_t deadline, struct error *err)
{
    uint64_t took[PINGS], best = UINT64_MAX;
    uint8_t octets[16] = {0};

    for (unsigned i = 0; i < PINGS; i++) {
        uint64_t began = clock_ns(), sent = clock_realtime_ns(), came;
        struct proto_probe there;

        if (send_probe(link, octets, sizeof(octets), err) < 0 || take_answer(link, &there, deadline, err) < 0)
            return -1;
        came = clock_realtime_ns();
        took[i] = clock_ns() - began;
        if (took[i] >= best)
            continue;
        best = took[i];
        m->clock_within_ns = best / 2;
        /* Each difference may be of any size, they come from outside: halved before they are added. */
        m->clock_ahead_ns = (int64_t)(there.received - sent) / 2 + (int64_t)(there.sent - came) / 2;
    }
    qsort(took, PINGS, sizeof(*took), by_size);
    m->round_trip_ns = took[PINGS / 2];
    return 0;
}

/*
 * Loads the link for RATE_NS.  As many octets are under way as it is seen to carry in a round trip and 1/QUEUE_SHARE of timeout:
 * the window grows from one chunk as the rate does (the idea is BBR's), and a protection on the same link is not starved.
 */
static int load(struct link *link, struct measured *m, const struct vm_config *cfg, uint64_t deadline, struct error *err)
{
    uint64_t spare = m->round_trip_ns + cfg->timeout_ms * NS_PER_MS / QUEUE_SHARE;
    uint64_t began = clock_ns(), middle = 0, now = began;
    unsigned sent = 0, answered = 0, at_middle = 0;
    double best = 0;
    uint8_t octets[CHUNK];
    struct {
        uint64_t at;
        unsigned answered;
    } *chunks = calloc(CHUNKS_MAX, sizeof(*chunks));
    int rc = chunks ? 0 : error_set(err, "no memory");

    for (size_t i = 0; i < sizeof(octets); i += 8) /* a tunnel that compresses is not to look fast */
        memcpy(octets + i, &(uint64_t){random_id()}, 8);
    while (rc == 0 && (answered < sent || (now < began + RATE_NS && sent < CHUNKS_MAX))) {
        bool more = now < began + RATE_NS && sent < CHUNKS_MAX;
        struct proto_probe answer;

        if (more && (sent == answered || (double)(sent - answered + 1) * CHUNK <= best * (double)spare / 1e9)) {
            chunks[sent].at = clock_ns();
            chunks[sent++].answered = answered;
            rc = send_probe(link, octets, sizeof(octets), err);
        } else {
            rc = take_answer(link, &answer, deadline, err);
            now = clock_ns();
            if (rc == 0) {
                double rate = (answered + 1 - chunks[answered].answered) * (double)CHUNK / ((double)(now - chunks[answered].at + 1) / 1e9);

                best = rate > best ? rate : best;
                answered++;
            }
            if (!middle && now > began + RATE_NS / 2)
                middle = now, at_middle = answered;
        }
    }
    free(chunks);
    if (!middle || answered - at_middle < 8) /* few and slow, or all in no time */
        middle = began, at_middle = 0;
    m->octets_s = (answered - at_middle) * (double)CHUNK / ((double)(now - middle + 1) / 1e9);
    return rc;
}

/* --- judging --- */

#define CLOCKS_NS (128 * NS_PER_MS)  /* beyond it ntpd sets a clock where it would have slewed it (its step threshold): hosts whose
                                      * clocks are kept are nearer, and at a takeover the guest's clock jumps by it */
#define ROUND_TRIPS 4u               /* in timeout besides a heartbeat: a segment lost and sent again, and as much for a busy host */
#define CHECKPOINT_LEAST 32768u      /* octets: what an idle Linux guest's 120 dirty pages come to, once compressed */

static json_t *lack(json_t *lacks, const char *host)
{
    json_t *last = json_array_get(lacks, json_array_size(lacks) - 1);

    json_object_set_new(last, "host", json_string(host));
    return last;
}

static double ms(double ns)
{
    return ns / 1e6;
}

static void judge(const struct vm_config *cfg, const struct measured *m, double needs, json_t *lacks)
{
    uint64_t ahead = m->clock_ahead_ns < 0 ? 0 - (uint64_t)m->clock_ahead_ns : (uint64_t)m->clock_ahead_ns;
    uint64_t least = cfg->heartbeat_ms * NS_PER_MS + ROUND_TRIPS * m->round_trip_ns;
    double in_interval = m->octets_s * cfg->interval_ms / 1000;
    char remedy[128];

    if (ahead > CLOCKS_NS + m->clock_within_ns) {
        preflight_lacks(lacks, "synchronise both with NTP (apt install chrony)",
                        "the backup's clock is %.0f ms %s the primary's: the guest's would jump by that at a takeover",
                        ms((double)ahead), m->clock_ahead_ns < 0 ? "behind" : "ahead of");
        lack(lacks, "link");
    }
    if (cfg->timeout_ms * NS_PER_MS < least) {
        snprintf(remedy, sizeof(remedy), "timeout = %.0f or more in its section on the primary, or a shorter way", ceil(ms((double)least)));
        preflight_lacks(lacks, remedy,
                        "a round trip takes %.1f ms: with heartbeat = %u and timeout = %u one lost segment looks like a lost host",
                        ms((double)m->round_trip_ns), cfg->heartbeat_ms, cfg->timeout_ms);
        lack(lacks, "link");
    }
    if (m->round_trip_ns > 2 * cfg->interval_ms * NS_PER_MS) {
        snprintf(remedy, sizeof(remedy), "interval = %.0f or more, or a shorter way", ceil(ms((double)m->round_trip_ns) / 2));
        preflight_lacks(lacks, remedy, "a round trip takes %.1f ms: with two checkpoints under way at most, they cannot follow each other every %u ms",
                        ms((double)m->round_trip_ns), cfg->interval_ms);
        lack(lacks, "link");
    }
    if (in_interval < CHECKPOINT_LEAST) {
        snprintf(remedy, sizeof(remedy), "interval = %.0f or more, or a faster link", ceil(CHECKPOINT_LEAST / m->octets_s * 1000));
        preflight_lacks(lacks, remedy,
                        "the link carries %.1f KiB in an interval of %u ms; a checkpoint of a guest that does little has about %u KiB",
                        in_interval / 1024, cfg->interval_ms, CHECKPOINT_LEAST / 1024);
        lack(lacks, "link");
    }
    if (needs > m->octets_s) {
        preflight_lacks(lacks, "a longer interval, or a faster link", "what the guest's checkpoints send comes to %.2f MiB/s, the link carries %.2f",
                        needs / 1048576, m->octets_s / 1048576);
        lack(lacks, "link");
    }
}

/* --- asking --- */

static void check_images(const struct vm_config *cfg, struct proto_hello *hello, json_t *lacks)
{
    static const char *const words[] = {[IMAGE_REPLICA] = "a replica", [IMAGE_STALE] = "stale: the guest went on elsewhere"};
    char remedy[256];

    hello->features |= FEATURE_DISKS;
    hello->disk_count = cfg->disk_count;
    for (unsigned i = 0; i < cfg->disk_count; i++) {
        struct proto_disk *disk = &hello->disks[i];
        struct image_record rec;
        struct error err;
        int found = image_read(cfg->disks[i], &rec, &err);

        if (image_size(cfg->disks[i], 0, &disk->size, NULL) < 0)
            disk->size = DISK_SIZE_UNKNOWN;
        disk->id = found > 0 ? rec.id : random_id();
        if (found < 0) {
            preflight_lacks(lacks, "mend or remove it", "%s", err.text);
            lack(lacks, "primary");
        } else if (found && rec.role != IMAGE_VALID) {
            snprintf(remedy, sizeof(remedy), "copy the valid one, or remove %.150s.remus to use it as it is", cfg->disks[i]);
            preflight_lacks(lacks, remedy, "disk \"%s\" is %s", cfg->disks[i], words[rec.role]);
            lack(lacks, "primary");
        }
    }
}

static int send_hello(struct link *link, const struct vm_config *cfg, json_t *lacks, struct error *err)
{
    const struct vm_ops *ops = vm_platform(cfg->platform);
    __attribute__((cleanup(buffer_free))) struct buffer description = {0};
    struct vm_learned learned;
    struct vm_facts facts;
    struct proto_hello hello = {
        .version_min = PROTO_VERSION_MIN,
        .version_max = PROTO_VERSION_MAX,
        .features = FEATURE_PREFLIGHT,
        .required = FEATURE_PREFLIGHT,
        .session = random_id(),
        .flags = HELLO_PREFLIGHT,
        .pages = cfg->memory_bytes / PAGE_SIZE,
        .page_size = PAGE_SIZE,
        .heartbeat_ms = cfg->heartbeat_ms,
        .timeout_ms = cfg->timeout_ms,
    };
    uint8_t body[PROTO_SMALL_MAX];
    struct iovec iov;

    vm_learned_init(&learned, cfg);
    if (ops && ops->facts && ops->facts(cfg, &facts, err) == 0) /* if not, that is on the list */
        vm_learn(&learned, cfg, &facts, err);
    snprintf(hello.vm, sizeof(hello.vm), "%s", cfg->name);
    snprintf(hello.platform, sizeof(hello.platform), "%s", cfg->platform);
    snprintf(hello.mac, sizeof(hello.mac), "%s", learned.cfg.mac);
    snprintf(hello.guest_bridge, sizeof(hello.guest_bridge), "%s", learned.cfg.guest_bridge);
    snprintf(hello.vif, sizeof(hello.vif), "%s", cfg->vif);
    snprintf(hello.netbuf, sizeof(hello.netbuf), "%s", config_netbuf_name(cfg->netbuf));
    if (ops && ops->describe && ops->describe(cfg, &hello.pages, hello.profile, &description, err) < 0) {
        preflight_lacks(lacks, "mend that first", "what the guest is cannot be told to the backup: %s", err->text);
        lack(lacks, "primary");
    }
    if (cfg->disk_count)
        check_images(cfg, &hello, lacks);
    if (description.len)
        hello.features |= FEATURE_MACHINE;
    iov = (struct iovec){body, proto_put_hello(body, &hello)};
    if (link_send(link, PROTO_HELLO, 0, &iov, 1) < 0)
        return error_set(err, "%s", strerror(errno));
    iov = (struct iovec){description.data, description.len};
    if (description.len && link_send(link, PROTO_MACHINE, 0, &iov, 1) < 0)
        return error_set(err, "%s", strerror(errno));
    return 0;
}

static int take_refusal(const struct record *rec, struct error *err)
{
    struct proto_notice notice;

    if (proto_get_notice(&notice, rec->body, rec->length, err) < 0)
        return -1;
    return notice.code == REFUSE_FEATURE ? error_set(err, "its remus-backupd is older and knows no preflight over the link: install the same version")
                                         : error_set(err, "it refuses: %s", notice.text);
}

/* The backup's list, up to its WELCOME. */
static int take_lacks(struct link *link, json_t *lacks, uint64_t deadline, struct error *err)
{
    struct proto_welcome welcome;
    struct proto_lack there;
    struct record rec;

    for (unsigned n = 0; next_record(link, &rec, deadline, err) == 0; n++)
        switch (rec.type) {
        case PROTO_LACK:
            if (n == PROTO_LACKS_MAX)
                return error_set(err, "it lacks more than %u things", PROTO_LACKS_MAX);
            if (proto_get_lack(&there, rec.body, rec.length, err) < 0)
                return -1;
            preflight_lacks(lacks, there.remedy, "%s", there.what);
            lack(lacks, "backup");
            break;
        case PROTO_WELCOME:
            return proto_get_welcome(&welcome, rec.body, rec.length, err);
        case PROTO_REFUSE:
            return take_refusal(&rec, err);
        default:
            return error_set(err, "it answered with %s", proto_type_name(rec.type));
        }
    return -1;
}

static int ask(struct link *link, const struct vm_config *cfg, struct measured *m, json_t *lacks, struct error *err)
{
    uint64_t deadline = clock_ns() + EVERYTHING_NS;

    link_limit_sends(link, deadline);
    if (send_hello(link, cfg, lacks, err) < 0 || take_lacks(link, lacks, deadline, err) < 0 || ping(link, m, deadline, err) < 0)
        return -1;
    return load(link, m, cfg, deadline, err);
}

json_t *preflight_both(const struct vm_config *cfg, const char *to, double needs)
{
    json_t *report = preflight(cfg, true), *lacks = json_object_get(report, "lacks"), *found = json_null();
    struct measured m = {0};
    struct error err;
    struct chan *chan = tcp_connect(to, CONNECT_NS, &err);
    struct link *link = chan ? link_new(chan) : NULL;
    int rc = link ? ask(link, cfg, &m, lacks, &err) : -1;

    link_free(link);
    if (rc < 0) {
        if (chan) /* tcp_connect's errors have it */
            error_prefix(&err, "backup %s", to);
        preflight_lacks(lacks, "see that remus-backupd runs there, that the address is right and the port not filtered", "%s", err.text);
        lack(lacks, "backup");
    } else {
        judge(cfg, &m, needs, lacks);
        found = json_pack("{s:f, s:f, s:f}", "round_trip_ms", ms((double)m.round_trip_ns), "clock_ahead_ms",
                          ms((double)m.clock_ahead_ns), "mib_s", m.octets_s / 1048576);
    }
    json_object_set_new(report, "backup", json_string(to));
    json_object_set_new(report, "link", found);
    return report;
}
