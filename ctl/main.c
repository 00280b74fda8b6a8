/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "common/config.h"
#include "common/control.h"
#include "remusctl.h"

static const struct verb *const verbs[] = {
    &list_verb,     &status_verb,     &protect_verb, &unprotect_verb,
    &takeover_verb, &switchover_verb, &discard_verb, &set_verb,    &verify_verb,
    &preflight_verb, &forget_verb,
};
#define VERB_COUNT (sizeof(verbs) / sizeof(*verbs))

static void usage(FILE *out)
{
    fputs("Usage: remusctl [-R DIR | -s PATH] [--json] VERB [ARGUMENT]...\n"
          "       remusctl -h | -V\n\n"
          "Asks remusd and remus-backupd of this host, and tells them what to do.\n\n",
          out);
    for (size_t i = 0; i < VERB_COUNT; i++)
        fprintf(out, "  %-10s %-24s %s\n", verbs[i]->name, verbs[i]->args, verbs[i]->help);
    fputs("\n"
          "  -R, --run-dir DIR   run-dir of the daemons; default $REMUS_RUN_DIR or /run/remus\n"
          "  -s, --socket PATH   ask only the daemon that listens on PATH\n"
          "  -j, --json          print one JSON object\n"
          "  -h, --help          print this and exit\n"
          "  -V, --version       print the version and exit\n\n"
          "Exit status: 0 done; 1 failed; 2 usage; 3 not protected (status); 4 not known, or no\n"
          "permission; 6 no such VM; 7 the daemon does not run; 8 the disks differ (verify).\n",
          out);
}

static int report(const struct ctl *ctl, const struct failure *f)
{
    if (!f->text[0])
        return f->status;
    if (ctl->json)
        print_json(json_pack("{s:i, s:s, s:s}", "format", CONTROL_FORMAT, "code", f->code, "error",
                             f->text));
    else
        fprintf(stderr, "remusctl: %s\n", f->text);
    return f->status;
}

static int run(const struct ctl *ctl, int argc, char **argv, struct failure *f)
{
    const struct verb *verb = NULL;

    if (argc == 0)
        return fail(f, STATUS_USAGE, "usage", "a verb is missing; remusctl --help lists them");
    for (size_t i = 0; i < VERB_COUNT; i++)
        if (strcmp(verbs[i]->name, argv[0]) == 0)
            verb = verbs[i];
    if (!verb)
        return fail(f, STATUS_USAGE, "usage", "no verb \"%s\"; remusctl --help lists them",
                    argv[0]);
    argc--;
    argv++;
    for (int i = 0; i < argc; i++)
        if (*argv[i] == '-' && !strstr(verb->args, "--"))
            return fail(f, STATUS_USAGE, "usage", "%s: unexpected \"%s\"; options stand before the verb", verb->name, argv[i]);
    if (argc < verb->min_args || argc > verb->max_args)
        return fail(f, STATUS_USAGE, "usage", "usage: remusctl %s%s%s", verb->name, *verb->args ? " " : "", verb->args);
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--to") == 0) {
            i++;
        } else if (strncmp(argv[i], "-", 1) != 0) {
            if (!config_good_name(argv[i]))
                return fail(f, STATUS_USAGE, "usage", "\"%s\" is not the name of a VM", argv[i]);
            break;
        }
    return verb->run(ctl, argc, argv, f);
}

int main(int argc, char **argv)
{
    static const struct option longs[] = {
        {"run-dir", required_argument, NULL, 'R'}, {"socket", required_argument, NULL, 's'},
        {"json", no_argument, NULL, 'j'},          {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},       {NULL, 0, NULL, 0},
    };
    struct ctl ctl = {.run_dir = getenv("REMUS_RUN_DIR")};
    struct failure f = {0};
    int c;

    if (!ctl.run_dir)
        ctl.run_dir = "/run/remus";
    while ((c = getopt_long(argc, argv, "+R:s:jhV", longs, NULL)) != -1) {
        switch (c) {
        case 'R':
            ctl.run_dir = optarg;
            break;
        case 's':
            ctl.socket = optarg;
            break;
        case 'j':
            ctl.json = true;
            break;
        case 'h':
            usage(stdout);
            return 0;
        case 'V':
            printf("remusctl %s\n", PACKAGE_VERSION);
            return 0;
        default:
            fprintf(stderr, "Try remusctl --help.\n");
            return STATUS_USAGE;
        }
    }
    c = run(&ctl, argc - optind, argv + optind, &f);
    return c ? report(&ctl, &f) : 0;
}
