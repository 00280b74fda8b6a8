/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "remusctl.h"

#define POLL_NS (100 * NS_PER_MS)
#define LINE_NS NS_PER_S

static double mib(const json_t *verify, const char *key)
{
    return number_at(verify, key) / 1048576;
}

static void show_ranges(const json_t *verify)
{
    json_t *ranges = json_object_get(verify, "ranges"), *r;
    size_t i;

    json_array_foreach(ranges, i, r)
        printf("  disk %.0f: %.0f octets at %.0f\n", number_at(r, "disk"), number_at(r, "length"),
               number_at(r, "offset"));
}

/* The comparison has ended: what came of it. */
static int conclude(const struct ctl *ctl, const char *vm, json_t *verify, struct failure *f)
{
    const char *why = text_at(verify, "failed");
    bool differ = number_at(verify, "differing_bytes") > 0;

    if (*why)
        return fail(f, STATUS_FAILED, "failed", "comparing the disks of %s ended early: %s", vm, why);
    f->status = differ ? STATUS_DIFFERENT : STATUS_OK;
    f->text[0] = '\0';
    if (ctl->json) {
        int rc = print_json(json_pack("{s:s, s:O}", "vm", vm, "verify", verify));

        return rc ? rc : f->status;
    }
    if (!differ) {
        printf("%s: the disks are equal, %.0f MiB compared\n", vm, mib(verify, "compared_bytes"));
        return STATUS_OK;
    }
    printf("%s: the disks DIFFER in blocks of %.1f MiB in all%s:\n", vm, mib(verify, "differing_bytes"),
           json_is_true(json_object_get(verify, "repair")) ? ", which were sent again" : "");
    show_ranges(verify);
    return f->status;
}

/* The comparison of a running VM, a new reference; NULL when the daemon gives none. */
static json_t *get_verify(const struct ctl *ctl, const char *vm, struct failure *f)
{
    json_t *status = NULL, *verify;

    if (call(ctl, PRIMARY, "status", vm, NULL, &status, f))
        return NULL;
    make_printable(status);
    verify = json_incref(json_object_get(json_object_get(status, "disks"), "verify"));
    json_decref(status);
    if (json_is_object(verify))
        return verify;
    json_decref(verify);
    fail(f, STATUS_UNKNOWN, "no-answer", "remusd knows nothing of a comparison any more; was it restarted?");
    return NULL;
}

static int verify(const struct ctl *ctl, int argc, char **argv, struct failure *f)
{
    const struct timespec pause = {0, POLL_NS};
    json_t *args, *verify, *result = NULL;
    uint64_t last_line = 0;
    const char *vm = NULL;
    bool repair = false;

    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--repair") == 0)
            repair = true;
        else if (vm || argv[i][0] == '-')
            return fail(f, STATUS_USAGE, "usage", "verify: unexpected \"%s\"", argv[i]);
        else
            vm = argv[i];
    }
    if (!vm)
        return fail(f, STATUS_USAGE, "usage", "verify: which VM? remusctl list shows them");
    catch_interrupts();
    args = json_pack("{s:b}", "repair", repair);
    if (call(ctl, PRIMARY, "verify", vm, args, &result, f))
        return f->status;
    json_decref(result);
    while (!interrupted && (verify = get_verify(ctl, vm, f))) {
        if (!json_is_true(json_object_get(verify, "running"))) {
            int rc = conclude(ctl, vm, verify, f);

            json_decref(verify);
            return rc;
        }
        if (!ctl->json && clock_ns() - last_line >= LINE_NS) {
            printf("%s: %.0f %% compared, %.0f MiB/s, about %.0f s left, %.1f MiB differ\n", vm,
                   number_at(verify, "percent"), number_at(verify, "rate_mib_s"), number_at(verify, "eta_s"),
                   mib(verify, "differing_bytes"));
            fflush(stdout);
            last_line = clock_ns();
        }
        json_decref(verify);
        nanosleep(&pause, NULL);
    }
    if (interrupted)
        return fail(f, STATUS_UNKNOWN, "interrupted", "no longer watching; comparing the disks of %s goes on: remusctl status %s", vm,
                    vm);
    return f->status;
}

const struct verb verify_verb = {"verify", "[--repair] VM",
                                 "compare VM's disks with its backup's; --repair", 1, 2,
                                 verify};
