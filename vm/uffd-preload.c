/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Loaded into QEMU by LD_PRELOAD: when QEMU maps the guest's RAM, which is the file $REMUS_RAM,
 * puts that mapping under write tracking (vm/tracker.h) and writes one line to $REMUS_RAM_INFO:
 *
 *   PID ADDRESS SIZE      decimal, hexadecimal, hexadecimal; ADDRESS 0: this kernel cannot track
 *
 * A memory-backend-file is mapped by mmap() alone; remapping (mremap, hugetlb) does not occur with
 * tmpfs.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tracker.h"

/* The rest is hidden: QEMU has names of its own. */
#define EXPORT __attribute__((visibility("default")))

EXPORT void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset);
EXPORT void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t offset);

static int is_guest_ram(int fd)
{
    const char *path = getenv("REMUS_RAM");
    struct stat ram, mapped;

    return path && stat(path, &ram) == 0 && fstat(fd, &mapped) == 0 &&
           ram.st_dev == mapped.st_dev && ram.st_ino == mapped.st_ino;
}

static void track(void *memory, size_t len)
{
    const char *path = getenv("REMUS_RAM_INFO");
    unsigned long address = (unsigned long)memory;
    int fd;

    if (tracker_arm(memory, len) < 0)
        address = 0;
    fd = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600) : -1;
    if (fd < 0)
        return;
    dprintf(fd, "%ld %lx %zx\n", (long)getpid(), address, len);
    close(fd);
}

void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t offset)
{
    int saved = errno;
    void *p = (void *)syscall(SYS_mmap, addr, len, prot, flags, fd, offset);

    if (p != MAP_FAILED && fd >= 0 && (flags & MAP_SHARED) && (prot & PROT_WRITE) &&
        is_guest_ram(fd))
        track(p, len);
    if (p != MAP_FAILED)
        errno = saved;
    return p;
}

void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
    return mmap64(addr, len, prot, flags, fd, offset);
}
