/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is known of a disk image, in the file IMAGE.remus beside it:
 *
 *     0     the record: whose image this is, and how far it is (512 octets, checksummed, written at once)
 *     4096  stamps: for each 64 KiB block the generation in which the guest last wrote to it, 8 octets
 *
 * A generation is the stretch between two barriers; its numbers grow for as long as the image lives, over all links,
 * sessions, daemons and disk servers.  A copy that is whole up to generation G lacks exactly the blocks whose stamp is above
 * G.  So nothing is ever cleared, nothing depends on what was in flight when a link or a daemon was lost, and the same map serves first
 * sync, resync, and any number of them.  Stamps are set before the block is written; they lie in the page cache, which outlives every
 * process.  After a loss of the host itself they are not believed: the image gets a new id, and a copy of the old one is no base.
 *
 * The record is the activation record (R5): it says whether this image is the valid one.
 */
#ifndef REMUS_DISK_IMAGE_H
#define REMUS_DISK_IMAGE_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

#define IMAGE_BLOCK 65536u

enum image_role {
    IMAGE_VALID = 1,   /* the guest runs, or ran last, from it */
    IMAGE_REPLICA = 2, /* a copy that only remus-backupd may change */
    IMAGE_STALE = 3,   /* the guest went on elsewhere, from checkpoint `epoch` */
};

struct image_record {
    enum image_role role;
    bool clean;          /* closed in order: `changed` was the image's mtime then */
    uint64_t id;         /* random, of this lineage */
    uint64_t size;       /* of the image */
    uint64_t epoch;      /* VALID by a takeover, STALE: since this checkpoint; otherwise 0 */
    uint64_t changed;    /* ns */
    uint64_t first;      /* generation of the server that last opened it; 0: of none */
    char boot[40];       /* of the host that last opened it for its guest */
};

/* IMAGE.remus.  -1 when that is too long. */
int image_record_path(const char *image, char path[PATH_MAX]);

/* 1: read; 0: there is none; -1: it is damaged, err says what to do. */
int image_read(const char *image, struct image_record *rec, struct error *err);
/* Makes the file when there is none; durable when this returns. */
int image_write(const char *image, const struct image_record *rec, struct error *err);

/* Octets of the image; creates a sparse one of `create` octets when there is none and create is not 0. */
int image_size(const char *image, uint64_t create, uint64_t *size, struct error *err);

/* The image and its stamps, open. */
struct image {
    int fd, record_fd;
    bool regular;
    uint64_t size, blocks;
    uint64_t *stamps; /* in network byte order */
};

/* write: the stamps may be set.  The record must be there. */
int image_open(struct image *im, const char *image, bool write, struct error *err);
void image_close(struct image *im);

void image_stamp(struct image *im, uint64_t offset, uint64_t length, uint64_t generation);
/* The generation of the last write to the block there. */
uint64_t image_stamp_at(const struct image *im, uint64_t offset);
/* The first block at or after `from` with a stamp above `base`; im->blocks when there is none. */
uint64_t image_next_changed(const struct image *im, uint64_t from, uint64_t base);
uint64_t image_last_generation(const struct image *im);

/*
 * For whoever is about to run the guest from the image: refuses what is no valid image (R5), starts a new lineage
 * when the stamps cannot be trusted, and notes that it is open.
 */
int image_take(const char *image, struct error *err);
/*
 * For a server that begins: its first generation.  Above all that servers before it stamped with, and above those that they only
 * counted: a copy may be whole up to one in which nothing was written.  The images are open.
 */
int image_begin(char *const paths[], const struct image images[], unsigned count, uint64_t *generation,
                struct error *err);
/* The guest has ended and all is written: the image may be opened after a reboot as it is. */
int image_release(const char *image, struct error *err);
/* A takeover: the replica is the valid image from now on, with a lineage of its own. */
int image_validate(const char *image, uint64_t epoch, struct error *err);
/* R5: the guest went on elsewhere from this checkpoint. */
int image_disown(const char *image, uint64_t epoch, struct error *err);

#endif
