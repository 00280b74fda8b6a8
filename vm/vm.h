/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The seam to the hypervisor: vm_ops on the primary, replica_ops on the backup.
 *
 * One folder a platform (vm/qemu, vm/fake, vm/xen).  A platform embeds `struct vm` or `struct replica` as
 * its first member.  All calls for one VM come from one thread, so platforms need no locks.
 *
 * Machine state is opaque here: what save_state() wrote on the primary, activate() of the same platform
 * reads on the backup.  A profile string says what both must agree on ("qemu 7.2 microvm cpus=1 ...").
 */
#ifndef REMUS_VM_H
#define REMUS_VM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/bitmap.h"
#include "common/buffer.h"
#include "common/config.h"
#include "common/error.h"
#include "learn.h"

#define PAGE_SIZE 4096u
struct json_t;
#define VM_PROFILE_MAX 255
#define VM_STATE_MAX (64u << 20) /* octets of machine state in one checkpoint */
#define VM_DESCRIPTION_MAX (1u << 20) /* octets of struct vm's description */

enum vm_health {
    VM_ALIVE,
    VM_SHUT_DOWN, /* the guest powered itself off, or its operator did: no failure (R7) */
    VM_DIED,      /* the hypervisor's process is gone or the guest crashed */
};

struct vm {
    const struct vm_ops *ops;
    const uint8_t *memory;       /* where to copy pages from that scan reported; mapped for as long as the
                                  * vm is open, may lag behind the guest in all others */
    uint64_t pages;              /* memory is pages * PAGE_SIZE long; where the guest has none, scan
                                  * reports none */
    bool attached;               /* open found the guest running, it did not start it */
    bool unwilling;              /* suspend or scan failed although the guest is well: it does not suspend, or its
                                  * memory is another now.  No reason for a takeover; the next link starts afresh */
    uint64_t instance;           /* tells this run of the guest from others of its name; 0: the platform cannot */
    char accelerator[16];        /* "kvm", "tcg", "native" */
    char tracker[16];            /* "uffd" or "compare": what finds the dirty pages */
    char profile[VM_PROFILE_MAX + 1];
    struct buffer description;   /* what the replica must know of this machine ahead of any checkpoint, opaque
                                  * here; empty for a platform whose profile says it all */
};

/*
 * Order of calls: open, then scan at any time; suspend -> scan, save_state -> resume, over and over;
 * at the end either close (the guest goes on) or destroy.
 */
struct vm_ops {
    const char *name;

    /* Is there a guest of this name already, to which open would attach? */
    bool (*running)(const struct vm_config *cfg);

    /* NULL: sections say everything.  Else what the running guest of this name says of itself. */
    int (*facts)(const struct vm_config *section, struct vm_facts *facts, struct error *err);

    /*
     * NULL: its guests need sections.  Else: does a guest of this name run here that can be protected without one?  *memory_bytes: what
     * a section must say; 0: nothing.  section says nothing but name and run_dir.
     */
    int (*adopt)(const struct vm_config *section, uint64_t *memory_bytes, struct error *err);

    /* NULL: remusd starts the guests.  Else: has somebody started one of this name that open can attach to by now? */
    bool (*appeared)(const struct vm_config *cfg);

    /* preflight.h: what this host lacks, beyond taps and images.  From any thread.  May be NULL. */
    void (*preflight)(const struct vm_config *cfg, bool primary, struct json_t *lacks);

    /*
     * What open would put into struct vm's pages, profile and description, of the guest that runs, or of one that would: for a backup
     * to judge.  From any thread; touches neither guest nor host.
     */
    int (*describe)(const struct vm_config *cfg, uint64_t *pages, char profile[VM_PROFILE_MAX + 1],
                    struct buffer *description, struct error *err);

    /*
     * Starts the guest, or attaches to it when it already runs (a restarted daemon finds its guest again).
     * The guest runs when this returns.  Costs seconds; never called with another guest waiting.
     */
    int (*open)(struct vm **vm, const struct vm_config *cfg, struct error *err);

    /*
     * Stops the guest's processors and waits until its devices are quiet: from the return on neither memory
     * nor machine state changes, and every frame that the guest sent is in the network port's socket.
     * On failure the guest runs.
     */
    int (*suspend)(struct vm *vm, struct error *err);

    /* Undoes suspend. */
    int (*resume)(struct vm *vm, struct error *err);

    /*
     * Sets the bit of every page that was written since the last scan and starts to track afresh.  The first time:
     * of every page that was ever written; the others are zero.  Bits already set stay.  Running or suspended; a
     * page written during the scan of a running guest is reported by this scan or by the next.
     */
    int (*scan)(struct vm *vm, struct bitmap *dirty, struct error *err);

    /* Suspended only.  Appends the machine state to `state`. */
    int (*save_state)(struct vm *vm, struct buffer *state, struct error *err);

    /* Cheap, called once an epoch. */
    enum vm_health (*health)(struct vm *vm);

    /* Ends the guest at once, whatever it does, and frees the vm (fencing, policy `stop`). */
    void (*destroy)(struct vm *vm);

    /* Lets go of the guest, which goes on (or stays suspended), and frees the vm. */
    void (*close)(struct vm *vm);
};

struct replica {
    const struct replica_ops *ops;
    uint8_t *memory;             /* writable until activate() */
    uint64_t pages;
    struct bitmap *written;      /* NULL, or the caller sets the bit of each page that it has written */
};

/* Order of calls: open; the caller writes memory; activate once; settle; close.  health at any time. */
struct replica_ops {
    const char *name;

    /*
     * Makes a replica of `pages` pages, all zero, that waits ready to be activated.  Checks first that this host
     * can hold it (memory available, profile equal to this host's): err says what is missing, and nothing was
     * started.  description: of the primary's struct vm, not checked by anybody yet (R10).
     */
    int (*open)(struct replica **r, const struct vm_config *cfg, uint64_t pages, const char *profile,
                const struct buffer *description, struct error *err);

    /*
     * preflight.h: for what reasons open would refuse this guest.  here: there is a replica of it already.  description:
     * empty, or as open has it.  From any thread; starts and changes nothing.
     */
    void (*check)(const struct vm_config *cfg, uint64_t pages, const char *profile, const struct buffer *description,
                  bool here, struct json_t *lacks);

    /* NULL: sections say everything.  Else what the primary and this host say of the guest. */
    void (*facts)(const struct replica *r, struct vm_facts *facts);

    /* Optional.  memory has become a checkpoint, with this machine state: one more that may be activated.  Does not block. */
    void (*committed)(struct replica *r, const uint8_t *state, size_t len);

    /* Loads the machine state and runs the guest.  memory must hold the same checkpoint. */
    int (*activate)(struct replica *r, const uint8_t *state, size_t len, struct error *err);

    /* Optional.  What can wait until the guest has its network: called soon after activate succeeded. */
    void (*settle)(struct replica *r);

    /* How the guest fares; before activate, whether what waits for it is well. */
    enum vm_health (*health)(struct replica *r);

    /* Before activate: discards the replica.  After it: lets go of the guest, which goes on. */
    void (*close)(struct replica *r);
};

/* NBD socket of the guest's disks (disk/server.h): export N is disk N.  As vm_net_paths. */
int vm_disk_path(const struct vm_config *cfg, char path[108]);

/* Octets that this host has left for programs; UINT64_MAX when it does not tell. */
uint64_t vm_memory_available(void);

/* Asks all platforms to adopt the guest; err: why the last of them does not. */
int vm_adopt(const char *run_dir, const char *name, const char **platform, uint64_t *memory_bytes, struct error *err);

/* NULL for a platform that this build does not have. */
const struct vm_ops *vm_platform(const char *name);
const struct replica_ops *replica_platform(const char *name);

/* Unix datagram sockets of a guest's network: frames go guest -> port and port -> guest.  `out` has room for
 * sizeof(sockaddr_un.sun_path) octets; 0, or -1 when run_dir is too long. */
int vm_net_paths(const struct vm_config *cfg, char guest[108], char port[108]);

#endif
