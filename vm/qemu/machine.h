/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a guest's machine is: the command line for QEMU, and its description for the other side. */
#ifndef REMUS_QEMU_MACHINE_H
#define REMUS_QEMU_MACHINE_H

#include "process.h"

#define ARGS_MAX 128

/* A NULL-terminated vector of strings for exec. */
struct args {
    char *v[ARGS_MAX + 1];
    size_t n;
    bool failed;
};

void args_free(struct args *a);

/* What is wrong with the configuration, named by its key. */
int qemu_check_config(const struct vm_config *cfg, struct error *err);

/* Both append to `a`, whose `failed` says afterwards whether it took everything. */
void qemu_command_line(struct args *a, const struct qemu *qemu, const struct vm_config *cfg,
                       const char *accelerator, bool incoming);

/* The daemon's environment with uffd-preload.so in it, which tracks the mapping of ram_path. */
int qemu_environment(struct args *a, const struct qemu *qemu, const struct vm_config *cfg,
                     struct error *err);

/* "version=7.2.22 machine=microvm cpus=1 ..." */
int qemu_profile(const struct vm_config *cfg, const char *version, const char *accelerator,
                 char profile[VM_PROFILE_MAX + 1], struct error *err);

/* Version of the binary cfg->qemu, asked of itself. */
int qemu_binary_version(const struct vm_config *cfg, char version[32], struct error *err);

#endif
