/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Runs a fuzz target without libFuzzer: every file of the corpus as it is, then changed at random,
 * always in the same way. Arguments: the folder and how many changes of each file. TAP, for make
 * check.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INPUT_MAX (1 << 16)
#define ROUNDS 30

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static uint64_t seed = 99;

static uint64_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

static void change(uint8_t *data, size_t *len)
{
    for (int i = (int)(rnd() % 4); i >= 0 && *len > 0; i--) {
        size_t at = rnd() % *len;

        switch (rnd() % 4) {
        case 0:
            *len = at;
            break;
        case 1:
            data[at] ^= (uint8_t)(1u << rnd() % 8);
            break;
        case 2:
            memmove(data + at, data + rnd() % *len / 2, (*len - at) / 2);
            break;
        default:
            data[at] = rnd() % 2 ? 0xff : (uint8_t)rnd();
        }
    }
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

int main(void)
{
    static uint8_t file[INPUT_MAX], data[INPUT_MAX];
    const char *top = getenv("top_srcdir");
    char folder[2048];
    int files = 0, n;
    struct dirent **names;

    snprintf(folder, sizeof(folder), "%s/tests/corpus/pagecodec/" CORPUS, top ? top : "..");
    n = scandir(folder, &names, NULL, by_name);
    if (n < 0) {
        printf("1..1\nnot ok 1 - no corpus in %s\n", folder);
        return 1;
    }
    for (int i = 0; i < n; i++) {
        char path[4096];
        FILE *f;
        size_t len;

        snprintf(path, sizeof(path), "%s/%s", folder, names[i]->d_name);
        f = names[i]->d_name[0] == '.' ? NULL : fopen(path, "r");
        free(names[i]);
        if (!f)
            continue;
        len = fread(file, 1, sizeof(file), f);
        fclose(f);
        LLVMFuzzerTestOneInput(file, len);
        for (int k = 0; k < ROUNDS; k++) {
            size_t some = len;

            memcpy(data, file, len);
            change(data, &some);
            LLVMFuzzerTestOneInput(data, some);
        }
        files++;
    }
    free(names);
    printf("1..1\nok 1 - R10: %d inputs and %d changes of each\n", files, ROUNDS);
    return 0;
}
