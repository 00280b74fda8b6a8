/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <string.h>

#include "remusctl.h"

static bool same_vm(const json_t *a, const json_t *b)
{
    return strcmp(text_at(a, "vm"), text_at(b, "vm")) == 0;
}

/* Is every VM protected, or ready here?  A VM that both daemons know needs one of the two. */
static bool all_safe(const json_t *vms)
{
    size_t i, j;
    json_t *a, *b;

    json_array_foreach(vms, i, a) {
        bool safe = false;

        json_array_foreach(vms, j, b)
            safe |= same_vm(a, b) && is_safe_state(b);
        if (!safe)
            return false;
    }
    return true;
}

static int status(const struct ctl *ctl, int argc, char **argv, struct failure *f)
{
    json_t *vms, *vm;
    bool safe;
    size_t i;

    if (call_both(ctl, "status", argc ? argv[0] : NULL, &vms, f))
        return f->status;
    safe = all_safe(vms);
    f->text[0] = '\0';
    f->status = safe ? STATUS_OK : STATUS_NOT_PROTECTED;
    if (ctl->json) {
        int rc = print_vms(vms);

        return rc ? rc : f->status;
    }
    make_printable(vms);
    json_array_foreach(vms, i, vm) {
        if (i)
            putchar('\n');
        show_status(vm);
    }
    if (i == 0)
        printf("no VM is configured on this host\n");
    json_decref(vms);
    return f->status;
}

static int list(const struct ctl *ctl, int argc, char **argv, struct failure *f)
{
    json_t *vms, *vm;
    size_t i;

    (void)argc;
    (void)argv;
    if (call_both(ctl, "list", NULL, &vms, f))
        return f->status;
    if (ctl->json)
        return print_vms(vms);
    make_printable(vms);
    printf("%-24s %-8s %-12s %s\n", "VM", "ROLE", "STATE", "EPOCH");
    json_array_foreach(vms, i, vm)
        printf("%-24s %-8s %-12s %.0f\n", text_at(vm, "vm"), text_at(vm, "role"),
               text_at(vm, "state"), json_number_value(json_object_get(vm, "epoch")));
    json_decref(vms);
    return 0;
}

const struct verb list_verb = {"list", "", "the VMs of this host, a line each", 0, 0, list};
const struct verb status_verb = {"status", "[VM]", "how VM fares, or every VM", 0, 1, status};
