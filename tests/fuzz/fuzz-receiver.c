/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A hostile primary behind a valid handshake and valid record checksums: any records into the receiver of a small guest.
 * The input is a row of: type, epoch (one octet each), length of the body (two), body; type 0 is a new link.
 * Beside what the sanitizers see, R4 is checked after each record: memory and checkpoint stay unless it is whole.
 */
#include <stdlib.h>
#include <string.h>

#include "backup/receiver.h"
#include "common/wire.h"
#include "vm/vm.h"

#define GUEST 16
#define STAGE 12

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int ok)
{
    if (!ok)
        abort();
}

static uint64_t held(const struct receiver *rx)
{
    struct receiver_checkpoint ck;

    receiver_checkpoint(rx, &ck);
    return ck.epoch;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t memory[GUEST * PAGE_SIZE], before[sizeof(memory)], whole[sizeof(memory)];
    struct wire_reader r = wire_reader(data, size);
    struct receiver *rx;

    memset(memory, 0, sizeof(memory));
    memset(before, 0, sizeof(before));
    rx = receiver_new(memory, GUEST, STAGE * PAGE_SIZE);
    check(rx != NULL);
    while (wire_left(&r) >= 4) {
        struct record rec = {.type = wire_get_u8(&r), .epoch = wire_get_u8(&r)};
        uint64_t epoch = held(rx);
        bool kept = receiver_keeps(rx);
        enum receiver_result result;
        struct error err = {""};
        uint8_t *body;

        rec.length = wire_get_u16(&r);
        if (rec.length > wire_left(&r))
            rec.length = wire_left(&r);
        body = malloc(rec.length + !rec.length); /* so that ASan sees a read behind it */
        check(body != NULL);
        memcpy(body, wire_get(&r, rec.length), rec.length);
        rec.body = body;
        if (rec.type == 0) { /* a new link, or the old checkpoint is wanted back */
            free(body);
            if (rec.epoch & 4) {
                receiver_restore(rx);
                memcpy(before, epoch ? whole : memory, sizeof(memory));
            } else {
                receiver_start(rx, !epoch || !(rec.epoch & 3)                    ? START_ANEW
                                   : rec.epoch & 2 || receiver_keeps(rx) ? START_KEEP
                                                                         : START_RESUME);
            }
            check(held(rx) == 0 || held(rx) == epoch);
            continue;
        }
        result = receiver_record(rx, &rec, &err);
        free(body);
        if (result == RECEIVER_MORE && rec.type == PROTO_PAGES && rec.epoch == 0) {
            check(epoch == 0 || kept);
            memcpy(before, memory, sizeof(memory));
        }
        check(memcmp(before, memory, sizeof(memory)) == 0);
        check(held(rx) == epoch || (kept && held(rx) == 0)); /* what is kept may be given up */
        check((receiver_staged(rx) != 0) == (result == RECEIVER_WHOLE));
        if (result == RECEIVER_WHOLE) {
            check(rec.type == PROTO_END && (kept || rec.epoch > epoch) && receiver_staged(rx) == rec.epoch);
            receiver_apply(rx);
            check(held(rx) == rec.epoch && !receiver_keeps(rx));
            memcpy(before, memory, sizeof(memory));
            memcpy(whole, memory, sizeof(memory));
        } else if (result == RECEIVER_ERROR) {
            check(err.text[0]);
            receiver_start(rx, !held(rx) ? START_ANEW : receiver_keeps(rx) ? START_KEEP : START_RESUME);
        }
    }
    receiver_free(rx);
    return 0;
}
