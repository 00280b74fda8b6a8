/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the fake guest is: registers outside of its memory, memory whose every word can be checked, and frames.
 * Pure: the process around it is guest.c.
 *
 * Page 0 repeats the registers and holds a digest of all other pages, so a memory with one page of another
 * epoch, or registers of another epoch, do not pass model_verify().  A page is 64 lines of 64 octets:
 *
 *     line 0       seq of the last write | sum over the lines | check of both | zeros
 *     line 1..63   seq of the line's last write | seven words that follow from page, line and seq
 *
 * All zero means never written.  A piece of work rewrites a few lines of one page (now and then all of them), as a
 * database does: the rest of the page stays, and the words have few random bits.
 */
#ifndef REMUS_FAKE_MODEL_H
#define REMUS_FAKE_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#define MODEL_STATE_LEN 64 /* octets of encoded registers */

enum model_pattern { MODEL_RANDOM, MODEL_SEQUENTIAL, MODEL_HOT };

/* The machine state. */
struct model_regs {
    uint64_t seq;      /* pieces of work done */
    uint64_t random;
    uint64_t cursor;   /* page of the last sequential write */
    uint64_t frames;   /* beacons sent */
    uint64_t requests; /* requests answered */
    uint64_t last_request;
};

struct model {
    struct model_regs regs;
    uint8_t *memory;
    uint64_t pages; /* at least 2 */
};

/* A guest's first start, on memory that is all zero. */
void model_init(struct model *m, uint8_t *memory, uint64_t pages);

/* One piece of work: checks the lines of a page that it is about to rewrite, and rewrites them.  False when they
 * were not what they must be. */
bool model_work(struct model *m, enum model_pattern pattern);

/* To be called when registers were changed by other than model_work: brings page 0 up to date. */
void model_store(struct model *m);

/*
 * Compares all memory and the registers.  fd is the memory's file: its holes are zero and not looked at.  Returns
 * the pages that are wrong by themselves, plus 1 when they are right but not all of one epoch, or not that of
 * the registers; err says what was found first.
 */
uint64_t model_verify(const struct model *m, int fd, uint64_t *verified, struct error *err);

/* Registers as octets (network byte order): magic, version, the six registers, FNV-1a of all before it. */
void model_encode(const struct model_regs *regs, uint8_t out[MODEL_STATE_LEN]);
int model_decode(struct model_regs *regs, const uint8_t *data, size_t len, struct error *err);

uint64_t model_fnv1a(const uint8_t *data, size_t len);

#endif
