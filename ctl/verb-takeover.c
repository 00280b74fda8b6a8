/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "remusctl.h"

static int takeover(const struct ctl *ctl, int argc, char **argv, struct failure *f)
{
    static const char *const underway[] = {"asking", "taking-over", NULL};
    static const struct goal goal = {
        .verb = "takeover", .side = BACKUP, .target = "active", .underway = underway};

    (void)argc;
    return pursue(ctl, &goal, argv[0], f);
}

/* A broken link in the middle of it is not the end: a new link shows what the backup did. */
static int switchover(const struct ctl *ctl, int argc, char **argv, struct failure *f)
{
    static const char *const underway[] = {"protected", "holding", "connecting",
                                           "syncing",   "asking",  NULL};
    static const struct goal goal = {.verb = "switchover",
                                     .side = PRIMARY,
                                     .target = "handed-over",
                                     .underway = underway,
                                     .back_is_failure = true};

    (void)argc;
    return pursue(ctl, &goal, argv[0], f);
}

const struct verb takeover_verb = {
    "takeover", "VM", "on the backup host: run VM there, its primary is lost", 1, 1, takeover};
const struct verb switchover_verb = {
    "switchover", "VM", "on the primary host: move VM to its backup, losing nothing", 1, 1,
    switchover};
