/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <string.h>

#include "remusctl.h"

/* to: the backup of a VM that has no section; NULL: what its section says. */
static int ask(const struct ctl *ctl, const char *verb, const char *vm, const char *to, struct failure *f)
{
    json_t *result = NULL;

    if (call(ctl, PRIMARY, verb, vm, to ? json_pack("{s:s}", "to", to) : NULL, &result, f))
        return f->status;
    json_decref(result);
    return 0;
}

static int start(const struct ctl *ctl, const char *verb, const char *vm, const char *to, const char *said,
                 struct failure *f)
{
    if (ask(ctl, verb, vm, to, f))
        return f->status;
    if (ctl->json)
        return print_json(json_pack("{s:s}", "vm", vm));
    printf("%s: %s; remusctl status %s\n", vm, said, vm);
    return 0;
}

static int protect(const struct ctl *ctl, int argc, char **argv, struct failure *f)
{
    static const char *const underway[] = {"connecting", "syncing", "holding",
                                           "asking",     "unprotected", NULL};
    static const struct goal goal = {
        .verb = "protect", .side = PRIMARY, .target = "protected", .underway = underway};
    bool wait = false;
    const char *vm = NULL, *to = NULL;

    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--wait") == 0 || strcmp(argv[i], "-w") == 0)
            wait = true;
        else if (strcmp(argv[i], "--to") == 0 && i + 1 < argc)
            to = argv[++i];
        else if (vm || argv[i][0] == '-')
            return fail(f, STATUS_USAGE, "usage", "protect: unexpected \"%s\"", argv[i]);
        else
            vm = argv[i];
    }
    if (!vm)
        return fail(f, STATUS_USAGE, "usage", "protect: which VM? remusctl list shows them");
    if (!wait)
        return start(ctl, "protect", vm, to, "protection begins", f);
    return to && ask(ctl, "protect", vm, to, f) ? f->status : pursue(ctl, &goal, vm, f);
}

static int unprotect(const struct ctl *ctl, int argc, char **argv, struct failure *f)
{
    (void)argc;
    return start(ctl, "unprotect", argv[0], NULL, "protection ends, the guest goes on", f);
}

const struct verb protect_verb = {"protect", "[--wait] VM [--to HOST]",
                                  "begin to protect VM; --wait until it is protected", 1, 4,
                                  protect};
const struct verb unprotect_verb = {"unprotect", "VM", "end the protection; the guest goes on", 1,
                                    1, unprotect};
