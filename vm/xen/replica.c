/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/run-file.h"
#include "domain.h"
#include "facts.h"
#include "feed.h"
#include "vm/preflight.h"
#include "xen.h"

#define PIPE_OCTETS (16 << 20)
#define PREPARE_NS (60 * NS_PER_S) /* for the restoring domain to have its memory */
#define ACTIVATE_NS (60 * NS_PER_S)
#define END_NS (10 * NS_PER_S) /* for a restore without its end to give up */

struct xen_replica {
    struct replica replica;
    struct xen_domain domain;
    const struct vm_config *cfg;
    pid_t restore;      /* the program; 0 none */
    int stream, answer; /* pipes to and from it */
    int log;
    bool active;
    bool pv;            /* memory is a copy of ours, which the domain is fed from */
    struct xen_feed feed;
    struct vm_facts facts;
};

static struct xen_replica *of(struct replica *r)
{
    return (struct xen_replica *)r;
}

extern char **environ;

/* The program that restores: stdin is the stream, stdout its two lines of answer, 3 the
 * configuration. */
static int start_restore(struct xen_replica *x, const struct xen_machine *m, struct error *err)
{
    const char *libexec = getenv("REMUS_LIBEXEC");
    char program[PATH_MAX], log[PATH_MAX];
    cleanup_close int config = memfd_create("remus-xen-config", MFD_CLOEXEC);
    char *argv[] = {program, (char *)x->cfg->name, NULL};
    int in[2] = {-1, -1}, out[2] = {-1, -1}, rc;
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t set;

    snprintf(program, sizeof(program), "%s/" XEN_RESTORE_PROGRAM,
             libexec ? libexec : PKGLIBEXECDIR);
    run_path(x->cfg, ".restore.log", log, sizeof(log));
    x->log = open(log, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (x->log < 0)
        return error_set(err, "%s: %s", log, strerror(errno));
    if (config < 0 || write(config, m->config, m->config_length) != (ssize_t)m->config_length ||
        lseek(config, 0, SEEK_SET) < 0 || pipe2(in, O_CLOEXEC) < 0)
        return error_set(err, "%s: %s", XEN_RESTORE_PROGRAM, strerror(errno));
    x->stream = in[1];
    if (pipe2(out, O_CLOEXEC) < 0) {
        close(in[0]);
        return error_set(err, "%s: %s", XEN_RESTORE_PROGRAM, strerror(errno));
    }
    x->answer = out[0];
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, in[0], 0);
    posix_spawn_file_actions_adddup2(&files, out[1], 1);
    posix_spawn_file_actions_adddup2(&files, x->log, 2);
    posix_spawn_file_actions_adddup2(&files, config, 3);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setflags(&attr,
                             POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
    sigemptyset(&set);
    posix_spawnattr_setsigmask(&attr, &set);
    sigfillset(&set);
    posix_spawnattr_setsigdefault(&attr, &set);
    rc = posix_spawn(&x->restore, program, &files, &attr, argv, environ);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&files);
    close(in[0]);
    close(out[1]);
    if (rc) {
        x->restore = 0;
        return error_set(err, "%s: %s (REMUS_LIBEXEC names its folder)", program, strerror(rc));
    }
    fcntl(x->stream, F_SETFL, O_NONBLOCK);
    fcntl(x->stream, F_SETPIPE_SZ, PIPE_OCTETS); /* the more a checkpoint can leave there the better */
    return 0;
}

static int restore_failed(struct xen_replica *x, struct error *err)
{
    error_set(err, "restoring the domain failed");
    return run_log_quote(x->log, err);
}

static int wait_for_room(struct xen_replica *x, uint64_t deadline, struct error *err)
{
    struct pollfd p = {.fd = x->stream, .events = POLLOUT};

    if (clock_ns() > deadline)
        return error_set(err, "restoring the domain takes too long");
    poll(&p, 1, 100);
    return 0;
}

static int feed(struct xen_replica *x, const uint8_t *data, size_t len, uint64_t deadline,
                struct error *err)
{
    while (len) {
        ssize_t n = write(x->stream, data, len);

        if (n > 0) {
            data += n;
            len -= (size_t)n;
        } else if (errno == EAGAIN) {
            if (wait_for_room(x, deadline, err) < 0)
                return -1;
        } else if (errno != EINTR) {
            return restore_failed(x, err);
        }
    }
    return 0;
}

static int feed_pages(struct xen_replica *x, const struct xen_machine *m, uint64_t deadline,
                      struct error *err)
{
    __attribute__((cleanup(buffer_free))) struct buffer b = {0};
    uint64_t pfns[STREAM_PAGES_MAX];

    if (stream_put_begin(&b) || buffer_append(&b, m->head, m->head_length))
        return error_set(err, "no memory");
    for (unsigned i = 0; i < m->range_count; i++)
        for (uint64_t done = 0; done < m->ranges[i].count;) {
            uint64_t left = m->ranges[i].count - done;
            unsigned n = left < STREAM_PAGES_MAX ? (unsigned)left : STREAM_PAGES_MAX;

            for (unsigned k = 0; k < n; k++)
                pfns[k] = m->ranges[i].first + done + k;
            if (stream_put_pages(&b, pfns, n, NULL) < 0)
                return error_set(err, "no memory");
            if (feed(x, b.data, b.len, deadline, err) < 0)
                return -1;
            buffer_clear(&b);
            done += n;
        }
    return 0;
}

/* The domain has all its pages as soon as the restore has read the last of feed_pages. */
static int wait_for_memory(struct xen_replica *x, uint64_t want, uint64_t deadline,
                           struct error *err)
{
    char name[CONFIG_NAME_MAX + sizeof(XEN_REPLICA_SUFFIX)];
    xc_dominfo_t info;

    snprintf(name, sizeof(name), "%s" XEN_REPLICA_SUFFIX, x->cfg->name);
    for (;; clock_sleep_until(clock_ns() + 5 * NS_PER_MS)) {
        if (x->domain.id == 0)
            x->domain.id = xen_domain_find(&x->domain, name);
        if (x->domain.id && xen_domain_info(&x->domain, &info) && info.nr_pages >= want)
            return 0;
        if (waitpid(x->restore, NULL, WNOHANG) == x->restore) {
            x->restore = 0;
            return restore_failed(x, err);
        }
        if (clock_ns() > deadline)
            return error_set(err, "restoring the domain takes too long");
    }
}

static int check_room(struct xen_replica *x, uint64_t pages, const struct xen_machine *m,
                      const char *profile, struct error *err)
{
    uint64_t want = xen_machine_present(m);
    char here[VM_PROFILE_MAX + 1];
    xc_physinfo_t physical;

    if (pages != m->pages)
        return error_set(err, "HELLO has %" PRIu64 " pages, its MACHINE %" PRIu64, pages, m->pages);
    if (xen_profile(&x->domain, m->pv, here, err) < 0)
        return -1;
    if (strcmp(here, profile) != 0)
        return error_set(err, "the primary's domain is \"%.100s\", this host can run \"%s\"",
                         profile, here);
    if (xen_policy_check(&x->domain, m, err) < 0)
        return -1;
    if (x->cfg->memory_bytes && want > x->cfg->memory_bytes / PAGE_SIZE + XEN_ROOM_PAGES)
        return error_set(err,
                         "the domain has %" PRIu64 " MiB, its section here says %" PRIu64
                         ": make memory equal, or leave it out",
                         want >> 8, x->cfg->memory_bytes >> 20);
    if (m->pv && vm_memory_available() / PAGE_SIZE < want)
        return error_set(err, "the replica of a PV domain waits in dom0: it needs %" PRIu64 " MiB there, %" PRIu64 " MiB are available",
                         want >> 8, vm_memory_available() >> 20);
    if (xc_physinfo(x->domain.xc, &physical) < 0)
        return error_set(err, "Xen's memory: %s", strerror(errno));
    if (physical.free_pages < want + XEN_KEEPS_PAGES)
        return error_set(err,
                         "the replica needs %" PRIu64 " MiB, Xen has %" PRIu64
                         " MiB free: give dom0 less "
                         "(dom0_mem=) or end a domain",
                         (want + XEN_KEEPS_PAGES) >> 8, (uint64_t)physical.free_pages >> 8);
    return 0;
}

/* What a dead daemon left behind is in nobody's way; a guest that runs here is. */
static int check_unused(struct xen_replica *x, struct error *err)
{
    char name[CONFIG_NAME_MAX + sizeof(XEN_REPLICA_SUFFIX)];

    if (xen_domain_find(&x->domain, x->cfg->name))
        return error_set(err,
                         "domain \"%s\" itself runs on this host: it cannot hold its own replica",
                         x->cfg->name);
    snprintf(name, sizeof(name), "%s" XEN_REPLICA_SUFFIX, x->cfg->name);
    x->domain.id = xen_domain_find(&x->domain, name);
    if (x->domain.id && xen_domain_destroy(&x->domain, err) < 0)
        return -1;
    x->domain.id = 0;
    return 0;
}

static void unmap(struct xen_replica *x)
{
    if (x->replica.memory)
        munmap(x->replica.memory, x->replica.pages * PAGE_SIZE);
    x->replica.memory = NULL;
}

/* Without the rest of its stream the restore fails, and takes the domain with it. */
static void end_restore(struct xen_replica *x)
{
    uint64_t deadline = clock_ns() + END_NS;

    if (x->stream >= 0)
        close(x->stream);
    x->stream = -1;
    while (x->restore && waitpid(x->restore, NULL, WNOHANG) == 0) {
        if (clock_ns() > deadline)
            kill(x->restore, SIGKILL);
        clock_sleep_until(clock_ns() + 5 * NS_PER_MS);
    }
    x->restore = 0;
}

static void replica_close(struct replica *r)
{
    struct xen_replica *x = of(r);
    xc_dominfo_t info;

    unmap(x);
    feed_free(&x->feed);
    if (!x->active) {
        end_restore(x);
        if (x->domain.id && xen_domain_info(&x->domain, &info) && !info.dying)
            xen_domain_destroy(&x->domain, NULL);
    } else if (x->stream >= 0) {
        close(x->stream);
    }
    if (x->answer >= 0)
        close(x->answer);
    if (x->log >= 0)
        close(x->log);
    xen_domain_disconnect(&x->domain);
    free(x);
}

/* The word, or nothing and the reason in the log. */
static int await_answer(struct xen_replica *x, const char *want, uint64_t deadline, struct error *err)
{
    uint64_t now = clock_ns();
    struct pollfd p = {.fd = x->answer, .events = POLLIN};
    char word[16] = "";

    if (poll(&p, 1, now < deadline ? (int)((deadline - now) / NS_PER_MS) + 1 : 0) <= 0)
        return error_set(err, "restoring the domain takes too long");
    if (read(x->answer, word, sizeof(word) - 1) > 0 && strcmp(word, want) == 0)
        return 0;
    return restore_failed(x, err);
}

static int prepare(struct xen_replica *x, const struct xen_machine *m, struct error *err)
{
    uint64_t deadline = clock_ns() + PREPARE_NS;

    if (start_restore(x, m, err) < 0 || feed_pages(x, m, deadline, err) < 0 ||
        wait_for_memory(x, xen_machine_present(m), deadline, err) < 0 ||
        await_answer(x, "prepared\n", deadline, err) < 0)
        return -1;
    x->replica.memory = xen_domain_map(&x->domain, m->pages, m->ranges, x->pv ? 0 : m->range_count, true, err);
    if (!x->replica.memory)
        return -1;
    if (x->pv && feed_init(&x->feed, x->replica.memory, m->pages) < 0)
        return error_set(err, "no memory");
    if (x->pv)
        x->replica.written = &x->feed.missing;
    xen_facts_of(&x->facts, x->domain.id);
    for (unsigned i = 0; !x->pv && i < m->range_count; i++)
        memset(x->replica.memory + m->ranges[i].first * PAGE_SIZE, 0,
               m->ranges[i].count * PAGE_SIZE);
    return 0;
}

/* What check_room() would refuse, but for the memory that is free: xen_preflight's. */
static void replica_check(const struct vm_config *cfg, uint64_t pages, const char *profile,
                          const struct buffer *description, bool here, json_t *lacks)
{
    char ours[VM_PROFILE_MAX + 1];
    struct xen_machine m = {0};
    struct xen_domain d;
    struct error err;

    (void)pages;
    if (xen_domain_connect(&d, &err) < 0) /* xen_preflight says it */
        return;
    if (xen_machine_get(&m, description->data, description->len, &err) < 0)
        preflight_lacks(lacks, "install the same remusd on both hosts", "%s", err.text);
    else if (xen_profile(&d, m.pv, ours, &err) < 0 || strcmp(ours, profile) != 0)
        preflight_lacks(lacks, "boot the same version of Xen on both hosts",
                        "the primary's domain is \"%.100s\", the backup can run \"%s\"", profile, ours);
    else if (xen_policy_check(&d, &m, &err) < 0)
        preflight_lacks(lacks, "mask it for the guest: cpuid = \"host,FEATURE=0\" in xl.cfg, and xl create anew; or protect it from the other host",
                        "%s", err.text);
    if (m.pv && !here && vm_memory_available() / PAGE_SIZE < xen_machine_present(&m))
        preflight_lacks(lacks, "give dom0 more memory (dom0_mem=)",
                        "the replica of a PV domain waits in dom0: it needs %" PRIu64 " MiB there, %" PRIu64 " MiB are available",
                        xen_machine_present(&m) >> 8, vm_memory_available() >> 20);
    if (m.ranges && cfg->memory_bytes && xen_machine_present(&m) > cfg->memory_bytes / PAGE_SIZE + XEN_ROOM_PAGES)
        preflight_lacks(lacks, "make memory equal in both sections, or leave it out",
                        "the domain has %" PRIu64 " MiB, the backup's section says %" PRIu64, xen_machine_present(&m) >> 8,
                        cfg->memory_bytes >> 20);
    xen_machine_free(&m);
    xen_domain_disconnect(&d);
}

static int replica_open(struct replica **r, const struct vm_config *cfg, uint64_t pages,
                        const char *profile, const struct buffer *description, struct error *err)
{
    struct xen_replica *x = calloc(1, sizeof(*x));
    struct xen_machine machine;
    int rc = -1;

    if (!x)
        return error_set(err, "no memory");
    *x = (struct xen_replica){
        .replica = {.ops = &xen_replica_ops, .pages = pages},
        .cfg = cfg,
        .stream = -1,
        .answer = -1,
        .log = -1,
    };
    if (xen_domain_connect(&x->domain, err) < 0) {
        free(x);
        return -1;
    }
    if (xen_machine_get(&machine, description->data, description->len, err) == 0 &&
        check_room(x, pages, &machine, profile, err) == 0 &&
        xen_facts(&x->facts, machine.config, machine.config_length, xen_machine_present(&machine), 0, err) == 0 &&
        check_unused(x, err) == 0)
        rc = (x->pv = machine.pv, prepare(x, &machine, err));
    xen_machine_free(&machine);
    if (rc < 0)
        replica_close(&x->replica);
    else
        *r = &x->replica;
    return rc;
}

/* What is in memory now goes on its way; what the pipe does not take goes with the next checkpoint. */
static void replica_committed(struct replica *r, const uint8_t *state, size_t len)
{
    struct xen_replica *x = of(r);
    struct error err;
    size_t types;

    if (x->pv && stream_check_state(state, len, true, &err) == 0 && feed_checkpoint(&x->feed, state, &types, &err) == 0)
        feed_some(&x->feed, x->stream); /* that the restore has ended, health says */
}

static int feed_rest(struct xen_replica *x, const uint8_t *state, size_t *types, uint64_t deadline, struct error *err)
{
    int rc;

    if (feed_checkpoint(&x->feed, state, types, err) < 0)
        return -1;
    while ((rc = feed_some(&x->feed, x->stream)) == 0)
        if (wait_for_room(x, deadline, err) < 0)
            return -1;
    return rc < 0 ? restore_failed(x, err) : 0;
}

static int replica_activate(struct replica *r, const uint8_t *state, size_t len, struct error *err)
{
    __attribute__((cleanup(buffer_free))) struct buffer end = {0};
    uint64_t deadline = clock_ns() + ACTIVATE_NS;
    struct xen_replica *x = of(r);
    size_t types = 0;

    if (stream_check_state(state, len, x->pv, err) < 0)
        return -1;
    if (stream_put_end(&end) < 0)
        return error_set(err, "no memory");
    xen_note(x->log, "begun");
    if (x->pv && feed_rest(x, state, &types, deadline, err) < 0)
        return -1;
    state += types;
    len -= types;
    if (feed(x, state, len, deadline, err) < 0 || feed(x, end.data, end.len, deadline, err) < 0 ||
        await_answer(x, "running\n", deadline, err) < 0)
        return -1;
    xen_note(x->log, "told");
    x->active = true;
    return 0;
}

/* To unmap a guest takes long: in a PV dom0 most of what the takeover itself did. */
static void replica_settle(struct replica *r)
{
    unmap(of(r));
    end_restore(of(r));
}

static void replica_facts(const struct replica *r, struct vm_facts *facts)
{
    *facts = ((const struct xen_replica *)r)->facts;
}

static enum vm_health replica_health(struct replica *r)
{
    struct xen_replica *x = of(r);

    if (x->active)
        return xen_domain_health(&x->domain);
    if (x->restore && waitpid(x->restore, NULL, WNOHANG) == x->restore)
        x->restore = 0;
    return x->restore ? xen_domain_health(&x->domain) : VM_DIED;
}

const struct replica_ops xen_replica_ops = {
    .name = "xen",
    .open = replica_open,
    .facts = replica_facts,
    .check = replica_check,
    .committed = replica_committed,
    .activate = replica_activate,
    .settle = replica_settle,
    .health = replica_health,
    .close = replica_close,
};
