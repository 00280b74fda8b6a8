/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <endian.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "policy.h"

#define NO_SUBLEAF UINT32_MAX

enum { EAX = 2, EBX, ECX, EDX };

struct name {
    unsigned bit;
    const char *name;
};

#define COPIES_OF_LEAF_1 0x0183f3ffu /* in 0x80000001 edx, on AMD: a domain's policy has them, that of a host has not */

#define NAMES(...) .names = (const struct name[]){__VA_ARGS__, {0, NULL}}

/* Where there are features; those that the kernel turns on itself, or that only say that there is a hypervisor, are in `ignored'. */
static const struct features {
    uint32_t leaf, subleaf;
    unsigned reg;
    uint32_t ignored;
    const struct name *names;
} features[] = {
    {1, 0, ECX, 1u << 27 | 1u << 31,
     NAMES({0, "sse3"}, {1, "pclmulqdq"}, {9, "ssse3"}, {12, "fma"}, {13, "cx16"}, {17, "pcid"}, {19, "sse4.1"}, {20, "sse4.2"}, {21, "x2apic"},
           {22, "movbe"}, {23, "popcnt"}, {24, "tsc-deadline"}, {25, "aes"}, {26, "xsave"}, {28, "avx"}, {29, "f16c"}, {30, "rdrand"})},
    {1, 0, EDX, 0, NAMES({25, "sse"}, {26, "sse2"})},
    {7, 0, EBX, 0,
     NAMES({0, "fsgsbase"}, {3, "bmi1"}, {5, "avx2"}, {7, "smep"}, {8, "bmi2"}, {9, "erms"}, {10, "invpcid"}, {16, "avx512f"}, {17, "avx512dq"},
           {18, "rdseed"}, {19, "adx"}, {20, "smap"}, {23, "clflushopt"}, {24, "clwb"}, {28, "avx512cd"}, {29, "sha"}, {30, "avx512bw"},
           {31, "avx512vl"})},
    {7, 0, ECX, 1u << 4, NAMES({2, "umip"}, {3, "pku"}, {8, "gfni"}, {9, "vaes"}, {10, "vpclmulqdq"}, {22, "rdpid"})},
    {7, 0, EDX, 0, NAMES({14, "serialize"}, {26, "ibrs"}, {27, "stibp"}, {31, "ssbd"})},
    {7, 1, EAX, 0, NAMES({4, "avx-vnni"}, {5, "avx512-bf16"})},
    {0xd, 1, EAX, 0, NAMES({0, "xsaveopt"}, {1, "xsavec"}, {2, "xgetbv1"}, {3, "xsaves"})},
    {0x80000001, 0, ECX, 0, NAMES({5, "lzcnt"}, {6, "sse4a"}, {8, "prefetchw"}, {11, "xop"}, {16, "fma4"}, {21, "tbm"})},
    {0x80000001, 0, EDX, COPIES_OF_LEAF_1, NAMES({20, "nx"}, {26, "1g-pages"}, {27, "rdtscp"}, {29, "long mode"})},
    {0x80000007, 0, EDX, 0, NAMES({8, "invariant tsc"})},
    {0x80000008, 0, EBX, 0, NAMES({0, "clzero"}, {12, "ibpb"}, {14, "ibrs"}, {15, "stibp"}, {24, "ssbd"})},
    {0x80000021, 0, EAX, 0, NAMES({2, "lfence+"})},
};

/* False: there is no such leaf; then all its features are off. */
static bool find_leaf(const uint8_t *leaves, size_t len, uint32_t leaf, uint32_t subleaf, uint32_t words[6])
{
    memset(words, 0, 6 * sizeof(*words));
    for (; len >= POLICY_LEAF; leaves += POLICY_LEAF, len -= POLICY_LEAF) {
        uint32_t at[6];

        memcpy(at, leaves, sizeof(at));
        if (le32toh(at[0]) != leaf || (le32toh(at[1]) != subleaf && !(subleaf == 0 && le32toh(at[1]) == NO_SUBLEAF)))
            continue;
        for (unsigned i = 0; i < 6; i++)
            words[i] = le32toh(at[i]);
        return true;
    }
    return false;
}

struct list {
    char *text;
    size_t size, used;
    unsigned count;
};

static void add(struct list *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void add(struct list *l, const char *fmt, ...)
{
    char what[96];
    va_list ap;
    size_t len;

    va_start(ap, fmt);
    vsnprintf(what, sizeof(what), fmt, ap);
    va_end(ap);
    len = strlen(what);
    l->count++;
    if (l->used + len + sizeof(", and more") + 2 < l->size)
        l->used += (size_t)snprintf(l->text + l->used, l->size - l->used, "%s%s", l->used ? ", " : "", what);
    else if (l->used + sizeof(", and more") <= l->size)
        l->used = l->size, strcat(l->text, ", and more");
}

static void compare_features(struct list *l, const struct features *f, uint32_t missing)
{
    static const char *const registers[] = {[EAX] = "eax", [EBX] = "ebx", [ECX] = "ecx", [EDX] = "edx"};

    for (unsigned bit = 0; bit < 32; bit++) {
        const struct name *n = f->names;

        if (!(missing >> bit & 1))
            continue;
        while (n->name && n->bit != bit)
            n++;
        add(l, n->name ? "%s (leaf %#x %s bit %u)" : "%sleaf %#x %s bit %u", n->name ? n->name : "", f->leaf, registers[f->reg], bit);
    }
}

unsigned policy_missing(const uint8_t *guest, size_t guest_len, const uint8_t *host, size_t host_len, char *text, size_t size)
{
    struct list l = {.text = text, .size = size};
    uint32_t there[6], here[6];

    text[0] = '\0';
    for (size_t i = 0; i < sizeof(features) / sizeof(*features); i++) {
        const struct features *f = &features[i];

        find_leaf(guest, guest_len, f->leaf, f->subleaf, there);
        find_leaf(host, host_len, f->leaf, f->subleaf, here);
        compare_features(&l, f, there[f->reg] & ~here[f->reg] & ~f->ignored);
    }
    for (uint32_t base = 0; base <= 0x80000000; base += 0x80000000) {
        find_leaf(guest, guest_len, base, 0, there);
        find_leaf(host, host_len, base, 0, here);
        if (base == 0 && memcmp(&there[EBX], &here[EBX], 12) != 0)
            add(&l, "its maker (vendor)");
        if (there[EAX] > here[EAX])
            add(&l, "leaf %#x: %#x is the highest, here %#x", base, there[EAX], here[EAX]);
        if (base)
            break;
    }
    return l.count;
}
