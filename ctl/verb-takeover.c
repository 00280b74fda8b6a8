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

static int discard(const struct ctl *ctl, int argc, char **argv, struct failure *f)
{
    json_t *result = NULL;

    (void)argc;
    if (call(ctl, BACKUP, "discard", argv[0], NULL, &result, f))
        return f->status;
    json_decref(result);
    if (ctl->json)
        return print_json(json_pack("{s:s}", "vm", argv[0]));
    printf("%s: the replica is thrown away; a primary may protect the VM here again\n", argv[0]);
    return 0;
}

const struct verb takeover_verb = {
    "takeover", "VM", "on the backup: run VM there, its primary is lost", 1, 1, takeover};
const struct verb switchover_verb = {
    "switchover", "VM", "on the primary: move VM to its backup, no loss", 1, 1,
    switchover};
const struct verb discard_verb = {
    "discard", "VM", "on the backup: throw away a lost primary's replica", 1, 1, discard};
