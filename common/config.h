/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The configuration file, remusd.conf(5): one schema for both daemons, so that the same file can
 * serve a host that is primary for one VM and backup for another.  This header is plain data:
 * whoever is handed a `struct vm_config` needs no parser.
 */
#ifndef REMUS_CONFIG_H
#define REMUS_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define CONFIG_NAME_MAX 63 /* of a VM: letters, digits, '-', '_', '.', the first no '.' or '-' */
#define CONFIG_TAPLEN_MAX 15
#define CONFIG_DISKS_MAX 8
#define CONFIG_INTERVAL_MIN 5 /* ms; `remusctl set` keeps to the same bounds */
#define CONFIG_INTERVAL_MAX 10000

enum degrade_policy { DEGRADE_HOLD, DEGRADE_RELEASE, DEGRADE_STOP };
enum takeover_policy { TAKEOVER_MANUAL, TAKEOVER_AUTOMATIC };
enum open_when { OPEN_IN_TRANSACTION, OPEN_ACTIVE };
enum netbuf { NETBUF_AUTO, NETBUF_FRAMES, NETBUF_NFQUEUE, NETBUF_PLUG };

/*
 * One `vm NAME { ... }` section.  Strings are owned by the config and never NULL (empty when not
 * set).
 */
struct vm_config {
    char name[CONFIG_NAME_MAX + 1];
    char *run_dir;     /* copy of the top level's */

    /* protection */
    char *backup;             /* HOST:PORT of the backup; "" = this host is its backup */
    bool protect;             /* start protecting when remusd starts; backup is set then */
    unsigned interval_ms;     /* 25 */
    unsigned heartbeat_ms;    /* 20 */
    unsigned timeout_ms;      /* 200: silence that makes the peer suspect */
    unsigned degrade_after_ms;/* 2000: link loss before the degrade policy acts */
    enum degrade_policy degrade;    /* hold */
    enum takeover_policy takeover;  /* manual */
    char *arbiter;            /* `exec COMMAND ARGUMENTS`: from the absolute path on; "" = none */
    unsigned arbiter_timeout_ms;    /* 5000 */
    char *compression;        /* "off", "lz4", "zstd" or "auto" */
    unsigned compression_threads; /* 1 */
    size_t staging_bytes;     /* 64 MiB: primary's staging buffer */
    size_t net_queue_bytes;   /* 32 MiB: held frames */

    /* disks */
    char **disks;             /* images, absolute paths, NULL-terminated */
    unsigned disk_count;      /* of them, at most CONFIG_DISKS_MAX */
    char *image_dir;          /* only in `others`: where the backup makes images; "" = it does not */
    size_t disk_queue_bytes;  /* 32 MiB: primary's queue of writes */
    size_t disk_sync_rate;    /* octets a second of image, 0: no limit */
    size_t disk_reads_bytes;  /* 4 MiB: what the guest has read; 0: no read tracking */
    size_t disk_journal_bytes;/* 256 MiB: backup's journal file */

    /* the machine */
    char *platform;           /* "qemu", "xen" or "fake" */
    uint64_t memory_bytes;    /* multiple of the page size; 0 for platform xen: the domain says it */
    unsigned cpus;
    char *tracker;            /* "auto", "uffd" or "compare" */
    char *tap;                /* interface that the guest's frames leave through; "" = no network;
                                 "unix:PATH" as in struct frames_port_config (tests) */
    char *mac;                /* never "" when tap is set, but for platform xen: the domain says it, as the next two */
    char *guest_bridge;       /* platform = xen: bridge of the guest's vif; "" = none */
    char *vif;                /* platform = xen, without tap: the guest's interface on this host; "" = none */
    unsigned nfqueue;         /* 0: with vif, the first of two netfilter queues */
    char *services;           /* for config_next_service(); "" = none */
    enum open_when open_when; /* active */
    enum netbuf netbuf;       /* auto: what the host has */

    /* platform = qemu */
    char *qemu;               /* binary */
    char *accelerator;        /* "auto", "kvm" or "tcg" */
    char *kernel;             /* never "" when platform is qemu */
    char *initrd, *append;
    char *machine_state;      /* "devices" (small, fast) or "full" */
    char **qemu_args;         /* more arguments, NULL-terminated */

    /* platform = fake */
    unsigned fake_rate;       /* pages dirtied a second */
    char *fake_pattern;       /* "random", "sequential" or "hot" */
    unsigned fake_frames;     /* frames sent a second */
};

struct config {
    char *run_dir;            /* sockets, pid files; default /run/remus */
    char *state_dir;          /* what must outlive the host; default /var/lib/remus */
    char *listen;             /* HOST:PORT of remus-backupd; default 0.0.0.0:7910 */
    int log_level;            /* enum log_level */
    struct vm_config *vms;
    size_t vm_count;
    struct vm_config *others; /* settings of VMs that have no section; NULL: there is no `others` */
};

/*
 * Reads and checks the file, at most 1 MiB.  On failure cfg is empty and err says FILE:LINE, the
 * key, its value and what would be right.  Not checked: whether the files and interfaces that it
 * names exist.
 */
int config_load(struct config *cfg, const char *path, struct error *err);
void config_free(struct config *cfg);

/*
 * The section of a VM that remusd.conf does not name, alone in a file of its own (common/kept.h); what it does not say is as in
 * cfg's `others`.  text: what the file would have; NULL: it is read.  NULL on failure.  cfg is left alone, and may go.
 */
struct vm_config *config_load_section(const struct config *cfg, const char *path, const char *text, struct error *err);
void config_free_section(struct vm_config *vm);

/* Is this what a VM may be called?  (See CONFIG_NAME_MAX.) */
bool config_good_name(const char *name);

/* What mac, and what tap, vif and guest-bridge, may be. */
bool config_good_mac(const char *mac);
bool config_good_interface(const char *name);

/* NULL when there is no such VM.  Valid until config_free(). */
const struct vm_config *config_vm(const struct config *cfg, const char *name);

/*
 * The services of a VM, `PROTOCOL:PORT ...` or `dscp:MARK`, one a call: 1 and *at moved behind it, 0
 * at the end, -1 when there is something else.
 */
#define CONFIG_SERVICES_MAX 16
int config_next_service(const char **at, char protocol[16], uint16_t *value);

/* As the key netbuf has it. */
const char *config_netbuf_name(enum netbuf netbuf);

/* Splits HOST:PORT ([V6]:PORT too) into two strings for getaddrinfo(3). */
int config_split_address(const char *address, char host[256], char port[16], struct error *err);

#endif
