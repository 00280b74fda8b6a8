/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Makes a lab's guest one that advertises a suspend event channel, as no stock Linux does: on its event the guest asks its own
 * kernel to suspend, as a request from dom0 would.  (To suspend by a hypercall, with nothing frozen, takes a kernel module:
 * privcmd is closed to guests.)  Prints "CHANNEL port N", and "SUSPENDS n" at each tenth event.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* linux's include/uapi/xen/evtchn.h, which cannot be included on Debian */
struct bind_unbound_port {
    unsigned int remote_domain;
};
#define BIND_UNBOUND_PORT _IOC(_IOC_NONE, 'E', 2, sizeof(struct bind_unbound_port))

#define XS_WRITE 11 /* xen/io/xs_wire.h */

static int write_xenstore(const char *path, const char *value)
{
    struct {
        uint32_t type, request, transaction, length;
        char body[128];
    } message = {.type = XS_WRITE};
    int fd = open("/dev/xen/xenbus", O_RDWR);
    uint32_t octets = (uint32_t)(strlen(path) + 1 + strlen(value));
    int ok;

    memcpy(message.body, path, strlen(path) + 1);
    memcpy(message.body + strlen(path) + 1, value, strlen(value));
    message.length = octets;
    ok = fd >= 0 && write(fd, &message, 16 + octets) == 16 + (int)octets && read(fd, &message, sizeof(message)) >= 16 &&
         message.type == XS_WRITE;
    close(fd);
    return ok ? 0 : -1;
}

int main(void)
{
    struct bind_unbound_port dom0 = {0};
    int fd = open("/dev/xen/evtchn", O_RDWR), port = fd < 0 ? -1 : ioctl(fd, BIND_UNBOUND_PORT, &dom0);
    char text[16];
    uint32_t event;

    setvbuf(stdout, NULL, _IOLBF, 0);
    snprintf(text, sizeof(text), "%d", port);
    if (port < 0 || write_xenstore("device/suspend/event-channel", text) < 0)
        return perror("CHANNEL"), 1;
    printf("CHANNEL port %d\n", port);
    for (unsigned long n = 1; read(fd, &event, sizeof(event)) == sizeof(event); n++) {
        if (write(fd, &event, sizeof(event)) < 0 || write_xenstore("control/shutdown", "suspend") < 0)
            return perror("CHANNEL"), 1;
        if (n % 10 == 0)
            printf("SUSPENDS %lu\n", n);
    }
    return perror("CHANNEL"), 1;
}
