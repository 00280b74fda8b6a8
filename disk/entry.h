/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One change of a disk: the same octets in the write queue, in DISK records and in the backup's journal, so that
 * nobody copies or converts them on the way (docs/remus-protocol.pod, DISK).
 *
 *      0     1     2           4                       8
 *     +-----+-----+-----------+-----------------------+-----------------------+
 *     |kind |disk | reserved  |        length         |        offset         |
 *     +-----+-----+-----------+-----------------------+-----------------------+
 *  16 | WRITE: `length' octets, then zeros up to a multiple of 16             |
 *     | CHECK: XXH3-64 of the range, then zeros up to a multiple of 16        |
 *
 * A CHECK changes nothing: it says what the range holds on the primary at this very point in the order of changes.
 */
#ifndef REMUS_DISK_ENTRY_H
#define REMUS_DISK_ENTRY_H

#include <stddef.h>
#include <stdint.h>

#include "common/config.h"
#include "common/error.h"

#define DISKS_MAX CONFIG_DISKS_MAX
#define ENTRY_HEAD 16u
#define ENTRY_DATA_MAX (256u << 10) /* octets in one WRITE */
#define ENTRY_CHECK_MAX 65536u      /* octets that one CHECK speaks of; they begin at a multiple of it */

enum entry_kind {
    ENTRY_PAD = 0,   /* in the write queue only: `length' octets to skip */
    ENTRY_WRITE = 1,
    ENTRY_ZERO = 2,  /* reads as zeros from now on */
    ENTRY_TRIM = 3,  /* the same, and the space may be given back */
    ENTRY_CHECK = 4,
};

struct entry {
    unsigned kind, disk;
    uint32_t length;     /* of the range on the disk */
    uint64_t offset;
    const uint8_t *data; /* WRITE */
    uint64_t hash;       /* CHECK */
};

/* Octets that an entry takes. */
size_t entry_size(unsigned kind, uint32_t length);

/* Writes head, padding and hash; the data of a WRITE too, when there is any. */
void entry_put(uint8_t *out, const struct entry *e);

/*
 * Takes the entry at *at, which ends before `end`, and moves *at behind it.  Checks kind, disk, and that the range lies
 * inside the disk (sizes[count]).  -1 and err when something is wrong (R10).
 */
int entry_get(struct entry *e, const uint8_t **at, const uint8_t *end, const uint64_t *sizes,
              unsigned count, struct error *err);

/* Makes the change of a WRITE, ZERO or TRIM in the image behind fd.  -1 with errno, perhaps half way. */
int entry_apply(const struct entry *e, int fd);

#endif
