/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "fault.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Atomic int armed;
static struct {
    char name[48];
    uint64_t epoch; /* UINT64_MAX: any */
} faults[FAULT_MAX];

static int add(const char *list, struct error *err)
{
    SCOPED_LOCK(&lock);

    while (*list) {
        size_t len = strcspn(list, ","), name_len = strcspn(list, ",@");
        int slot = 0;
        char *end = NULL;

        while (slot < FAULT_MAX && faults[slot].name[0])
            slot++;
        if (slot == FAULT_MAX || name_len == 0 || name_len >= sizeof(faults[0].name))
            return error_set(err, "fault '%.*s': expected NAME or NAME@EPOCH, at most %d of them",
                             (int)len, list, FAULT_MAX);
        faults[slot].epoch = UINT64_MAX;
        if (name_len < len) {
            faults[slot].epoch = strtoull(list + name_len + 1, &end, 10);
            if (list[name_len + 1] < '0' || list[name_len + 1] > '9' || end != list + len)
                return error_set(err, "fault '%.*s': the epoch is not a number", (int)len, list);
        }
        memcpy(faults[slot].name, list, name_len);
        faults[slot].name[name_len] = '\0';
        armed++;
        list += len;
        list += *list == ',';
    }
    return 0;
}

static void from_environment(void)
{
    const char *list = getenv("REMUS_FAULT");

    if (list)
        add(list, NULL);
}

int fault_set(const char *list, struct error *err)
{
    pthread_once(&once, from_environment);
    return add(list, err);
}

bool fault_hit(const char *name, uint64_t epoch)
{
    pthread_once(&once, from_environment);
    if (!armed)
        return false;
    SCOPED_LOCK(&lock);
    for (int i = 0; i < FAULT_MAX; i++)
        if (strcmp(faults[i].name, name) == 0 &&
            (faults[i].epoch == epoch || faults[i].epoch == UINT64_MAX)) {
            faults[i].name[0] = '\0';
            armed--;
            return true;
        }
    return false;
}

void fault_crash(const char *name, uint64_t epoch)
{
    if (fault_hit(name, epoch))
        kill(getpid(), SIGKILL);
}
