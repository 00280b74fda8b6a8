/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdlib.h>
#include <string.h>

#include "common/config.h"
#include "remusctl.h"

static int set(const struct ctl *ctl, int argc, char **argv, struct failure *f)
{
    const char *vm = argv[0], *key = argv[1], *value = argv[2];
    json_t *result = NULL;
    char *end;
    long ms = strtol(value, &end, 10);

    (void)argc;
    if (strcmp(key, "interval") != 0)
        return fail(f, STATUS_USAGE, "usage", "set: no setting \"%s\"; there is: interval", key);
    if (!*value || *end || ms < CONFIG_INTERVAL_MIN || ms > CONFIG_INTERVAL_MAX)
        return fail(f, STATUS_USAGE, "usage",
                    "set: interval \"%s\": want a number of ms from %d to %d", value,
                    CONFIG_INTERVAL_MIN, CONFIG_INTERVAL_MAX);
    if (call(ctl, PRIMARY, "set", vm, json_pack("{s:i}", "interval", (int)ms), &result, f))
        return f->status;
    json_decref(result);
    if (ctl->json)
        return print_json(json_pack("{s:s, s:i}", "vm", vm, "interval_ms", (int)ms));
    printf("%s: a checkpoint every %ld ms, until remusd restarts\n", vm, ms);
    return 0;
}

const struct verb set_verb = {"set", "VM interval MS",
                              "change the time between checkpoints for now", 3, 3,
                              set};
