/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pause-watch DOMID SECONDS: looks from dom0 at how a domain is suspended again and again, by whatever does it.  A line each:
 *
 *     SUSPEND_US HELD_US      from the request in control/shutdown until the domain is suspended; until it runs again
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <poll.h>
#include <xenctrl.h>
#include <xenstore.h>

static double now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int is_suspended(xc_interface *xc, uint32_t id)
{
    xc_dominfo_t info;

    return xc_domain_getinfo(xc, id, 1, &info) == 1 && info.domid == id && info.shutdown;
}

int main(int argc, char **argv)
{
    uint32_t id = argc == 3 ? (uint32_t)atoi(argv[1]) : 0;
    double end = now_us() + (argc == 3 ? atof(argv[2]) : 0) * 1e6, asked = 0, suspended;
    xc_interface *xc = xc_interface_open(NULL, NULL, 0);
    struct xs_handle *xs = xs_open(0);
    struct pollfd p = {.events = POLLIN};
    char path[64];

    if (!id || !xc || !xs)
        return fputs("usage: pause-watch DOMID SECONDS, in dom0\n", stderr), 2;
    snprintf(path, sizeof(path), "/local/domain/%u/control/shutdown", id);
    xs_watch(xs, path, "asked");
    xs_watch(xs, "@releaseDomain", "suspended");
    p.fd = xs_fileno(xs);
    while (now_us() < end) {
        char **event = poll(&p, 1, 100) > 0 ? xs_check_watch(xs) : NULL;

        if (event && strcmp(event[XS_WATCH_TOKEN], "asked") == 0) {
            unsigned len;
            char *value = xs_read(xs, XBT_NULL, path, &len);

            if (value && strcmp(value, "suspend") == 0)
                asked = now_us();
            free(value);
        }
        free(event);
        if (!asked || !is_suspended(xc, id))
            continue;
        suspended = now_us();
        while (is_suspended(xc, id))
            usleep(300);
        printf("%.0f %.0f\n", suspended - asked, now_us() - suspended);
        asked = 0;
    }
    return 0;
}
