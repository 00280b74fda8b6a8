/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdio.h>
#include <sys/mman.h>

#include "backup.h"
#include "common/clock.h"
#include "common/protocol.h"
#include "vm/vm.h"

#define CHANNEL_OCTETS (4u << 20)

int backup_init(struct backup *b, uint64_t pages)
{
    b->octets = pages * PAGE_SIZE;
    b->memory = mmap(NULL, b->octets, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (b->memory == MAP_FAILED)
        b->memory = NULL;
    b->receiver = b->memory ? receiver_new(b->memory, pages, b->octets) : NULL;
    return b->receiver ? 0 : -1;
}

static void *run(void *arg)
{
    struct backup *b = arg;
    struct record rec;
    struct error err;

    while (link_recv(b->link, &rec, TIME_NEVER, &err) == LINK_RECORD) {
        if (rec.type == PROTO_HEARTBEAT)
            continue;
        switch (receiver_record(b->receiver, &rec, &err)) {
        case RECEIVER_WHOLE:
            link_send_empty(b->link, PROTO_ACK, rec.epoch);
            receiver_apply(b->receiver);
            break;
        case RECEIVER_MORE:
            break;
        default:
            fprintf(stderr, "remus-bench: backup: %s\n", err.text);
            link_shutdown(b->link);
        }
    }
    return NULL;
}

int backup_start(struct backup *b, struct chan **primary)
{
    struct chan *ends[2];

    if (mem_chan_pair(ends, CHANNEL_OCTETS) < 0)
        return -1;
    *primary = ends[0];
    b->link = link_new(ends[1]);
    if (b->link && link_start_heartbeats(b->link, 20 * NS_PER_MS) == 0 && pthread_create(&b->thread, NULL, run, b) == 0)
        return 0;
    link_free(b->link);
    b->link = NULL;
    return -1;
}

void backup_free(struct backup *b)
{
    if (b->link) {
        pthread_join(b->thread, NULL);
        link_free(b->link);
    }
    receiver_free(b->receiver);
    journal_close(b->journal);
    if (b->memory)
        munmap(b->memory, b->octets);
}
