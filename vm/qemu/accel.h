/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which accelerator a guest gets.  That /dev/kvm opens is not enough: under nested or paravirtual
 * KVM the firmware runs and the kernel hangs before its first line.  So the guest's kernel is
 * started once, for its first line; the answer is kept in /var/cache/remusd (else in RUN_DIR) for
 * this kernel, this QEMU and this boot of the host.
 */
#ifndef REMUS_QEMU_ACCEL_H
#define REMUS_QEMU_ACCEL_H

#include "common/config.h"
#include "common/error.h"

/* "kvm" or "tcg".  Costs nothing without /dev/kvm, up to KVM_PROBE_MS the first time with it. */
#define KVM_PROBE_MS 4000
const char *qemu_accelerator(const struct vm_config *cfg);

/*
 * Frequency of this host's time stamp counter, which a guest under TCG sees as its own; 0 when
 * there is none. microvm has no timer to measure it by but the PIT, which emulation on a busy host
 * is too coarse for: a kernel that cannot measure it hangs in its first second.  So the kernel is
 * told.
 */
unsigned qemu_tsc_khz(void);

#endif
