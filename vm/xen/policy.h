/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a domain's processor has that a host cannot give it.  Pure, and without Xen's headers.
 *
 * Xen 4.17 compares little when a domain comes from elsewhere (xen/lib/x86/policy.c: highest leaves, some MSRs) and takes features that
 * are not there away without a word (recalculate_cpuid_policy): the guest would use them, and crash after its takeover.
 */
#ifndef REMUS_XEN_POLICY_H
#define REMUS_XEN_POLICY_H

#include <stddef.h>
#include <stdint.h>

#define POLICY_LEAF 24u /* octets: leaf, subleaf, eax, ebx, ecx, edx, as in a stream's CPUID_POLICY */

/*
 * guest, host: rows of leaves.  The number of features that host lacks, and of other reasons; text then names them, as many as it has room
 * for: "avx2 (leaf 7 ebx bit 5), ...".
 */
unsigned policy_missing(const uint8_t *guest, size_t guest_len, const uint8_t *host, size_t host_len, char *text, size_t size);

#endif
