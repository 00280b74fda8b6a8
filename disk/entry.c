/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <string.h>
#include <unistd.h>

#include "common/wire.h"
#include "entry.h"

size_t entry_size(unsigned kind, uint32_t length)
{
    return kind == ENTRY_WRITE   ? ENTRY_HEAD + (((size_t)length + 15) & ~(size_t)15)
           : kind == ENTRY_CHECK ? ENTRY_HEAD + 16
                                 : ENTRY_HEAD;
}

void entry_put(uint8_t *out, const struct entry *e)
{
    struct wire_writer w = wire_writer(out, ENTRY_HEAD + 16);
    size_t size = entry_size(e->kind, e->length);

    wire_put_uint(&w, e->kind, 1);
    wire_put_uint(&w, e->disk, 1);
    wire_put_uint(&w, 0, 2);
    wire_put_uint(&w, e->length, 4);
    wire_put_uint(&w, e->offset, 8);
    if (e->kind == ENTRY_CHECK) {
        wire_put_uint(&w, e->hash, 8);
        wire_put_uint(&w, 0, 8);
    }
    if (e->kind != ENTRY_WRITE)
        return;
    if (e->data)
        memcpy(out + ENTRY_HEAD, e->data, e->length);
    memset(out + ENTRY_HEAD + e->length, 0, size - ENTRY_HEAD - e->length);
}

int entry_get(struct entry *e, const uint8_t **at, const uint8_t *end, const uint64_t *sizes,
              unsigned count, struct error *err)
{
    struct wire_reader r = wire_reader(*at, (size_t)(end - *at));

    e->kind = wire_get_u8(&r);
    e->disk = wire_get_u8(&r);
    wire_get_u16(&r);
    e->length = wire_get_u32(&r);
    e->offset = wire_get_u64(&r);
    if (r.failed)
        return error_set(err, "a disk entry ends too early");
    if (e->kind < ENTRY_WRITE || e->kind > ENTRY_CHECK)
        return error_set(err, "disk entry of unknown kind %u", e->kind);
    if (e->disk >= count)
        return error_set(err, "disk entry for disk %u, the VM has %u", e->disk, count);
    if (e->length == 0 || e->offset > sizes[e->disk] || e->length > sizes[e->disk] - e->offset)
        return error_set(err, "disk entry of %" PRIu32 " octets at %" PRIu64 " is not inside disk %u of %"
                         PRIu64 " octets", e->length, e->offset, e->disk, sizes[e->disk]);
    if (e->kind == ENTRY_WRITE && e->length > ENTRY_DATA_MAX)
        return error_set(err, "disk entry of %" PRIu32 " octets is longer than allowed", e->length);
    if (e->kind == ENTRY_CHECK && (e->length > ENTRY_CHECK_MAX || e->offset % ENTRY_CHECK_MAX))
        return error_set(err, "disk check of %" PRIu32 " octets at %" PRIu64 ": not one block", e->length, e->offset);
    e->data = wire_get(&r, entry_size(e->kind, e->length) - ENTRY_HEAD);
    if (e->kind == ENTRY_CHECK && e->data) {
        struct wire_reader h = wire_reader(e->data, 8);

        e->hash = wire_get_u64(&h);
    }
    if (r.failed)
        return error_set(err, "a disk entry ends too early");
    *at = r.at;
    return 0;
}

int entry_apply(const struct entry *e, int fd)
{
    bool trim = e->kind == ENTRY_TRIM;

    if (e->kind == ENTRY_WRITE) {
        for (uint32_t done = 0; done < e->length;) {
            ssize_t n = pwrite(fd, e->data + done, e->length - done, (off_t)(e->offset + done));

            if (n < 0)
                return -1;
            done += (uint32_t)n;
        }
        return 0;
    }
    if (fallocate(fd, FALLOC_FL_KEEP_SIZE | (trim ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE),
                  (off_t)e->offset, e->length) == 0)
        return 0;
    /* Not every file system and device knows both. */
    return fallocate(fd, FALLOC_FL_KEEP_SIZE | (trim ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_PUNCH_HOLE),
                     (off_t)e->offset, e->length);
}
