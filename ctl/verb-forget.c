/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <string.h>

#include "remusctl.h"

/* Of the two daemons one or both may know the VM. */
static int forget(const struct ctl *ctl, int argc, char **argv, struct failure *f)
{
    bool active = argc == 2;
    const char *vm = argv[active];
    json_t *result;

    if (active && strcmp(argv[0], "--active") != 0)
        return fail(f, STATUS_USAGE, "usage", "forget: unexpected \"%s\"", argv[*argv[0] != '-']);
    if (active ? call(ctl, BACKUP, "forget", vm, json_pack("{s:b}", "active", 1), &result, f)
               : call_both(ctl, "forget", vm, &result, f))
        return f->status;
    json_decref(result);
    if (ctl->json)
        return print_json(json_pack("{s:s}", "vm", vm));
    printf("%s: forgotten on this host; its disk images are left alone\n", vm);
    return 0;
}

const struct verb forget_verb = {"forget", "[--active] VM", "forget VM on this host: it has no section there", 1, 2,
                                 forget};
