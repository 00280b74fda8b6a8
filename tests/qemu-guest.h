/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A guest for tests of the qemu platform: the kernel $REMUS_TEST_KERNEL with tests/qemu-guest.c as
 * its userland.
 */
#ifndef REMUS_TEST_QEMU_GUEST_H
#define REMUS_TEST_QEMU_GUEST_H

#include "vm/vm.h"

/* Writes the initramfs (cpio, newc): /init is the file `program`.  0 or -1. */
int guest_write_initramfs(const char *path, const char *program);

/*
 * A configuration with `run_dir`, which is made.  Everything points to the caller's strings or to
 * literals.
 */
struct vm_config guest_config(const char *run_dir, const char *initrd, const char *append);

/*
 * The last count that the guest printed; -1 when there is none, -2 when it found its memory
 * corrupt.
 */
int guest_count(const struct vm_config *cfg);

/* Waits until guest_count() is at least `count` or negative for 30 s; returns it. */
int guest_wait_count(const struct vm_config *cfg, int count);

#endif
