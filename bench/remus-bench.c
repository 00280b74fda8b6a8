/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <ftw.h>
#include <stdio.h>
#include <string.h>

#include "bench/bench.h"

static const struct bench_verb verbs[] = {
    {"compress",
     "(--trace FILE | --random PAGES) [--json] [--cache MIB] [--rounds N] [--codec NAME] "
     "[--no-base]",
     "replay a page trace through the page codec and the codecs it is compared with",
     bench_compress},
    {"disk", "[--json] [--dir DIR]", "what protection costs the guest's disk; how fast the backup follows",
     bench_disk},
    {"epoch", "[--json] [--kernel FILE --guest FILE]",
     "what a checkpoint costs the guest, by phase; with a kernel also on a QEMU guest", bench_epoch},
    {"netbuf", "[--json]", "what holding packets costs", bench_netbuf},
    {"netbuf-queue", "[--json]", "what the nfqueue port costs beyond the kernel's queue", bench_netbuf_queue},
    {"record", "(--ram FILE | --shm ID) --output FILE [--seconds S] [--interval MS]",
     "record the pages that change in a mapped memory as a page trace", bench_record},
};

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

void remove_folder(const char *dir)
{
    nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static int usage(FILE *out, int status)
{
    fprintf(out, "usage: remus-bench VERB ...\n");
    for (size_t i = 0; i < sizeof(verbs) / sizeof(*verbs); i++)
        fprintf(out, "  %s %s\n      %s\n", verbs[i].name, verbs[i].synopsis, verbs[i].help);
    return status;
}

int main(int argc, char **argv)
{
    char name[64];

    if (argc < 2)
        return usage(stderr, 2);
    if (strcmp(argv[1], "--help") == 0)
        return usage(stdout, 0);
    for (size_t i = 0; i < sizeof(verbs) / sizeof(*verbs); i++)
        if (strcmp(argv[1], verbs[i].name) == 0) {
            snprintf(name, sizeof(name), "remus-bench %s", argv[1]);
            argv[1] = name;
            return verbs[i].run(argc - 1, argv + 1);
        }
    fprintf(stderr, "remus-bench: unknown verb \"%s\"\n", argv[1]);
    return usage(stderr, 2);
}
