/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <string.h>

#include "remusctl.h"

/* How many things are missing; each is printed. */
static size_t show(const json_t *vm)
{
    json_t *lacks = json_object_get(vm, "lacks"), *thing;
    size_t i;

    json_array_foreach(lacks, i, thing)
        printf("%s (%s): %s\n    to do: %s\n", text_at(vm, "vm"), text_at(vm, "role"), text_at(thing, "what"),
               text_at(thing, "remedy"));
    if (json_array_size(lacks) == 0)
        printf("%s (%s): nothing is missing on this host\n", text_at(vm, "vm"), text_at(vm, "role"));
    return json_array_size(lacks);
}

static int preflight(const struct ctl *ctl, int argc, char **argv, struct failure *f)
{
    size_t i, missing = 0;
    json_t *vms, *vm;

    (void)argc;
    if (call_both(ctl, "preflight", argv[0], &vms, f))
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

const struct verb preflight_verb = {"preflight", "VM", "what this host lacks for VM, and what to do", 1, 1, preflight};
