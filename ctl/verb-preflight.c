/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <math.h>
#include <string.h>

#include "remusctl.h"

/* How many things are missing; each is printed. */
static size_t show(const json_t *vm)
{
    json_t *lacks = json_object_get(vm, "lacks"), *thing;
    bool both = json_is_object(json_object_get(vm, "link"));
    size_t i;

    json_array_foreach(lacks, i, thing)
        printf("%s (%s): %s\n    to do: %s\n", text_at(vm, "vm"), *text_at(thing, "host") ? text_at(thing, "host") : text_at(vm, "role"),
               text_at(thing, "what"), text_at(thing, "remedy"));
    if (json_array_size(lacks) == 0)
        printf("%s (%s): nothing is missing on %s\n", text_at(vm, "vm"), text_at(vm, "role"), both ? "either host" : "this host");
    if (both)
        printf("%s (link): to %s a round trip takes %.2f ms, it carries %.1f MiB/s, its clock is %.1f ms %s\n", text_at(vm, "vm"),
               text_at(vm, "backup"), number_at(vm, "link.round_trip_ms"), number_at(vm, "link.mib_s"),
               fabs(number_at(vm, "link.clock_ahead_ms")), number_at(vm, "link.clock_ahead_ms") < 0 ? "behind" : "ahead");
    return json_array_size(lacks);
}

/* Of remusd alone, which is to ask the backup at that address. */
static int call_with(const struct ctl *ctl, const char *vm, const char *to, json_t **vms, struct failure *f)
{
    json_t *result = NULL;

    if (call(ctl, PRIMARY, "preflight", vm, json_pack("{s:s}", "to", to), &result, f))
        return f->status;
    if (!json_is_object(result)) {
        json_decref(result);
        return fail(f, STATUS_UNKNOWN, "no-answer", "the daemon's answer makes no sense");
    }
    *vms = json_pack("[o]", result);
    return 0;
}

static int preflight(const struct ctl *ctl, int argc, char **argv, struct failure *f)
{
    const char *name = NULL, *to = NULL;
    size_t i, missing = 0;
    json_t *vms, *vm;

    for (int a = 0; a < argc; a++) {
        if (strcmp(argv[a], "--to") == 0 && a + 1 < argc)
            to = argv[++a];
        else if (name || argv[a][0] == '-')
            return fail(f, STATUS_USAGE, "usage", "preflight: unexpected \"%s\"", argv[a]);
        else
            name = argv[a];
    }
    if (!name)
        return fail(f, STATUS_USAGE, "usage", "preflight: which VM? remusctl list shows them");
    if (to ? call_with(ctl, name, to, &vms, f) : call_both(ctl, "preflight", name, &vms, f))
        return f->status;
    f->text[0] = '\0';
    make_printable(vms);
    json_array_foreach(vms, i, vm)
        missing += ctl->json ? json_array_size(json_object_get(vm, "lacks")) : show(vm);
    f->status = missing ? STATUS_FAILED : STATUS_OK;
    if (ctl->json) {
        int rc = print_vms(vms);

        return rc ? rc : f->status;
    }
    json_decref(vms);
    return f->status;
}

const struct verb preflight_verb = {"preflight", "VM [--to HOST]", "what both hosts lack for VM, and what to do", 1, 3, preflight};
