/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "common/control.h"
#include "remusctl.h"

/* -- what the daemon said --------------------------------------------------------------------- */

const char *text_at(const json_t *vm, const char *key)
{
    const char *text = json_string_value(json_object_get(vm, key));

    return text ? text : "";
}

double number_at(const json_t *vm, const char *path)
{
    const char *dot;
    char key[64];

    while ((dot = strchr(path, '.'))) {
        snprintf(key, sizeof(key), "%.*s", (int)(dot - path), path);
        vm = json_object_get(vm, key);
        path = dot + 1;
    }
    vm = json_object_get(vm, path);
    return json_is_number(vm) ? json_number_value(vm) : NAN;
}

static bool is_backup(const json_t *vm)
{
    return strcmp(text_at(vm, "role"), "backup") == 0;
}

bool is_safe_state(const json_t *vm)
{
    return strcmp(text_at(vm, "state"), is_backup(vm) ? "ready" : "protected") == 0;
}

static void blank_controls(char *s)
{
    for (unsigned char *p = (unsigned char *)s; *p; p++) {
        if (*p < 0x20 || *p == 0x7f)
            *p = '?';
        else if (*p == 0xc2 && p[1] < 0xa0) /* U+0080 to U+009F in UTF-8 */
            p[1] = 0xbf;
    }
}

void make_printable(json_t *value)
{
    const char *key;
    json_t *v;
    size_t i;

    if (json_is_string(value)) {
        char *copy = strdup(json_string_value(value));

        if (copy) {
            blank_controls(copy);
            json_string_set(value, copy);
        }
        free(copy);
    }
    json_object_foreach(value, key, v)
        make_printable(v);
    json_array_foreach(value, i, v)
        make_printable(v);
}

/* -- figures for a person: "-" for what is not known ------------------------------------------ */

struct figure {
    char text[48];
};

static struct figure unless_nan(double v, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static struct figure unless_nan(double v, const char *fmt, ...)
{
    struct figure f = {"-"};
    va_list ap;

    va_start(ap, fmt);
    if (!isnan(v))
        vsnprintf(f.text, sizeof(f.text), fmt, ap);
    va_end(ap);
    return f;
}

static struct figure count(const json_t *vm, const char *path)
{
    double v = number_at(vm, path);

    return unless_nan(v, "%.0f", v);
}

static struct figure ms(const json_t *vm, const char *path)
{
    double v = number_at(vm, path);

    return unless_nan(v, "%.*f", v < 10 ? 2 : v < 100 ? 1 : 0, v);
}

static struct figure octets(const json_t *vm, const char *path)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double v = number_at(vm, path);
    int unit = 0;

    while (v >= 1024 && unit < 5) {
        v /= 1024;
        unit++;
    }
    return unless_nan(v, "%.*f %s", unit && v < 10 && v != floor(v) ? 1 : 0, v, units[unit]);
}

static struct figure percent(const json_t *vm, const char *path)
{
    double v = 100 * number_at(vm, path);

    return unless_nan(v, "%.0f %%", v);
}

static struct figure duration(double s)
{
    if (s < 60)
        return unless_nan(s, "%.0f s", s);
    if (s < 3600)
        return unless_nan(s, "%d min %d s", (int)s / 60, (int)s % 60);
    if (s < 86400)
        return unless_nan(s, "%d h %d min", (int)s / 3600, (int)s / 60 % 60);
    return unless_nan(s, "%.0f d %d h", floor(s / 86400), (int)fmod(s / 3600, 24));
}

/* Of a silence, which may last. */
static struct figure silence(const json_t *vm, const char *path)
{
    double v = number_at(vm, path);

    return v < 10000 ? unless_nan(v, "%.0f ms", v) : duration(v / 1000);
}

/* Lives until the end of the full expression that calls it. */
#define COUNT(path) (count(vm, path).text)
#define MS(path) (ms(vm, path).text)
#define OCTETS(path) (octets(vm, path).text)
#define PERCENT(path) (percent(vm, path).text)
#define DURATION(path) (duration(number_at(vm, path)).text)
#define SILENCE(path) (silence(vm, path).text)

static const char *or_dash(const char *s)
{
    return *s ? s : "-";
}

/* -- the verdict ------------------------------------------------------------------------------ */

static void say_off(FILE *out, const json_t *vm)
{
    fputs(*text_at(vm, "accelerator") ? "not protected" : "not protected; remusd has no guest here", out);
}

static void say_connecting(FILE *out, const json_t *vm)
{
    fprintf(out, "not protected: no connection with the backup %s yet", or_dash(text_at(vm, "peer")));
}

static void say_syncing(FILE *out, const json_t *vm)
{
    if (json_is_object(json_object_get(json_object_get(vm, "disks"), "sync"))) {
        fprintf(out, "not protected yet: disks %s %% copied, %s MiB/s, about %s left; then the memory",
                COUNT("disks.sync.percent"), COUNT("disks.sync.rate_mib_s"), DURATION("disks.sync.eta_s"));
        return;
    }
    fprintf(out, "not protected yet: %s %% copied, round %s, %s MiB/s, about %s left",
            COUNT("sync.percent"), COUNT("sync.round"), COUNT("sync.rate_mib_s"),
            DURATION("sync.eta_s"));
}

static void say_protected(FILE *out, const json_t *vm)
{
    fprintf(out, "checkpoint %s acknowledged after %s ms, backup %s", COUNT("acked_epoch"),
            COUNT("ack_lag_ms.p50"), or_dash(text_at(vm, "peer")));
}

static void say_holding(FILE *out, const json_t *vm)
{
    fprintf(out, "no connection with the backup %s; %s frames of the guest wait",
            or_dash(text_at(vm, "peer")), COUNT("net.held_frames"));
}

static void say_ready(FILE *out, const json_t *vm)
{
    fprintf(out, "holds checkpoint %s of %s, heard %s ago", COUNT("epoch"),
            or_dash(text_at(vm, "primary")), SILENCE("last_heard_ms"));
}

static void say_suspect(FILE *out, const json_t *vm)
{
    fprintf(out, "the primary %s is silent for %s; checkpoint %s is whole",
            or_dash(text_at(vm, "primary")), SILENCE("last_heard_ms"), COUNT("epoch"));
}

static void say_active(FILE *out, const json_t *vm)
{
    const char *reason = text_at(json_object_get(vm, "takeover"), "reason");

    if (json_is_object(json_object_get(vm, "takeover")))
        fprintf(out, "the guest runs on this host for %s, from checkpoint %s (%s; %s ms)",
                DURATION("since_s"), COUNT("takeover.epoch"), or_dash(reason),
                COUNT("takeover.total_ms"));
    else
        fputs("the guest runs on this host, since before remus-backupd was started", out);
}

static const struct verdict {
    const char *role, *state, *word;
    void (*say)(FILE *out, const json_t *vm);
    const char *text; /* when say is NULL */
} verdicts[] = {
    {"primary", "off", "OFF", say_off, NULL},
    {"primary", "connecting", "CONNECTING", say_connecting, NULL},
    {"primary", "syncing", "SYNCING", say_syncing, NULL},
    {"primary", "protected", "PROTECTED", say_protected, NULL},
    {"primary", "holding", "HOLDING", say_holding, NULL},
    {"primary", "asking", "ASKING", NULL,
     "the backup does not answer; the arbiter is asked whether the guest may go on alone"},
    {"primary", "unprotected", "UNPROTECTED", NULL, "the guest runs alone, without a backup"},
    {"primary", "handed-over", "HANDED OVER", NULL, "the guest runs on the backup host"},
    {"primary", "lost", "LOST", NULL,
     "the backup has taken over; the guest of this host was ended"},
    {"primary", "stopped", "STOPPED", NULL,
     "the guest was ended when the backup was lost (degrade = stop)"},
    {"primary", "shut-down", "SHUT DOWN", NULL, "the guest has ended by itself"},
    {"backup", "waiting", "WAITING", NULL, "no primary is connected, nothing to take over"},
    {"backup", "syncing", "SYNCING", NULL, "receives the first whole copy, cannot take over yet"},
    {"backup", "ready", "READY", say_ready, NULL},
    {"backup", "suspect", "SUSPECT", say_suspect, NULL},
    {"backup", "asking", "ASKING", NULL, "the arbiter is asked whether this host may take over"},
    {"backup", "taking-over", "TAKING OVER", NULL, "the replica is being activated"},
    {"backup", "active", "ACTIVE", say_active, NULL},
    {"backup", "failed", "FAILED", NULL, "could not take over"},
};

void show_verdict(FILE *out, const json_t *vm)
{
    const char *role = is_backup(vm) ? "backup" : "primary", *state = text_at(vm, "state");
    const struct verdict *v = NULL;

    for (size_t i = 0; i < sizeof(verdicts) / sizeof(*verdicts); i++)
        if (strcmp(verdicts[i].role, role) == 0 && strcmp(verdicts[i].state, state) == 0)
            v = &verdicts[i];
    fprintf(out, "%s: %s  ", text_at(vm, "vm"), v ? v->word : or_dash(state));
    if (v && v->say)
        v->say(out, vm);
    else
        fputs(v ? v->text : "a state that this remusctl does not know", out);
    fputc('\n', out);
}

/* Where nothing is wrong now, the last error is history.  Nothing is with a VM that is off, when its guest runs. */
void show_trouble(FILE *out, const json_t *vm)
{
    const char *error = text_at(vm, "last_error"), *advice = text_at(vm, "advice");
    bool history = is_safe_state(vm);
    static const char *const well[] = {"off", "handed-over", "waiting", "active"};

    for (size_t i = *text_at(vm, "accelerator") || is_backup(vm) ? 0 : 1; i < sizeof(well) / sizeof(*well); i++)
        history |= strcmp(text_at(vm, "state"), well[i]) == 0;
    if (*error)
        fprintf(out, "  %-15s%s (%s ago)\n", history ? "last error" : "what is wrong", error, DURATION("last_error_s"));
    if (*advice)
        fprintf(out, "  %-15s%s\n", "what to do", advice);
}

/* -- the table -------------------------------------------------------------------------------- */

static void show_pauses(const json_t *vm)
{
    static const char *const phases[] = {"total", "suspend", "barrier", "state",
                                         "scan",  "copy",    "resume"};
    char p50[48], p99[48], max[48];

    if (!json_is_object(json_object_get(vm, "pause_ms")))
        return;
    printf("  %-15s%10s%10s%10s\n", "pause, ms", "p50", "p99", "max");
    for (size_t i = 0; i < sizeof(phases) / sizeof(*phases); i++) {
        snprintf(p50, sizeof(p50), "pause_ms.%s.p50", phases[i]);
        snprintf(p99, sizeof(p99), "pause_ms.%s.p99", phases[i]);
        snprintf(max, sizeof(max), "pause_ms.%s.max", phases[i]);
        printf("    %-13s%10s%10s%10s\n", phases[i], MS(p50), MS(p99), MS(max));
    }
}

static void show_checkpoints(const json_t *vm)
{
    show_pauses(vm);
    printf("  %-15sp50 %s ms, p99 %s ms\n", "acknowledged", MS("ack_lag_ms.p50"),
           MS("ack_lag_ms.p99"));
    printf("  %-15sp50 %s, p99 %s a checkpoint\n", "dirty pages", COUNT("dirty_pages.p50"),
           COUNT("dirty_pages.p99"));
    printf("  %-15s%s for %s of pages, ratio %s, page cache hits %s, codec %s of a core\n", "sent",
           OCTETS("bytes_sent"), OCTETS("bytes_raw"), MS("ratio"), PERCENT("cache_hit_rate"),
           PERCENT("cpu_share"));
}

/* "3 this, 2 that": the members of an object that are not zero. */
static const char *counts(json_t *object)
{
    static char text[256];
    const char *key;
    json_t *v;
    size_t n = 0;

    strcpy(text, "none");
    json_object_foreach(object, key, v)
        if (json_integer_value(v) && n < sizeof(text))
            n += (size_t)snprintf(text + n, sizeof(text) - n, "%s%" JSON_INTEGER_FORMAT " %s",
                                  n ? ", " : "", json_integer_value(v), key);
    return text;
}

static void show_connections(const json_t *vm)
{
    const json_t *net = json_object_get(vm, "net"), *flows = json_object_get(net, "flows");

    if (!json_is_object(flows))
        return;
    printf("  %-15s%s open, %s held, %s strict; became strict: ", "connections",
           COUNT("net.flows.open"), COUNT("net.flows.held"), COUNT("net.flows.strict"));
    printf("%s\n", counts(json_object_get(flows, "lost")));
    printf("  %-15sframes that waited: %s; at once: ", "", counts(json_object_get(net, "held")));
    printf("%s\n", counts(json_object_get(net, "passed")));
}

/* Whether disk and memory are in step, first. */
static void show_primary_disks(const json_t *vm)
{
    const json_t *disks = json_object_get(vm, "disks");

    if (!json_is_object(disks))
        return;
    printf("  %-15s%s, ", "disks", COUNT("disks.count"));
    if (json_is_object(json_object_get(disks, "sync")))
        printf("SYNCHRONISING: %s %% at %s MiB/s, about %s left", COUNT("disks.sync.percent"),
               COUNT("disks.sync.rate_mib_s"), DURATION("disks.sync.eta_s"));
    else if (json_is_true(json_object_get(disks, "in_step")))
        printf("in step with the memory at checkpoint %s; %s on their way", COUNT("acked_epoch"),
               OCTETS("disks.behind_bytes"));
    else if (json_is_number(json_object_get(disks, "behind_bytes")))
        printf("the backup is %s BEHIND", OCTETS("disks.behind_bytes"));
    else
        printf("the backup has no whole copy");
    printf("\n  %-15s%s written, queue %s of %s; guest slowed by a full queue for %s ms; errors %s\n", "",
           OCTETS("disks.written_bytes"), OCTETS("disks.queue_bytes"), OCTETS("disks.queue_max_bytes"),
           COUNT("disks.full_ms"), COUNT("disks.errors"));
    printf("  %-15s%s pages were on them already and not sent\n", "", COUNT("disks.pages_by_reference"));
    if (json_is_object(json_object_get(disks, "verify")))
        printf("  %-15sremusctl verify: %s %% compared, %s %s\n", "", COUNT("disks.verify.percent"),
               OCTETS("disks.verify.differing_bytes"),
               !json_is_true(json_object_get(json_object_get(disks, "verify"), "repair")) ? "DIFFER" : "differed and are sent again");
}

static void show_primary(const json_t *vm)
{
    printf("  %-15s%s, %s, %s, dirty pages by %s\n", "guest", or_dash(text_at(vm, "platform")),
           or_dash(text_at(vm, "accelerator")), OCTETS("memory_bytes"),
           or_dash(text_at(vm, "tracker")));
    printf("  %-15s%s, this state for %s\n", "backup", or_dash(text_at(vm, "peer")),
           DURATION("since_s"));
    printf("  %-15s%s every %s ms; epoch %s, acknowledged %s, in flight %s, had to wait %s, early %s\n",
           "checkpoints", COUNT("checkpoints"), COUNT("interval_ms"), COUNT("epoch"),
           COUNT("acked_epoch"), COUNT("in_flight"), COUNT("waited"), COUNT("early"));
    if (number_at(vm, "checkpoints") > 0)
        show_checkpoints(vm);
    if (json_is_object(json_object_get(vm, "net"))) {
        printf("  %-15s%s: %s frames held (%s), at most %s; out %s, in %s; dropped in %s, out %s\n", "network",
               or_dash(text_at(json_object_get(vm, "net"), "port")), COUNT("net.held_frames"), OCTETS("net.held_bytes"), COUNT("net.held_max"),
               COUNT("net.frames_out"), COUNT("net.frames_in"), COUNT("net.dropped_in"),
               COUNT("net.dropped_out"));
        printf("  %-15sheld for p50 %s ms, p99 %s ms; guest slowed by a full queue for %s ms\n", "",
               MS("net.hold_ms.p50"), MS("net.hold_ms.p99"), COUNT("net.full_ms"));
    }
    show_connections(vm);
    show_primary_disks(vm);
    if (json_is_object(json_object_get(vm, "staging")))
        printf("  %-15s%s of %s, pauses stretched by a full buffer %s\n", "staging",
               OCTETS("staging.used_bytes"), OCTETS("staging.max_bytes"),
               COUNT("staging.stretched"));
}

static void show_backup(const json_t *vm)
{
    printf("  %-15s%s, %s\n", "guest", or_dash(text_at(vm, "platform")),
           number_at(vm, "memory_bytes") > 0 ? OCTETS("memory_bytes") : "no replica here");
    printf("  %-15s%s, heard %s ago, this state for %s\n", "primary",
           or_dash(text_at(vm, "primary")), SILENCE("last_heard_ms"), DURATION("since_s"));
    printf("  %-15s%s, last epoch %s, %s received\n", "checkpoints", COUNT("checkpoints"),
           COUNT("epoch"), OCTETS("bytes_received"));
    if (json_is_object(json_object_get(vm, "disks")))
        printf("  %-15s%s at checkpoint %s, images at %s; journal %s of %s, link waited %s ms for it\n", "disks",
               json_is_true(json_object_get(json_object_get(vm, "disks"), "in_step"))
                   ? "in step with the memory" : "NOT IN STEP with the memory",
               COUNT("disks.committed_epoch"), COUNT("disks.applied_epoch"), OCTETS("disks.journal_bytes"),
               OCTETS("disks.journal_max_bytes"), COUNT("disks.full_ms"));
    printf("  %-15s%s, arbiter %s\n", "takeover", or_dash(text_at(vm, "takeover_policy")),
           or_dash(text_at(vm, "arbiter")));
    if (json_is_object(json_object_get(vm, "takeover")))
        printf("  %-15sepoch %s, detected in %s ms, activated in %s ms, in all %s ms: %s\n",
               "taken over", COUNT("takeover.epoch"), MS("takeover.detected_ms"),
               MS("takeover.activate_ms"), MS("takeover.total_ms"),
               or_dash(text_at(json_object_get(vm, "takeover"), "reason")));
}

void show_status(const json_t *vm)
{
    show_verdict(stdout, vm);
    show_trouble(stdout, vm);
    if (is_backup(vm))
        show_backup(vm);
    else
        show_primary(vm);
}

/* -- JSON ------------------------------------------------------------------------------------- */

int print_json(json_t *object)
{
    int rc = json_object_set_new(object, "format", json_integer(CONTROL_FORMAT));

    if (rc == 0)
        rc = json_dumpf(object, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(object);
    return rc == 0 ? STATUS_OK : STATUS_FAILED;
}

int print_vms(json_t *vms)
{
    return print_json(json_pack("{s:i, s:o}", "format", CONTROL_FORMAT, "vms", vms));
}
