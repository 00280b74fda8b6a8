/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The records between primary and backup: docs/remus-protocol.pod is the specification, this is the same in C.
 * All integers in network byte order.  Encoders write into a buffer of PROTO_SMALL_MAX octets and return the
 * length; decoders check everything (R10) and say in err what is wrong.
 */
#ifndef REMUS_PROTOCOL_H
#define REMUS_PROTOCOL_H

#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>

#include "config.h"
#include "error.h"

#define PROTO_VERSION_MIN 1
#define PROTO_VERSION_MAX 1
#define PROTO_MAGIC UINT64_C(0x72656d7573640d0a) /* "remusd\r\n" */
#define PROTO_HEADER_LEN 24
#define PROTO_CHECKED 16 /* octets of it before the checksum */
#define PROTO_BODY_MAX (2u << 20)   /* octets in one record's body */
#define PROTO_SMALL_MAX 1024        /* octets in the body of anything but pages, blocks, state, net, disk, machine, probe */
#define PROTO_PROBE_MAX 65536u
#define PROTO_PORT "7910"

/* Types of records.  P: primary to backup, B: backup to primary. */
enum proto_type {
    PROTO_HELLO = 1,      /* P */
    PROTO_WELCOME = 2,    /* B */
    PROTO_REFUSE = 3,     /* P, B: and the connection ends */
    PROTO_HEARTBEAT = 4,  /* P, B */
    PROTO_PAGES = 5,      /* P: one block of the page codec; epoch 0 while synchronising */
    PROTO_STATE = 6,      /* P: machine state, in pieces */
    PROTO_NET = 7,        /* P: network state, in pieces */
    PROTO_END = 8,        /* P: the checkpoint is whole */
    PROTO_ACK = 9,        /* B: the backup holds the checkpoint (R2) */
    PROTO_GOODBYE = 10,   /* P, B: a clean end; never taken for a failure (R7) */
    PROTO_HANDOVER = 11,  /* P: activate this checkpoint, the guest here stays stopped */
    PROTO_ACTIVATED = 12, /* B: the replica runs here now */
    PROTO_DISK = 13,      /* P: changes of disks (disk/entry.h); epoch 0 while synchronising */
    PROTO_DISK_END = 14,  /* P: all changes of the epoch were sent */
    PROTO_DISKS = 15,     /* B: before WELCOME: what the backup has of each disk */
    PROTO_COMPARED = 16,  /* B: blocks of disks that were compared, and those that differ */
    PROTO_MACHINE = 17,   /* P: behind HELLO: the platform's description of the machine, opaque here */
    PROTO_BLOCKS = 18,    /* P: pages that are blocks of disks */
    PROTO_PROBE = 19,     /* P: octets that measure the way; B: when they came */
    PROTO_LACK = 20,      /* B: before WELCOME: a thing that is missing or differs */
};
#define PROTO_TYPE_MAX 20

#define FEATURE_DISK_CHECKS UINT64_C(2) /* CHECK entries in DISK, COMPARED, DISK_COMPARE in DISKS */
#define FEATURE_MACHINE UINT64_C(4) /* MACHINE follows a HELLO without HELLO_QUERY */
#define FEATURE_BLOCKS UINT64_C(8) /* BLOCKS */
#define FEATURE_DISKS UINT64_C(16) /* DISK, DISK_END, DISKS; HELLO names the disks */
#define FEATURE_PREFLIGHT UINT64_C(32) /* HELLO_PREFLIGHT, LACK, PROBE */
#define FEATURES_KNOWN (FEATURE_DISKS | FEATURE_DISK_CHECKS | FEATURE_MACHINE | FEATURE_BLOCKS | FEATURE_PREFLIGHT)

enum proto_refusal {
    REFUSE_PROTOCOL = 1,  /* malformed or out of order */
    REFUSE_VERSION = 2,
    REFUSE_FEATURE = 3,
    REFUSE_UNKNOWN_VM = 4,
    REFUSE_BUSY = 5,      /* another primary protects this VM here */
    REFUSE_RESOURCES = 6,
    REFUSE_PROFILE = 7,   /* the hosts' machines differ */
    REFUSE_ACTIVE = 8,    /* the VM runs on the backup: the primary's guest must stop */
    REFUSE_LATER = 9,     /* a takeover is being decided: try again */
    REFUSE_CORRUPT = 10,  /* checksum wrong */
};

/* The fixed header of every record, the same in all versions. */
struct proto_header {
    uint16_t type;
    uint32_t length;   /* of the body */
    uint64_t epoch;
    uint64_t checksum; /* XXH3-64 of the header's first PROTO_CHECKED octets and the body */
};

#define HELLO_RESYNC 1u /* what changed since the last checkpoint is not known: send all again */
#define HELLO_QUERY 2u  /* may the primary start the guest?  WELCOME or REFUSE, then the end */
#define HELLO_HELD 4u   /* no output left since the last checkpoint that was acknowledged: it still counts */
#define HELLO_PREFLIGHT 8u /* what would the backup lack?  Requires FEATURE_PREFLIGHT; nothing changes by it */

/* How a link begins, for whoever keeps what came over the one before. */
enum link_start {
    START_ANEW,   /* everything is sent, there is no checkpoint */
    START_RESUME, /* the checkpoint stays, what changed since comes with the next one */
    START_KEEP,   /* everything is sent; until that is whole the old checkpoint can be had back */
};

struct proto_disk {
    uint64_t size;              /* octets */
    uint64_t id;                /* random: of the image's lineage, see disk/image.h */
};

struct proto_hello {
    uint16_t version_min, version_max;
    uint64_t features;          /* FEATURE_...: that the primary can use */
    uint64_t required;          /* that it cannot do without */
    uint64_t session;           /* random: this run of the guest, from its start to its end */
    uint32_t flags;             /* HELLO_... */
    uint64_t pages;             /* of the guest */
    uint32_t page_size;
    uint32_t heartbeat_ms, timeout_ms;
    char vm[CONFIG_NAME_MAX + 1];
    char platform[32];
    char profile[256];
    unsigned disk_count;        /* at most CONFIG_DISKS_MAX; with FEATURE_DISKS */
    struct proto_disk disks[CONFIG_DISKS_MAX];
    /* with HELLO_PREFLIGHT: what the sections must agree on; "" where there is none */
    char mac[18], guest_bridge[CONFIG_TAPLEN_MAX + 1], vif[CONFIG_TAPLEN_MAX + 1], netbuf[CONFIG_TAPLEN_MAX + 1];
};

struct proto_welcome {
    uint16_t version;
    uint64_t features;
    uint64_t committed;         /* checkpoint of this session that the backup holds; 0: send everything */
};

struct proto_end {
    uint64_t pages;             /* in this checkpoint, with those sent while synchronising */
    uint32_t state_length, net_length;
    uint64_t digest;            /* XXH3-64 of each page's number and content, state, net */
};

struct proto_disk_end {
    uint64_t generation;        /* of the primary's images at the end of the epoch */
    uint64_t length;            /* octets in all DISK bodies since the DISK_END before */
    uint64_t digest;            /* proto_disk_digest() over these records, from 0 on */
};

#define DISK_SIZE_UNKNOWN UINT64_MAX /* in a HELLO with HELLO_PREFLIGHT: the image is not there yet */
#define DISK_COMPARE UINT64_MAX /* in DISKS: an image of unknown content is there, compare before sending */

struct proto_range {
    uint32_t disk, length;
    uint64_t offset;
};

#define COMPARED_RANGES 60u

struct proto_compared {
    uint64_t octets;            /* compared since the COMPARED before */
    unsigned count;
    struct proto_range differ[COMPARED_RANGES];
};

#define PROTO_BLOCK_LEN 32u    /* octets of one in BLOCKS */
#define PROTO_BLOCK_SIZE 4096u /* of the disk */

/* A page that equals a block of a disk. */
struct proto_block {
    uint64_t pfn;
    uint64_t generation;        /* of the last write to the block */
    uint32_t disk, block;       /* at block * PROTO_BLOCK_SIZE */
    uint64_t hash;              /* XXH3-64 of the content */
};

/* The backup's answer to a PROBE, nanoseconds of CLOCK_REALTIME. */
struct proto_probe {
    uint64_t received, sent;
};

#define PROTO_LACKS_MAX 32u  /* before one WELCOME */
#define PROTO_PROBES_MAX 2048u /* on one connection */

/* As preflight.h's. */
struct proto_lack {
    char what[256], remedy[256];
};

/* REFUSE and GOODBYE */
struct proto_notice {
    uint16_t code;
    char text[256];
};

const char *proto_type_name(unsigned type);

void proto_put_header(uint8_t out[PROTO_HEADER_LEN], const struct proto_header *h);
/* Checks all but the checksum, which is the caller's, who has the body: a length that is wrong must not be waited for. */
int proto_get_header(struct proto_header *h, const uint8_t in[PROTO_HEADER_LEN], struct error *err);

size_t proto_put_hello(uint8_t *out, const struct proto_hello *m);
int proto_get_hello(struct proto_hello *m, const uint8_t *in, size_t len, struct error *err);
size_t proto_put_welcome(uint8_t *out, const struct proto_welcome *m);
int proto_get_welcome(struct proto_welcome *m, const uint8_t *in, size_t len, struct error *err);
size_t proto_put_end(uint8_t *out, const struct proto_end *m);
int proto_get_end(struct proto_end *m, const uint8_t *in, size_t len, struct error *err);
/* What `digest' becomes with one more DISK record, of this checksum. */
uint64_t proto_disk_digest(uint64_t digest, uint64_t checksum);
size_t proto_put_disk_end(uint8_t *out, const struct proto_disk_end *m);
int proto_get_disk_end(struct proto_disk_end *m, const uint8_t *in, size_t len, struct error *err);
/* generations[i]: what the backup has of disk i, 0 for nothing */
size_t proto_put_disks(uint8_t *out, const uint64_t *generations, unsigned count);
int proto_get_disks(uint64_t *generations, unsigned count, const uint8_t *in, size_t len,
                    struct error *err);
size_t proto_put_compared(uint8_t *out, const struct proto_compared *m);
int proto_get_compared(struct proto_compared *m, const uint8_t *in, size_t len, struct error *err);
size_t proto_put_block(uint8_t *out, const struct proto_block *m); /* one of them: PROTO_BLOCK_LEN octets */
void proto_get_block(struct proto_block *m, const uint8_t in[PROTO_BLOCK_LEN]);
size_t proto_put_probe(uint8_t *out, const struct proto_probe *m);
int proto_get_probe(struct proto_probe *m, const uint8_t *in, size_t len, struct error *err);
/* Texts that are too long are cut. */
size_t proto_put_lack(uint8_t *out, const char *what, const char *remedy);
/* What is not printable ASCII has become '?'. */
int proto_get_lack(struct proto_lack *m, const uint8_t *in, size_t len, struct error *err);
size_t proto_put_notice(uint8_t *out, unsigned code, const char *text);
int proto_get_notice(struct proto_notice *m, const uint8_t *in, size_t len, struct error *err);

/* The version that both sides speak, the highest; 0 when there is none (err says which are offered). */
unsigned proto_choose_version(const struct proto_hello *hello, struct error *err);

#endif
