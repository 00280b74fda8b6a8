/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The qemu platform: guests of QEMU's microvm machine, whose RAM is a tmpfs file that the daemon
 * maps too. No patch to QEMU: processors and machine state by QMP, dirty pages by vm/tracker.h.
 *
 *   qmp.c      QMP connection            accel.c    does KVM work here?
 *   machine.c  the command line           spawn.c   starting programs
 *   process.c  one QEMU process and its files, for both sides
 *   vm.c       vm_ops                    replica.c  replica_ops
 */
#ifndef REMUS_QEMU_H
#define REMUS_QEMU_H

#include "vm/vm.h"

extern const struct vm_ops qemu_vm_ops;
extern const struct replica_ops qemu_replica_ops;

#endif
