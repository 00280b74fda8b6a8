/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The disk server's plugin as nbdkit calls it, on an image whose host fails when it is told to: what the guest sees, what is on
 * the image and what goes to the backup are the same (R5), also when a change fails half way.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

struct nbdkit_plugin *plugin_init(void); /* nbdkit's header leaves that to the macro */
#include "disk/plugin.c"
#include "disk/server.h"

#define MIB (1u << 20)
#define SIZE (4 * MIB)

/* --- nbdkit --- */

static const char *export_name;
static int error_number;
static char error_text[256];

char *nbdkit_absolute_path(const char *path)
{
    return strdup(path);
}

int nbdkit_parse_uint64_t(const char *what, const char *text, uint64_t *value)
{
    (void)what;
    *value = strtoull(text, NULL, 10);
    return 0;
}

int nbdkit_parse_bool(const char *text)
{
    return atoi(text);
}

const char *nbdkit_export_name(void)
{
    return export_name;
}

void nbdkit_error(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(error_text, sizeof(error_text), format, args);
    va_end(args);
}

void nbdkit_set_error(int number)
{
    error_number = number;
}

/* --- the host --- */

static char dir[64], paths_of[DISKS_MAX][96], queue_file[96];
static struct {
    int write, read, fallocate, flush; /* errno of the next calls on the images */
    size_t half;                       /* octets that are written all the same */
    void (*amid)(void);                /* called once, when an image is about to be changed */
    unsigned flushes;
} host;

/* Not its record. */
static bool is_image(int fd)
{
    for (unsigned i = 0; i < count; i++)
        if (images[i].fd == fd)
            return true;
    return false;
}

static void change_begins(void)
{
    void (*amid)(void) = host.amid;

    host.amid = NULL;
    if (amid)
        amid();
}

static int failed(int number)
{
    errno = number;
    return -1;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    if (is_image(fd)) {
        change_begins();
        if (host.write && !host.half)
            return failed(host.write);
        if (host.write) {
            length = length < host.half ? length : host.half;
            host.half -= length;
        }
    }
    return syscall(SYS_pwrite64, fd, data, length, offset);
}

ssize_t pread(int fd, void *data, size_t length, off_t offset)
{
    return is_image(fd) && host.read ? failed(host.read) : syscall(SYS_pread64, fd, data, length, offset);
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    if (is_image(fd)) {
        change_begins();
        if (host.fallocate && host.half)
            syscall(SYS_fallocate, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, host.half);
        if (host.fallocate)
            return failed(host.fallocate);
    }
    return (int)syscall(SYS_fallocate, fd, mode, offset, length);
}

int fdatasync(int fd)
{
    if (!is_image(fd))
        return 0;
    host.flushes++;
    return host.flush ? failed(host.flush) : 0;
}

/* --- the rig --- */

static struct queue reader;
static uint8_t model[SIZE]; /* what a backup of disk 0 holds */

static int set_up(void **state)
{
    (void)state;
    memset(&host, 0, sizeof(host));
    strcpy(dir, "/tmp/test-plugin-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(queue_file, sizeof(queue_file), "%s/queue", dir);
    for (unsigned i = 0; i < 2; i++) {
        int fd;

        snprintf(paths_of[i], sizeof(paths_of[i]), "%s/%u.img", dir, i);
        fd = open(paths_of[i], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        for (unsigned at = 0; at < SIZE; at += 4096) {
            memset(model + at, (int)(1 + at / 4096 % 200), 4096);
            assert_int_equal(pwrite(fd, model + at, 4096, at), 4096);
        }
        close(fd);
    }
    return 0;
}

static int tear_down(void **state)
{
    char command[96], served[96];
    pid_t left;

    (void)state;
    snprintf(served, sizeof(served), "%s/v.disk-queue", dir);
    left = queue_server(served); /* of a test that failed */
    if (left > 0)
        kill(left, SIGKILL);
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    return system(command);
}

static int serve(const char *is_standby)
{
    const struct nbdkit_plugin *p = plugin_init();

    queue_path = NULL;
    count = 0;
    standby = 0;
    export_name = "0";
    if (p->config("queue", queue_file) < 0 || p->config("queue-size", "1048576") < 0 ||
        p->config("reads-size", "65536") < 0 || p->config("standby", is_standby) < 0)
        fail();
    assert_int_equal(p->config_complete(), -1); /* no disk */
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(p->config("disk", paths_of[i]), 0);
    assert_int_equal(p->config_complete(), 0);
    if (p->get_ready() == 0)
        return 0;
    for (unsigned i = 0; i < count; i++) /* nbdkit would end now */
        free(paths[i]);
    free(queue_path);
    return -1;
}

/* A server that a reader listens to. */
static struct image *serve_and_read(void)
{
    struct error err;

    if (serve("0") < 0)
        fail_msg("%s", error_text);
    assert_int_equal(queue_open(&reader, queue_file, &err), 0);
    queue_start(&reader);
    return plugin.open(0);
}

static void end(void)
{
    queue_close(&reader);
    plugin.unload();
}

/* Takes all that is queued to the model; how many entries. */
static unsigned take(void)
{
    static const uint64_t sizes[] = {SIZE, SIZE};
    const uint8_t *at, *last;
    struct error err;
    struct entry e;
    unsigned n = 0;
    size_t octets;

    while ((octets = queue_peek(&reader, queue_head(&reader), MIB, &at)) > 0) {
        for (last = at + octets; at < last; n++) {
            if (entry_get(&e, &at, last, sizes, 2, &err) < 0)
                fail_msg("%s", err.text);
            if (e.kind == ENTRY_WRITE && e.disk == 0)
                memcpy(model + e.offset, e.data, e.length);
            else if (e.disk == 0)
                memset(model + e.offset, 0, e.length);
        }
        queue_done(&reader, octets);
    }
    return n;
}

static void assert_alike(void)
{
    static uint8_t content[SIZE];

    assert_int_equal(syscall(SYS_pread64, images[0].fd, content, SIZE, 0), SIZE);
    for (unsigned i = 0; i < SIZE; i++)
        if (content[i] != model[i])
            fail_msg("R5: octet %u is %u here, %u on the backup", i, content[i], model[i]);
}

static uint64_t errors(void)
{
    struct queue_stats s;

    queue_stats(&reader, &s);
    return s.errors;
}

/* --- tests --- */

static uint64_t generation, head_before;
static struct image *changed;
static pthread_t other;
static bool barrier_came;

static void *bar(void *arg)
{
    uint64_t head;

    (void)arg;
    queue_barrier(&reader, &head);
    __atomic_store_n(&barrier_came, true, __ATOMIC_RELEASE);
    return NULL;
}

static void look_amid_change(void)
{
    assert_true(image_stamp_at(changed, IMAGE_BLOCK) == generation); /* before the image */
    assert_true(queue_head(&reader) == head_before);                 /* after it */
    pthread_create(&other, NULL, bar, NULL);
    usleep(20000); /* for a barrier that does not wait */
    assert_false(__atomic_load_n(&barrier_came, __ATOMIC_ACQUIRE));
}

/* A change is whole before a barrier or behind it, stamped before it is made, queued when it was. */
static void r5_change_and_barrier(void **state)
{
    uint8_t data[8192];

    (void)state;
    memset(data, 0xaa, sizeof(data));
    changed = serve_and_read();
    for (unsigned i = 0; i < 3; i++) {
        barrier_came = false;
        generation = queue_barrier(&reader, &head_before) + 1;
        host.amid = look_amid_change;
        assert_int_equal(i == 0   ? plugin.pwrite(changed, data, sizeof(data), 2 * IMAGE_BLOCK - 4096, 0)
                         : i == 1 ? plugin.zero(changed, 8192, 2 * IMAGE_BLOCK - 4096, 0)
                                  : plugin.trim(changed, 8192, IMAGE_BLOCK, 0), 0);
        pthread_join(other, NULL);
        assert_true(barrier_came);
        assert_true(image_stamp_at(changed, 2 * IMAGE_BLOCK) >= (i < 2 ? generation : 1));
        assert_int_equal(take(), 1);
        assert_alike();
    }
    end();
}

static void r5_large_changes_and_both_disks(void **state)
{
    static uint8_t data[600000];
    struct image *im = serve_and_read(), *second;

    (void)state;
    for (unsigned i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i % 251);
    assert_int_equal(plugin.pwrite(im, data, sizeof(data), 1001, 0), 0);
    assert_int_equal(take(), 3); /* of 256 KiB */
    assert_int_equal(plugin.zero(im, 0, 0, 0), 0);
    assert_int_equal(take(), 0);
    assert_int_equal(plugin.zero(im, 3 * MIB, 77, NBDKIT_FLAG_MAY_TRIM), 0);
    assert_int_equal(take(), 1);
    export_name = "1";
    second = plugin.open(0);
    assert_int_equal(plugin.pwrite(second, data, 4096, 0, 0), 0);
    assert_int_equal(take(), 1);
    assert_alike();
    assert_int_equal(plugin.pread(second, data + 4096, 8192, 2048, 0), 0);
    assert_memory_equal(data + 4096, data + 2048, 2048);
    assert_true(data[4096 + 2048] == 2);
    for (unsigned i = 0; i < 4; i++) {
        export_name = (const char *[]){"2", "1x", "-1", NULL}[i];
        assert_null(plugin.open(0));
    }
    export_name = "";
    assert_ptr_equal(plugin.open(0), im);
    end();
}

static void r5_flush_and_fua(void **state)
{
    struct image *im = serve_and_read();
    uint8_t data[4096] = {1};

    (void)state;
    assert_true(plugin.can_fua(im) == NBDKIT_FUA_NATIVE && plugin.can_trim(im));
    assert_int_equal(plugin.pwrite(im, data, 4096, 0, 0), 0);
    assert_int_equal(plugin.zero(im, 4096, 0, 0), 0);
    assert_int_equal(host.flushes, 0);
    assert_int_equal(plugin.pwrite(im, data, 4096, 0, NBDKIT_FLAG_FUA), 0);
    assert_int_equal(plugin.zero(im, 4096, 0, NBDKIT_FLAG_FUA), 0);
    assert_int_equal(plugin.trim(im, 4096, 0, NBDKIT_FLAG_FUA), 0);
    assert_int_equal(plugin.flush(im, 0), 0);
    assert_int_equal(host.flushes, 4);
    host.flush = EIO;
    for (unsigned i = 0; i < 4; i++) {
        error_number = 0;
        assert_int_equal(i == 0   ? plugin.flush(im, 0)
                         : i == 1 ? plugin.pwrite(im, data, 4096, 0, NBDKIT_FLAG_FUA)
                         : i == 2 ? plugin.zero(im, 4096, 0, NBDKIT_FLAG_FUA)
                                  : plugin.trim(im, 4096, 0, NBDKIT_FLAG_FUA), -1);
        assert_int_equal(error_number, EIO);
    }
    take();
    assert_alike();
    end();
}

/* The guest is told; the backup has what is there now. */
static void r5_changes_that_fail_half_way(void **state)
{
    struct image *im = serve_and_read();
    static uint8_t data[300000];
    uint64_t head;

    (void)state;
    memset(data, 0xbb, sizeof(data));
    host.write = ENOSPC;
    host.half = 270000; /* amid the second entry */
    assert_int_equal(plugin.pwrite(im, data, sizeof(data), 5000, 0), -1);
    assert_int_equal(error_number, ENOSPC);
    assert_int_equal(take(), 2);
    assert_alike();
    assert_int_equal(errors(), 1);
    host.write = 0;
    host.fallocate = EIO;
    host.half = 300000;
    for (unsigned i = 0; i < 2; i++) {
        generation = queue_barrier(&reader, &head) + 1;
        assert_int_equal(i ? plugin.trim(im, 600000, MIB + 512, 0) : plugin.zero(im, 600000, 2 * MIB + 512, 0), -1);
        assert_int_equal(error_number, EIO);
        assert_true(image_stamp_at(im, i ? MIB : 2 * MIB) == generation &&
                    image_stamp_at(im, (i ? MIB : 2 * MIB) + 600000) == generation);
        assert_true(take() > 0);
        assert_alike();
        assert_int_equal(errors(), 2 + i);
    }
    host.fallocate = EOPNOTSUPP; /* nbdkit writes zeros then */
    host.half = 0;
    assert_int_equal(plugin.zero(im, MIB, 0, 0), -1);
    assert_int_equal(error_number, EOPNOTSUPP);
    assert_int_equal(take(), 0);
    assert_int_equal(errors(), 3);
    host.fallocate = 0;
    host.write = host.read = EIO; /* nor can be said what is there */
    assert_int_equal(plugin.pwrite(im, data, 4096, 0, 0), -1);
    assert_int_equal(take(), 0);
    assert_int_equal(errors(), 4);
    host.write = host.read = 0;
    assert_alike();
    assert_int_equal(plugin.pwrite(im, data, 4096, 0, 0), 0); /* the lock is free */
    assert_int_equal(take(), 1);
    assert_alike();
    end();
}

static void r5_reads(void **state)
{
    struct image *im = serve_and_read();
    uint8_t data[16384];
    uint64_t block;
    unsigned disk;

    (void)state;
    for (unsigned i = 0; i < 256; i++)
        data[i] = (uint8_t)i;
    assert_int_equal(plugin.pwrite(im, data, 256, 3 * 4096, 0), 0);
    assert_int_equal(take(), 1);
    assert_int_equal(plugin.pread(im, data, 3 * 4096, 3 * 4096 - 1, 0), 0); /* holds blocks 3 and 4 */
    assert_memory_equal(data, model + 3 * 4096 - 1, 3 * 4096);
    for (unsigned i = 2; i < 6; i++) {
        bool found = queue_find_read(&reader, queue_read_key(&reader, model + i * 4096), &disk, &block);

        assert_int_equal(found, i == 3 || i == 4);
        assert_true(!found || (disk == 0 && block == i));
    }
    host.read = EIO;
    assert_int_equal(plugin.pread(im, data, 4096, 0, 0), -1);
    assert_int_equal(error_number, EIO);
    host.read = 0;
    assert_int_equal(truncate(paths_of[0], SIZE - 4096), 0); /* shorter than it was */
    error_number = 0;
    assert_int_equal(plugin.pread(im, data, 8192, SIZE - 8192, 0), -1);
    assert_int_equal(error_number, EIO);
    assert_true(plugin.get_size(im) == SIZE);
    end();
}

static void r5_standby_changes_nothing(void **state)
{
    uint8_t data[4096] = {1};
    struct image_record rec;
    struct error err;

    (void)state;
    assert_int_equal(serve("1"), -1); /* of what remus-backupd did not make */
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(image_write(paths_of[i], &(struct image_record){.role = IMAGE_REPLICA, .id = 5, .size = SIZE},
                                     &err), 0);
    assert_int_equal(serve("0"), -1);
    assert_non_null(strstr(error_text, "is a replica"));
    assert_int_equal(serve("1"), 0);
    assert_int_equal(queue_open(&reader, queue_file, &err), 0);
    queue_start(&reader);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(i == 0   ? plugin.pwrite(&images[0], data, 4096, 0, 0)
                         : i == 1 ? plugin.zero(&images[0], 4096, 0, 0)
                                  : plugin.trim(&images[0], 4096, 0, 0), -1);
        assert_int_equal(error_number, EROFS);
    }
    assert_int_equal(take(), 0);
    assert_alike();
    assert_true(image_stamp_at(&images[0], 0) == 0);
    queue_let_write(&reader);
    assert_int_equal(plugin.pwrite(&images[0], data, 4096, 0, 0), 0);
    assert_int_equal(take(), 1);
    assert_alike();
    end();
    assert_int_equal(image_read(paths_of[0], &rec, &err), 1);
    assert_true(rec.role == IMAGE_REPLICA && rec.id == 5 && !rec.clean);
}

/* Generations only grow, and an image is noted as closed in order when all of it is durable. */
static void r5_one_server_after_the_other(void **state)
{
    uint64_t last = 0, head;

    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        struct image_record rec;
        uint8_t data[512] = {1};
        struct error err;

        serve_and_read();
        assert_int_equal(plugin.after_fork(), 0);
        assert_int_equal(queue_server(queue_file), getpid());
        assert_int_equal(plugin.get_ready(), -1); /* two servers of one queue */
        generation = queue_barrier(&reader, &head);
        assert_true(generation > last);
        if (i % 2)
            assert_int_equal(plugin.pwrite(&images[1], data, 512, 0, 0), 0);
        for (unsigned n = 0; n < 100; n++)
            last = queue_barrier(&reader, &head);
        host.flush = i == 2 ? EIO : 0;
        end();
        assert_int_equal(access(queue_file, F_OK), -1);
        for (unsigned disk = 0; disk < 2; disk++) {
            assert_int_equal(image_read(paths_of[disk], &rec, &err), 1);
            assert_true(rec.role == IMAGE_VALID && rec.clean == (i != 2));
        }
    }
}

/* --- disk/server.c, with nbdkit's own program --- */

static uint64_t status_of(pid_t pid, const char *key)
{
    char path[64], line[128];
    unsigned long value = 0;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    f = fopen(path, "re");
    assert_non_null(f);
    while (fgets(line, sizeof(line), f))
        if (strncmp(line, key, strlen(key)) == 0)
            sscanf(line + strlen(key), strcmp(key, "PPid:") == 0 ? "%lu" : "%lx", &value);
    fclose(f);
    return value;
}

#define BIT(signal) (UINT64_C(1) << ((signal) - 1))

/* One that needs nothing of the daemon that started it, and ends in order, or by force. */
static void r5_a_server_that_outlives_its_daemon(void **state)
{
    struct vm_config cfg = {.name = "v", .run_dir = dir, .disks = (char *[]){paths_of[0], paths_of[1]}, .disk_count = 2,
                            .disk_queue_bytes = 2 * MIB, .disk_reads_bytes = 65536};
    char nbd[96], queue_at[108];
    struct queue_stats stats;
    struct image_record rec;
    struct error err;
    sigset_t none, some;
    struct stat st;
    pid_t pid;

    (void)state;
    if (!getenv("REMUS_LIBEXEC") || system("nbdkit --version >/dev/null 2>&1") != 0)
        skip();
    snprintf(nbd, sizeof(nbd), "%s/v.nbd", dir);
    close(open(nbd, O_WRONLY | O_CREAT | O_CLOEXEC, 0600)); /* of one that was killed */
    assert_int_equal(disk_queue_path(&cfg, queue_at), 0);
    assert_false(disk_server_alive(&cfg));
    assert_int_equal(disk_server_stop(&cfg, &err), 0);
    sigemptyset(&some);
    sigaddset(&some, SIGTERM);
    sigprocmask(SIG_BLOCK, &some, &none);
    signal(SIGUSR1, SIG_IGN);
    for (unsigned i = 0; i < 3; i++) {
        bool standby_now = i == 1;

        for (unsigned n = 0; standby_now && n < 2; n++) {
            assert_int_equal(image_read(paths_of[n], &rec, &err), 1);
            rec.role = IMAGE_REPLICA;
            rec.clean = false;
            assert_int_equal(image_write(paths_of[n], &rec, &err), 0);
        }
        if (disk_server_start(&cfg, standby_now, &err) < 0)
            fail_msg("%s", err.text);
        pid = queue_server(queue_at);
        assert_true(pid > 0 && disk_server_alive(&cfg));
        assert_true(stat(nbd, &st) == 0 && S_ISSOCK(st.st_mode));
        assert_true(status_of(pid, "PPid:") != (uint64_t)getpid() && getsid(pid) != getsid(0));
        assert_int_equal(status_of(pid, "SigBlk:"), 0);
        assert_int_equal(status_of(pid, "SigIgn:") & (BIT(SIGUSR1) | BIT(SIGXFSZ)), BIT(SIGXFSZ));
        assert_int_equal(queue_open(&reader, queue_at, &err), 0);
        assert_int_equal(queue_writable(&reader), !standby_now);
        queue_stats(&reader, &stats);
        assert_int_equal(stats.max_bytes, 2 * MIB);
        assert_int_equal(reader.read_count, 65536 / 16);
        queue_close(&reader);
        assert_int_equal(disk_server_start(&cfg, standby_now, &err), -1);
        assert_non_null(strstr(err.text, "runs already"));
        if (i == 2)
            kill(pid, SIGSTOP); /* it does not hear what it is told */
        assert_int_equal(disk_server_stop(&cfg, &err), 0);
        assert_false(disk_server_alive(&cfg));
        for (unsigned n = 0; n < 2; n++) {
            assert_int_equal(image_read(paths_of[n], &rec, &err), 1);
            assert_int_equal(rec.clean, i == 0);
            rec.role = IMAGE_VALID;
            assert_int_equal(image_write(paths_of[n], &rec, &err), 0);
        }
    }
    signal(SIGUSR1, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Why, in its own words. */
static void r10_a_server_that_does_not_start(void **state)
{
    struct vm_config cfg = {.name = "v", .run_dir = dir, .disks = (char *[]){paths_of[0]}, .disk_count = 1,
                            .disk_queue_bytes = MIB};
    const char *path = getenv("PATH");
    char program[96], long_dir[120];
    struct error err;
    FILE *f;

    (void)state;
    if (!getenv("REMUS_LIBEXEC"))
        skip();
    path = strdup(path ? path : "");
    setenv("PATH", dir, 1);
    assert_int_equal(disk_server_start(&cfg, false, &err), -1);
    assert_non_null(strstr(err.text, "is nbdkit installed?"));
    snprintf(program, sizeof(program), "%s/nbdkit", dir);
    f = fopen(program, "we");
    fputs("#!/bin/sh\necho out\necho first >&2\necho second >&2\n", f);
    fclose(f);
    chmod(program, 0700);
    for (unsigned i = 0; i < 2; i++) { /* only this time's */
        assert_int_equal(disk_server_start(&cfg, false, &err), -1);
        assert_non_null(strstr(err.text, "ended at once: first"));
        assert_null(strstr(err.text, "second"));
    }
    memset(long_dir, 'x', sizeof(long_dir));
    long_dir[0] = '/';
    for (size_t length = 90; length < 110; length += 19) {
        long_dir[length] = '\0';
        cfg.run_dir = long_dir;
        assert_int_equal(disk_server_start(&cfg, false, &err), -1);
        assert_int_equal(strstr(err.text, "too long") != NULL, length > 100);
        assert_false(disk_server_alive(&cfg));
        long_dir[length] = 'x';
    }
    setenv("PATH", path, 1);
    free((char *)path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(r5_change_and_barrier, set_up, tear_down),
        cmocka_unit_test_setup_teardown(r5_large_changes_and_both_disks, set_up, tear_down),
        cmocka_unit_test_setup_teardown(r5_flush_and_fua, set_up, tear_down),
        cmocka_unit_test_setup_teardown(r5_changes_that_fail_half_way, set_up, tear_down),
        cmocka_unit_test_setup_teardown(r5_reads, set_up, tear_down),
        cmocka_unit_test_setup_teardown(r5_standby_changes_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(r5_one_server_after_the_other, set_up, tear_down),
        cmocka_unit_test_setup_teardown(r5_a_server_that_outlives_its_daemon, set_up, tear_down),
        cmocka_unit_test_setup_teardown(r10_a_server_that_does_not_start, set_up, tear_down),
    };

    return cmocka_run_group_tests_name("plugin", tests, NULL, NULL);
}
