/* SPDX-License-Identifier: GPL-2.0-or-later */
#define XXH_INLINE_ALL
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "common/cleanup.h"
#include "common/random.h"
#include "common/wire.h"
#include "image.h"

#define MAGIC UINT64_C(0x72656d7573696d31) /* "remusim1" */
#define RECORD 512u
#define STAMPS_AT 4096u
#define GENERATIONS (UINT64_C(1) << 40) /* of one server: 800 years of 25 ms */
#define SIZE_MAX_IMAGE (UINT64_C(1) << 46) /* 64 TiB: a bound for what a damaged record may make us map */

int image_record_path(const char *image, char path[PATH_MAX])
{
    int n = snprintf(path, PATH_MAX, "%s.remus", image);

    return n > 0 && n < PATH_MAX ? 0 : -1;
}

static uint64_t block_count(uint64_t size)
{
    return (size + IMAGE_BLOCK - 1) / IMAGE_BLOCK;
}

static int open_record(const char *image, int flags, char path[PATH_MAX], struct error *err)
{
    int fd;

    if (image_record_path(image, path) < 0)
        return error_set(err, "disk \"%.80s...\": the path is too long", image);
    fd = open(path, flags | O_CLOEXEC, 0600);
    return fd >= 0 ? fd : error_set(err, "%s: %s", path, strerror(errno));
}

static void encode(uint8_t out[RECORD], const struct image_record *rec)
{
    struct wire_writer w = wire_writer(out, RECORD);

    memset(out, 0, RECORD);
    wire_put_uint(&w, MAGIC, 8);
    wire_put_uint(&w, rec->role, 2);
    wire_put_uint(&w, rec->clean, 2);
    wire_put_uint(&w, IMAGE_BLOCK, 4);
    wire_put_uint(&w, rec->id, 8);
    wire_put_uint(&w, rec->size, 8);
    wire_put_uint(&w, rec->epoch, 8);
    wire_put_uint(&w, rec->changed, 8);
    wire_put_string(&w, rec->boot);
    wire_put_uint(&w, rec->first, 8);
    w = wire_writer(out + RECORD - 8, 8);
    wire_put_uint(&w, XXH3_64bits(out, RECORD - 8), 8);
}

static int decode(struct image_record *rec, const uint8_t in[RECORD])
{
    struct wire_reader r = wire_reader(in, RECORD - 8), sum = wire_reader(in + RECORD - 8, 8);
    unsigned role, block;

    if (wire_get_u64(&sum) != XXH3_64bits(in, RECORD - 8) || wire_get_u64(&r) != MAGIC)
        return -1;
    role = wire_get_u16(&r);
    rec->clean = wire_get_u16(&r);
    block = wire_get_u32(&r);
    rec->id = wire_get_u64(&r);
    rec->size = wire_get_u64(&r);
    rec->epoch = wire_get_u64(&r);
    rec->changed = wire_get_u64(&r);
    wire_get_string(&r, rec->boot, sizeof(rec->boot));
    rec->first = wire_get_u64(&r);
    rec->role = role;
    return !r.failed && role >= IMAGE_VALID && role <= IMAGE_STALE && block == IMAGE_BLOCK &&
                   rec->size && rec->size <= SIZE_MAX_IMAGE && rec->id
               ? 0 : -1;
}

int image_read(const char *image, struct image_record *rec, struct error *err)
{
    char path[PATH_MAX];
    uint8_t in[RECORD];
    cleanup_close int fd = -1;

    if (image_record_path(image, path) == 0 && access(path, F_OK) < 0 && errno == ENOENT)
        return 0;
    fd = open_record(image, O_RDONLY, path, err);
    if (fd < 0)
        return -1;
    if (pread(fd, in, RECORD, 0) != RECORD || decode(rec, in) < 0)
        return error_set(err, "%s is damaged or of another version: when it is certain that %s is the valid "
                         "image, remove it", path, image);
    return 1;
}

int image_write(const char *image, const struct image_record *rec, struct error *err)
{
    char path[PATH_MAX];
    uint8_t out[RECORD];
    cleanup_close int fd = open_record(image, O_RDWR | O_CREAT, path, err);

    if (fd < 0)
        return -1;
    encode(out, rec);
    if (pwrite(fd, out, RECORD, 0) != RECORD || fdatasync(fd) < 0)
        return error_set(err, "%s: %s", path, strerror(errno));
    return 0;
}

static int measure(int fd, uint64_t *size)
{
    off_t end = lseek(fd, 0, SEEK_END);

    if (end <= 0 || (uint64_t)end > SIZE_MAX_IMAGE)
        return -1;
    *size = (uint64_t)end;
    return 0;
}

int image_size(const char *image, uint64_t create, uint64_t *size, struct error *err)
{
    cleanup_close int fd = open(image, O_RDWR | O_CLOEXEC | (create ? O_CREAT : 0), 0600);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0)
        return error_set(err, "disk \"%s\": %s", image, strerror(errno));
    if (create && S_ISREG(st.st_mode) && st.st_size == 0 && ftruncate(fd, (off_t)create) < 0)
        return error_set(err, "disk \"%s\": %" PRIu64 " octets: %s", image, create, strerror(errno));
    if (measure(fd, size) < 0)
        return error_set(err, "disk \"%s\" is empty, or no image", image);
    return 0;
}

int image_open(struct image *im, const char *image, bool write, struct error *err)
{
    char path[PATH_MAX];
    struct stat st;
    size_t octets;
    void *p;

    *im = (struct image){.fd = open(image, (write ? O_RDWR : O_RDONLY) | O_CLOEXEC), .record_fd = -1};
    if (im->fd < 0 || fstat(im->fd, &st) < 0 || measure(im->fd, &im->size) < 0) {
        error_set(err, "disk \"%s\": %s", image, strerror(errno));
        goto fail;
    }
    im->regular = S_ISREG(st.st_mode);
    im->blocks = block_count(im->size);
    octets = STAMPS_AT + im->blocks * 8;
    im->record_fd = open_record(image, O_RDWR, path, err);
    if (im->record_fd < 0)
        goto fail;
    /* Sparse: stamps of blocks that nobody writes cost nothing. */
    if (fstat(im->record_fd, &st) < 0 ||
        ((uint64_t)st.st_size < octets && ftruncate(im->record_fd, (off_t)octets) < 0)) {
        error_set(err, "%s: %s", path, strerror(errno));
        goto fail;
    }
    p = mmap(NULL, octets, PROT_READ | (write ? PROT_WRITE : 0), MAP_SHARED, im->record_fd, 0);
    if (p == MAP_FAILED) {
        error_set(err, "%s: mmap: %s", path, strerror(errno));
        goto fail;
    }
    im->stamps = (uint64_t *)((uint8_t *)p + STAMPS_AT);
    return 0;
fail:
    image_close(im);
    return -1;
}

void image_close(struct image *im)
{
    if (im->stamps)
        munmap((uint8_t *)im->stamps - STAMPS_AT, STAMPS_AT + im->blocks * 8);
    if (im->fd >= 0)
        close(im->fd);
    if (im->record_fd >= 0)
        close(im->record_fd);
    *im = (struct image){.fd = -1, .record_fd = -1};
}

void image_stamp(struct image *im, uint64_t offset, uint64_t length, uint64_t generation)
{
    for (uint64_t b = offset / IMAGE_BLOCK; length && b <= (offset + length - 1) / IMAGE_BLOCK; b++)
        __atomic_store_n(&im->stamps[b], htobe64(generation), __ATOMIC_RELEASE);
}

static uint64_t stamp_of(const struct image *im, uint64_t block)
{
    return be64toh(__atomic_load_n(&im->stamps[block], __ATOMIC_ACQUIRE));
}

uint64_t image_stamp_at(const struct image *im, uint64_t offset)
{
    return stamp_of(im, offset / IMAGE_BLOCK);
}

uint64_t image_next_changed(const struct image *im, uint64_t from, uint64_t base)
{
    while (from < im->blocks && stamp_of(im, from) <= base)
        from++;
    return from;
}

uint64_t image_last_generation(const struct image *im)
{
    uint64_t last = 0;

    for (uint64_t b = 0; b < im->blocks; b++)
        if (stamp_of(im, b) > last)
            last = stamp_of(im, b);
    return last;
}

static void read_boot_id(char boot[40])
{
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");

    boot[0] = '\0';
    if (!f)
        return;
    if (fscanf(f, "%39s", boot) != 1)
        boot[0] = '\0';
    fclose(f);
}

static uint64_t changed_at(const char *image)
{
    struct stat st;

    if (stat(image, &st) < 0)
        return 0;
    return (uint64_t)st.st_mtim.tv_sec * NS_PER_S + (uint64_t)st.st_mtim.tv_nsec;
}

/* All stamps zero again. */
static int forget_stamps(const char *image, struct error *err)
{
    char path[PATH_MAX];
    cleanup_close int fd = open_record(image, O_RDWR, path, err);

    if (fd < 0)
        return -1;
    return ftruncate(fd, STAMPS_AT) == 0 ? 0 : error_set(err, "%s: %s", path, strerror(errno));
}

int image_take(const char *image, struct error *err)
{
    struct image_record rec = {0};
    char boot[40];
    uint64_t size;
    bool same;
    int found = image_read(image, &rec, err);

    if (found < 0 || image_size(image, 0, &size, err) < 0)
        return -1;
    if (found && rec.role == IMAGE_REPLICA)
        return error_set(err, "disk \"%s\" is a replica, written by remus-backupd: it is valid only after a takeover; "
                         "remusctl takeover on the backup, or remove %s.remus to use it as it is", image, image);
    if (found && rec.role == IMAGE_STALE)
        return error_set(err, "disk \"%s\" is stale: the VM went on at its backup from checkpoint %" PRIu64 "; copy the "
                         "image from there, or remove %s.remus to go back to this one", image, rec.epoch, image);
    read_boot_id(boot);
    same = found && rec.size == size &&
           (rec.clean ? rec.changed == changed_at(image) : *boot && strcmp(rec.boot, boot) == 0);
    if (!same) {
        if (found && forget_stamps(image, err) < 0)
            return -1;
        rec = (struct image_record){.role = IMAGE_VALID, .id = random_id(), .size = size,
                                    .epoch = rec.epoch};
    }
    rec.clean = false;
    memcpy(rec.boot, boot, sizeof(boot));
    return image_write(image, &rec, err);
}

int image_begin(char *const paths[], const struct image images[], unsigned count, uint64_t *generation,
                struct error *err)
{
    struct image_record rec;
    uint64_t known = 0, last;

    for (unsigned i = 0; i < count; i++) {
        if (image_read(paths[i], &rec, err) != 1)
            return error_set(err, "the record of disk \"%s\" is gone", paths[i]);
        last = image_last_generation(&images[i]);
        known = rec.first > known ? rec.first : known;
        known = last > known ? last : known;
    }
    *generation = known + GENERATIONS;
    for (unsigned i = 0; i < count; i++) {
        if (image_read(paths[i], &rec, err) != 1)
            return error_set(err, "the record of disk \"%s\" is gone", paths[i]);
        rec.first = *generation;
        if (image_write(paths[i], &rec, err) < 0)
            return -1;
    }
    return 0;
}

int image_release(const char *image, struct error *err)
{
    struct image_record rec;
    int found = image_read(image, &rec, err);

    if (found <= 0 || rec.role != IMAGE_VALID)
        return found;
    rec.clean = true;
    rec.changed = changed_at(image);
    return image_write(image, &rec, err);
}

int image_validate(const char *image, uint64_t epoch, struct error *err)
{
    struct image_record rec;

    if (image_read(image, &rec, err) != 1)
        return error_set(err, "the record of disk \"%s\" is gone", image);
    rec.role = IMAGE_VALID;
    rec.clean = false;
    rec.id = random_id();
    rec.epoch = epoch;
    read_boot_id(rec.boot);
    return image_write(image, &rec, err);
}

int image_disown(const char *image, uint64_t epoch, struct error *err)
{
    struct image_record rec;
    int found = image_read(image, &rec, err);

    if (found <= 0)
        return found;
    rec.role = IMAGE_STALE;
    rec.epoch = epoch;
    return image_write(image, &rec, err);
}
