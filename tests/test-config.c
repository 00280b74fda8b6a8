/* SPDX-License-Identifier: GPL-2.0-or-later */
/* R10: a bad configuration ends in one error that names the file, the line, the key and the way out. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/config.h"
#include "common/kept.h"
#include "common/log.h"

#define MIB (UINT64_C(1) << 20)
#define FAKE "vm db1 {\nplatform = fake\n"

static char path[] = "/tmp/test-config-XXXXXX";

static int load_octets(struct config *cfg, const char *text, size_t len, struct error *err)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
    return config_load(cfg, path, err);
}

static int load(struct config *cfg, const char *text, struct error *err)
{
    return load_octets(cfg, text, strlen(text), err);
}

static void test_defaults(void **state)
{
    struct config cfg;
    struct error err;
    const struct vm_config *vm;

    (void)state;
    assert_int_equal(load(&cfg, "vm db1 { kernel = /boot/vmlinuz }", &err), 0);
    assert_string_equal(cfg.run_dir, "/run/remus");
    assert_string_equal(cfg.listen, "0.0.0.0:7910");
    assert_int_equal(cfg.log_level, LOG_LEVEL_INFO);
    assert_int_equal(cfg.vm_count, 1);
    assert_null(config_vm(&cfg, "db2"));
    vm = config_vm(&cfg, "db1");
    assert_non_null(vm);
    assert_string_equal(vm->run_dir, "/run/remus");
    assert_string_equal(vm->backup, "");
    assert_false(vm->protect);
    assert_int_equal(vm->interval_ms, 25);
    assert_int_equal(vm->heartbeat_ms, 20);
    assert_int_equal(vm->timeout_ms, 200);
    assert_int_equal(vm->degrade_after_ms, 2000);
    assert_int_equal(vm->degrade, DEGRADE_HOLD);
    assert_int_equal(vm->takeover, TAKEOVER_MANUAL);
    assert_string_equal(vm->arbiter, "");
    assert_int_equal(vm->arbiter_timeout_ms, 5000);
    assert_int_equal(vm->staging_bytes, 64 * MIB);
    assert_int_equal(vm->net_queue_bytes, 32 * MIB);
    assert_string_equal(vm->platform, "qemu");
    assert_int_equal(vm->memory_bytes, 128 * MIB);
    assert_int_equal(vm->cpus, 1);
    assert_string_equal(vm->tracker, "auto");
    assert_string_equal(vm->tap, "");
    assert_string_equal(vm->services, "");
    assert_int_equal(vm->open_when, OPEN_ACTIVE);
    assert_string_equal(vm->qemu, "qemu-system-x86_64");
    assert_string_equal(vm->machine_state, "devices");
    assert_null(vm->qemu_args[0]);
    assert_int_equal(vm->disk_count, 0);
    assert_int_equal(vm->disk_queue_bytes, 32 * MIB);
    assert_int_equal(vm->disk_journal_bytes, 256 * MIB);
    config_free(&cfg);
}

static void test_every_key(void **state)
{
    static const char text[] =
        "# one of each\n"
        "run-dir = \"/tmp/r\"\nlisten = \"[::1]:7911\"\nlog-level = debug\n"
        "vm db1 {\n"
        "backup = \"host-b.example:7910\"\nprotect = yes\ninterval = 10000\nheartbeat = 50\n"
        "timeout = 101\ndegrade = release\ndegrade-after = 0\n"
        "arbiter = \"exec /usr/bin/arbiter --vm 'a b'\"\narbiter-timeout = 100\n"
        "takeover = automatic\nstaging = 4\nnet-queue = 4096\nplatform = qemu\n"
        "memory = 4194304\ncpus = 255\ntracker = compare\ntap = tap0\n"
        "mac = \"52:54:00:aB:cd:ef\"\nservices = \"pgsql:5432 mysql:1 dscp:0x2e\"\nopen-when = in-transaction\nqemu = \"/opt/qemu\"\naccelerator = tcg\nkernel = '/k'\n"
        "initrd = /i\nappend = \"console=hvc0 root=/dev/vda\"\nmachine-state = full\n"
        "disks = {\"/d/a.img\", '/d/b.img'}\ndisk-queue = 65536\ndisk-journal = 16\n"
        "qemu-args = {\"-device\", 'virtio-rng-device'}\nfake-rate = 0\n"
        "fake-pattern = hot\nfake-frames = 1000000\n"
        "}\n"
        "vm \"db-2.x_y\" { platform = fake qemu-args = {\na\n,} qemu-args += {b} tap = \"unix:/tmp/n\" mac = 02:00:00:00:00:01 }\n";
    struct config cfg;
    struct error err;
    const struct vm_config *vm;

    (void)state;
    assert_int_equal(load(&cfg, text, &err), 0);
    assert_string_equal(cfg.listen, "[::1]:7911");
    assert_int_equal(cfg.vms[0].disk_count, 2);
    assert_string_equal(cfg.vms[0].disks[1], "/d/b.img");
    assert_int_equal(cfg.vms[0].disk_journal_bytes, 16 * MIB);
    assert_int_equal(cfg.log_level, LOG_LEVEL_DEBUG);
    assert_int_equal(cfg.vm_count, 2);
    vm = &cfg.vms[0];
    assert_string_equal(vm->run_dir, "/tmp/r");
    assert_string_equal(vm->backup, "host-b.example:7910");
    assert_true(vm->protect);
    assert_int_equal(vm->interval_ms, 10000);
    assert_int_equal(vm->degrade, DEGRADE_RELEASE);
    assert_int_equal(vm->degrade_after_ms, 0);
    assert_string_equal(vm->arbiter, "/usr/bin/arbiter --vm 'a b'");
    assert_int_equal(vm->takeover, TAKEOVER_AUTOMATIC);
    assert_int_equal(vm->net_queue_bytes, 4096 * MIB);
    assert_int_equal(vm->memory_bytes, 4194304 * MIB);
    assert_string_equal(vm->mac, "52:54:00:aB:cd:ef");
    assert_string_equal(vm->services, "pgsql:5432 mysql:1 dscp:0x2e");
    assert_int_equal(vm->open_when, OPEN_IN_TRANSACTION);
    assert_string_equal(vm->append, "console=hvc0 root=/dev/vda");
    assert_string_equal(vm->qemu_args[0], "-device");
    assert_string_equal(vm->qemu_args[1], "virtio-rng-device");
    assert_null(vm->qemu_args[2]);
    assert_int_equal(vm->fake_rate, 0);
    assert_string_equal(vm->fake_pattern, "hot");
    assert_string_equal(cfg.vms[1].name, "db-2.x_y");
    assert_string_equal(cfg.vms[1].qemu_args[1], "b");
    assert_null(cfg.vms[1].qemu_args[2]);
    assert_string_equal(cfg.vms[1].tap, "unix:/tmp/n");
    config_free(&cfg);
}

/* After the file's name: ":LINE: " and what else must be in the text. */
static const struct bad {
    const char *text, *place, *says;
} bad[] = {
    /* not our keys, not their form */
    {"speed = 9\n", ":1: ", "no such option 'speed'; remusd.conf(5)"},
    {FAKE "\nintervall = 25\n}\n", ":4: ", "'intervall'"},
    {"include(\"/etc/passwd\")\n", ":1: ", "'include'"},
    {"vm db1 { vm db2 { platform = fake } }\n", ":1: ", "'vm'"},
    {"end-of-file = x\n", ":", "'end-of-file'"},
    {"run-dir /x\n", ":1: ", "equal sign"},
    {"listen = {a, b}\n", ":1: ", "'{'"},
    {"listen += \"a:1\"\n", ":1: ", "listen"},
    {"}\n", ":1: ", "brace"},
    {"vm { platform = fake }\n", ":1: ", "title"},
    /* what the end of the file must not close */
    {FAKE, ":3: ", "vm db1: the section is not closed, its '}' is missing"},
    {FAKE "qemu-args = {a,\n", ":4: ", "unexpected token"},
    {FAKE "append = 'x\n}\n", ":", "unterminated"},
    {FAKE "append = \"x\n}\n", ":", "quote missing"},
    {FAKE "} /* \n", ":", "comment or a string is not closed"},
    /* twice */
    {"listen = \"a:1\"\nlisten = \"a:1\"\n", ":2: ", "listen is already set in line 1"},
    {FAKE "cpus = 1\ncpus = 2\n}\n", ":4: vm db1: ", "cpus is already set in line 3"},
    {FAKE "qemu-args = {a\n}\nqemu-args = {b}\n}\n", ":5: vm db1: ", "already set in line 3"},
    {FAKE "disks = {/a}\ndisks = {/b}\n}\n", ":4: vm db1: ", "already set in line 3"},
    {FAKE "disks = {a.img}\n}\n", ":3: vm db1: ", "absolute path"},
    {FAKE "disks = {/dev/sda}\n}\n", ":3: vm db1: ", "symbolic link"},
    {FAKE "disks = {/1,/2,/3,/4,/5,/6,/7,/8,/9}\n}\n", ":3: vm db1: ", "at most 8"},
    {FAKE "}\nvm db1 { platform = fake }\n", ":4: ", "duplicate title 'db1'"},
    /* names */
    {"vm \"a b\" { platform = fake }\n", ":1: ", "vm \"a b\": want a name"},
    {"vm \"../x\" { platform = fake }\n", ":1: ", "want a name"},
    {"vm \"-x\" { platform = fake }\n", ":1: ", "want a name"},
    {"vm \"\" { platform = fake }\n", ":1: ", "want a name"},
    {"vm \"\" { }\n", ":1: ", "want a name"},
    {"vm a234567890123456789012345678901234567890123456789012345678901234 {}\n", ":1: ",
     "at most 63"},
    /* numbers */
    {FAKE "interval = 4\n}\n", ":3: vm db1: ", "interval = \"4\": want a number of ms from 5 to 10"},
    {FAKE "interval = 10001\n}\n", ":3: ", "from 5 to 10000"},
    {FAKE "interval = 25ms\n}\n", ":3: ", "\"25ms\""},
    {FAKE "interval = \"\"\n}\n", ":3: ", "interval = \"\""},
    {FAKE "interval = -25\n}\n", ":3: ", "\"-25\""},
    {FAKE "interval = \" 25\"\n}\n", ":3: ", "\" 25\""},
    {FAKE "interval = 0x19\n}\n", ":3: ", "\"0x19\""},
    {FAKE "interval = 18446744073709551641\n}\n", ":3: ", "from 5"},
    {FAKE "interval = 4294967321\n}\n", ":3: ", "from 5"},
    {FAKE "memory = 15\n}\n", ":3: ", "MiB from 16 to 4194304"},
    {FAKE "memory = 17592186044417\n}\n", ":3: ", "MiB from 16"},
    {FAKE "cpus = 0\n}\n", ":3: ", "processors from 1"},
    {FAKE "fake-rate = 1e6\n}\n", ":3: ", "pages a second"},
    /* words */
    {FAKE "protect = true\n}\n", ":3: ", "want yes or no"},
    {FAKE "degrade = Hold\n}\n", ":3: ", "want hold, release or stop"},
    {FAKE "takeover = auto\n}\n", ":3: ", "want manual or automatic"},
    {FAKE "tracker = uff\n}\n", ":3: ", "want auto, uffd or compare"},
    {"vm a { platform = vmware }\n", ":1: vm a: ", "want qemu, xen or fake"},
    {"log-level = loud\n", ":1: ", "error, warning, info or debug"},
    /* addresses */
    {"listen = 7910\n", ":1: ", "want HOST:PORT"},
    {"listen = \":7910\"\n", ":1: ", "want HOST:PORT"},
    {"listen = \"a:0\"\n", ":1: ", "want HOST:PORT"},
    {"listen = \"a:65536\"\n", ":1: ", "want HOST:PORT"},
    {"listen = \"a:http\"\n", ":1: ", "want HOST:PORT"},
    {"listen = \"::1:7910\"\n", ":1: ", "[IPV6]:PORT"},
    {"listen = \"[::g]:7910\"\n", ":1: ", "[IPV6]:PORT"},
    {"listen = \"[]:7910\"\n", ":1: ", "[IPV6]:PORT"},
    {"listen = \"[::1:7910\"\n", ":1: ", "[IPV6]:PORT"},
    {"listen = \"[\"\n", ":1: ", "[IPV6]:PORT"},
    {"listen = \"]:1\"\n", ":1: ", "[IPV6]:PORT"},
    {FAKE "backup = \"a b:7910\"\n}\n", ":3: vm db1: ", "want HOST:PORT"},
    /* the rest */
    {"run-dir = run\n", ":1: ", "an absolute path"},
    {"run-dir = \"/a,b\"\n", ":1: ", "without a comma"},
    {"run-dir = \"/x\\ny\"\n", ":1: ", "control character"},
    {FAKE "qemu-args = {\"a\\nb\"}\n}\n", ":3: ", "control character"},
    {FAKE "mac = \"52:54:00:12:34\"\n}\n", ":3: ", "six octets"},
    {FAKE "mac = \"52-54-00-12-34-56\"\n}\n", ":3: ", "six octets"},
    {FAKE "mac = \"5z:54:00:12:34:56\"\n}\n", ":3: ", "six octets"},
    {FAKE "mac = \"53:54:00:12:34:56\"\n}\n", ":3: ", "no multicast"},
    {FAKE "mac = \"00:00:00:00:00:00\"\n}\n", ":3: ", "six octets"},
    {FAKE "mac = \"52:54:00:12:34:56\"\ntap = a234567890123456\n}\n", ":4: ", "15 octets"},
    {FAKE "mac = \"52:54:00:12:34:56\"\ntap = \"../x\"\n}\n", ":4: ", "an interface name"},
    {FAKE "services = \"\"\n}\n", ":3: ", "pgsql:PORT"},
    {FAKE "services = pgsql\n}\n", ":3: ", "pgsql:PORT"},
    {FAKE "services = \"oracle:1521\"\n}\n", ":3: ", "pgsql:PORT"},
    {FAKE "services = \"gsql:1\"\n}\n", ":3: ", "pgsql:PORT"},
    {FAKE "services = \"dscp:64\"\n}\n", ":3: ", "dscp:MARK"},
    {FAKE "services = \"dscp:0\"\n}\n", ":3: ", "dscp:MARK"},
    {FAKE "services = \"dscp:1 dscp:2\"\n}\n", ":3: ", "dscp:MARK"},
    {FAKE "services = \"mysql:0xcea\"\n}\n", ":3: ", "mysql:PORT"},
    {FAKE "services = \"pgsql:0\"\n}\n", ":3: ", "pgsql:PORT"},
    {FAKE "services = \"pgsql:65536\"\n}\n", ":3: ", "pgsql:PORT"},
    {FAKE "services = \"pgsql:-1\"\n}\n", ":3: ", "pgsql:PORT"},
    {FAKE "services = \"pgsql:5432,\"\n}\n", ":3: ", "pgsql:PORT"},
    {FAKE "arbiter = \"/bin/true\"\n}\n", ":3: ", "exec /PATH"},
    {FAKE "arbiter = \"exec true\"\n}\n", ":3: ", "exec /PATH"},
    {FAKE "arbiter = \"exec \"\n}\n", ":3: ", "exec /PATH"},
    /* what one key alone cannot tell: the line is that of a key that was written */
    {FAKE "timeout = 40\n\n}\n", ":3: ", "more than twice the heartbeat of 20 ms"},
    {FAKE "\nheartbeat = 100\n}\n", ":4: ", "timeout = 200"},
    {FAKE "protect = yes\n}\n", ":3: ", "needs backup"},
    {FAKE "tap = tap0\n}\n", ":3: ", "tap needs mac"},
    {FAKE "guest-bridge = b\n}\n", ":3: ", "platform = xen"},
    {"vm a {\nplatform = xen\ntap = \"unix:/tmp/x\"\n}\n", ":3: ", "TAP-g"},
    {FAKE "services = \"pgsql:5432\"\n}\n", ":3: ", "services needs tap"},
    {FAKE "vif = db1 mac = 52:54:00:12:34:56\n}\n", ":3: ", "platform = xen"},
    {"vm a {\nplatform = xen\nvif = db1 tap = tap0 guest-bridge = b mac = 52:54:00:12:34:56\n}\n", ":3: ", "without tap"},
    {"vm a {\nplatform = xen\nvif = db1 mac = 52:54:00:12:34:56\nnetbuf = frames\n}\n", ":4: ", "needs tap"},
    {FAKE "tap = t mac = 52:54:00:12:34:56\nnetbuf = plug\n}\n", ":4: ", "without tap"},
    {"vm a {\nplatform = xen\nvif = db1 mac = 52:54:00:12:34:56\nnetbuf = plug\nservices = \"pgsql:1\"\n}\n", ":5: ", "connections apart"},
    {"vm a { netbuf = ifb }\n", ":1: ", "auto, frames, nfqueue or plug"},
    {"vm a { platform = xen nfqueue = 65535 }\n", ":1: ", "from 0 to 65534"},
    {"vm db1 {\n}\n", ":2: vm db1: ", "kernel is missing"},
    {"state-dir = lib\n", ":1: ", "an absolute path"},
    {"others {\nmemory = 64\n}\n", ":2: ", "belongs in a section vm NAME"},
    {"others {\nbackup = \"a:1\"\n}\n", ":2: ", "belongs in a section vm NAME"},
    {"others {\ndisks = {\"/a\"}\n}\n", ":2: ", "belongs in a section vm NAME"},
    {"others {\nimage-dir = \"/a'b\"\n}\n", ":2: ", "without a quote"},
    {"others {\ntimeout = 40\n}\n", ":2: others: ", "more than twice the heartbeat"},
    {"others {\ninterval = 50\n", ":3: others: ", "not closed"},
    {FAKE "disks = {/a, /b, /a}\n}\n", ":3: vm db1: ", "each disk needs an image of its own"},
    {FAKE "disks = {/a}\n}\nvm db2 {\nplatform = fake\ndisks = {/b, /a}\n}\n", ":7: vm db2: ", "is vm db1's already"},
    {FAKE "tap = t\nmac = \"52:54:00:12:34:56\"\n}\nvm db2 {\nplatform = fake\nmac = \"52:54:00:12:34:57\"\ntap = t\n}\n",
     ":9: vm db2: ", "is vm db1's already"},
    {"others {\n}\nothers {\n}\n", ":4: ", "already"},
    {FAKE "image-dir = \"/a\"\n}\n", ":3: ", "belongs in the section others"},
};

static void test_r10_bad_input_names_the_place(void **state)
{
    char place[128];

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        struct config cfg;
        struct error err = {""};

        if (load(&cfg, bad[i].text, &err) == 0)
            fail_msg("accepted: %s", bad[i].text);
        snprintf(place, sizeof(place), "%s%s", path, bad[i].place);
        if (strncmp(err.text, place, strlen(place)) != 0 || !strstr(err.text, bad[i].says))
            fail_msg("for %s\ngot  %s\nwant %s...%s", bad[i].text, err.text, place, bad[i].says);
        assert_null(cfg.vms);
        assert_int_equal(cfg.vm_count, 0);
    }
}

/* One image under two names; what is not there yet is nobody's. */
static void test_r10_one_image_under_two_names(void **state)
{
    char image[64], other[64], text[400];
    struct config cfg;
    struct error err = {""};

    (void)state;
    snprintf(image, sizeof(image), "%s.img", path);
    snprintf(other, sizeof(other), "%s.other", path);
    for (int n = 0; n < 8; n++) {
        bool symbolic = n & 1, two_vms = n & 2, there = !(n & 4);
        FILE *f = there ? fopen(image, "w") : NULL;

        if (there)
            assert_int_equal(fclose(f), 0);
        if (symbolic)
            assert_int_equal(symlink(image, other), 0);
        else if (there)
            assert_int_equal(link(image, other), 0);
        snprintf(text, sizeof(text), FAKE "disks = {'%s'%s'%s'}\n}\n", image,
                 two_vms ? "}\n}\nvm db2 {\nplatform = fake\ndisks = {" : ", ", other);
        if (load(&cfg, text, &err) == 0)
            config_free(&cfg);
        else if (!there)
            fail_msg("%s", err.text);
        if (there && (!strstr(err.text, other) || !strstr(err.text, image) || !strstr(err.text, "is vm db1's already")))
            fail_msg("%s", err.text);
        err.text[0] = '\0';
        unlink(image);
        unlink(other);
    }
}

/* Each number at its limits, and one beyond, as remusd.conf(5) has them. */
static void test_r10_numbers_at_their_limits(void **state)
{
    static const struct {
        const char *key;
        unsigned long min, max;
    } keys[] = {
        {"interval", 5, 10000}, {"heartbeat", 1, 10000}, {"timeout", 10, 600000}, {"degrade-after", 0, 3600000},
        {"arbiter-timeout", 100, 600000}, {"compression-threads", 1, 64}, {"staging", 4, 65536}, {"net-queue", 1, 4096},
        {"disk-queue", 1, 65536}, {"disk-reads", 0, 1024}, {"disk-sync-rate", 0, 65536}, {"disk-journal", 16, 65536},
        {"memory", 16, 4194304}, {"cpus", 1, 255}, {"nfqueue", 0, 65534}, {"fake-rate", 0, 100000000},
        {"fake-frames", 0, 1000000},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++) {
        const unsigned long values[] = {keys[i].min, keys[i].max, keys[i].max + 1, keys[i].min - 1};

        for (unsigned n = 0; n < (keys[i].min ? 4 : 3); n++) {
            char text[200], place[80];
            struct config cfg;
            struct error err = {""};

            snprintf(text, sizeof(text), FAKE "%s\n%s = %lu\n}\n",
                     strcmp(keys[i].key, "timeout") == 0 ? "heartbeat = 1" : "timeout = 600000", keys[i].key, values[n]);
            snprintf(place, sizeof(place), "%s:4: vm db1: %s = ", path, keys[i].key);
            assert_int_equal(load(&cfg, text, &err), n < 2 ? 0 : -1);
            if (n < 2)
                config_free(&cfg);
            else if (strncmp(err.text, place, strlen(place)) != 0)
                fail_msg("%s", err.text);
        }
    }
}

/* Other limits: what is just good enough. */
static void test_what_is_taken(void **state)
{
    static const char *const good[] = {
        FAKE "timeout = 41\n}\n",
        FAKE "mac = \"52:54:00:12:34:56\" tap = a23456789012345\n}\n",
        FAKE "mac = \"00:00:00:00:00:0F\" tap = \"unix:/x\" services = \"mysql:65535 pgsql:1\"\n}\n",
        FAKE "mac = \"52:54:00:12:34:56\" tap = t netbuf = frames services = \"dscp:0x3f\"\n}\n",
        FAKE "disks = {/1,/2,/3,/4,/5,/6,/7,/8}\n}\n",
        FAKE "backup = \"a:1\" protect = yes\n}\n",
        FAKE "arbiter = \"exec   /a\"\n}\n",
        "vm a-b_c.9 { platform = fake }\n",
        "vm x { platform = xen tap = t services = \"pgsql:1\" guest-bridge = b }\n",
        "vm x { platform = xen tap = a234567890123 netbuf = frames }\n",
        "vm x { platform = xen netbuf = plug }\nvm y { platform = xen netbuf = nfqueue services = \"pgsql:1\" }\n",
        FAKE "}\nvm db2 { platform = fake tap = t mac = \"52:54:00:12:34:56\" }\n"
        "vm db3 { platform = fake tap = u mac = \"52:54:00:12:34:56\" }\n",
        "others { disk-queue = 7 degrade = stop compression = zstd }\n",
    }, *const bad_tap[] = {
        "vm x { platform = xen tap = a2345678901234 }\n",
        "vm x { platform = xen tap = t netbuf = plug }\n",
        "vm x { platform = xen tap = t netbuf = nfqueue }\n",
    };
    struct config cfg;
    struct error err;

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
        if (load(&cfg, good[i], &err) < 0)
            fail_msg("%s", err.text);
        config_free(&cfg);
    }
    for (size_t i = 0; i < sizeof(bad_tap) / sizeof(*bad_tap); i++)
        assert_int_equal(load(&cfg, bad_tap[i], &err), -1);
}

static void test_r10_no_text_file(void **state)
{
    size_t len = (1u << 20) + 1;
    char *big = malloc(len);
    struct config cfg;
    struct error err;

    (void)state;
    assert_non_null(big);
    memset(big, '#', len);
    assert_int_equal(load_octets(&cfg, big, len - 1, &err), 0);
    config_free(&cfg);
    assert_int_equal(load_octets(&cfg, big, len, &err), -1);
    assert_non_null(strstr(err.text, "larger than 1 MiB"));
    free(big);
    assert_int_equal(load_octets(&cfg, "listen\0", 7, &err), -1);
    assert_non_null(strstr(err.text, "NUL"));
    assert_int_equal(config_load(&cfg, "/nonexistent/remusd.conf", &err), -1);
    assert_non_null(strstr(err.text, "/nonexistent/remusd.conf: there is no such file"));
    assert_int_equal(config_load(&cfg, "/tmp", &err), -1);
}

/* Any octets end in success or in an error: run under the sanitizers. */
static void test_r10_any_octets(void **state)
{
    static const char *const words[] = {"vm", "db1", "{", "}", "=", "\"", "'", "/*", "*/", "\n",
                                        "interval", "25", "qemu-args", ",", "+=", "\\", "${HOME}",
                                        "(", ")", "listen", "a:1", "\x01", "\xff", "#", "//"};
    unsigned seed = 1;
    unsigned loaded = 0;

    (void)state;
    for (int round = 0; round < 500; round++) {
        char text[400] = "";
        struct config cfg;
        struct error err = {""};

        for (int n = rand_r(&seed) % 24; n > 0; n--) {
            strcat(text, words[(size_t)rand_r(&seed) % (sizeof(words) / sizeof(*words))]);
            strcat(text, rand_r(&seed) % 3 ? " " : "");
        }
        if (load(&cfg, text, &err) == 0) {
            loaded++;
            config_free(&cfg);
        } else {
            assert_int_equal(strncmp(err.text, path, strlen(path)), 0);
        }
    }
    assert_in_range(loaded, 1, 499);
}

static void test_split_address(void **state)
{
    char host[256], port[16], longest[300];

    (void)state;
    assert_int_equal(config_split_address("[fe80::1%eth0]:65535", host, port, NULL), 0);
    assert_string_equal(host, "fe80::1%eth0");
    assert_string_equal(port, "65535");
    memset(longest, 'a', sizeof(longest));
    strcpy(longest + 255, ":1");
    assert_int_equal(config_split_address(longest, host, port, NULL), 0);
    strcpy(longest + 255, "a:1");
    assert_int_equal(config_split_address(longest, host, port, NULL), -1);
}

static int make_file(void **state)
{
    int fd = mkstemp(path);

    (void)state;
    return fd < 0 ? -1 : close(fd);
}

static int remove_file(void **state)
{
    (void)state;
    return unlink(path);
}

static int count_section(void *arg, struct vm_config *vm, struct error *err)
{
    (void)err;
    ++*(int *)arg;
    config_free_section(vm);
    return 0;
}

/* A section in a file of its own has the settings of `others', and nothing else of it. */
static void test_kept_sections(void **state)
{
    static const char keys[] = "platform = fake\nbackup = 'b:7910'\nmemory = 32\ninterval = 40\n";
    char dir[] = "/tmp/test-config-XXXXXX", file[128];
    struct config cfg;
    struct vm_config *vm;
    struct error err;
    int count = 0;
    FILE *f;

    (void)state;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(load(&cfg, "run-dir = /tmp/r\nothers {\ninterval = 50 arbiter = \"exec /a b\" takeover = automatic "
                          "staging = 128\nimage-dir = '/i'\n}\n", &err), 0);
    assert_int_equal(cfg.vm_count, 0);
    assert_string_equal(cfg.others->image_dir, "/i");
    snprintf(file, sizeof(file), "%s/state", dir);
    free(cfg.state_dir);
    cfg.state_dir = strdup(file);
    vm = kept_make(&cfg, "remusd", "db1", keys, &err);
    assert_non_null(vm);
    assert_string_equal(vm->name, "db1");
    assert_string_equal(vm->run_dir, "/tmp/r");
    assert_string_equal(vm->backup, "b:7910");
    assert_int_equal(vm->memory_bytes, 32 * MIB);
    assert_int_equal(vm->interval_ms, 40);
    assert_string_equal(vm->arbiter, "/a b");
    assert_int_equal(vm->takeover, TAKEOVER_AUTOMATIC);
    assert_int_equal(vm->staging_bytes, 128 * MIB);
    config_free_section(vm);
    /* what is wrong leaves nothing */
    assert_null(kept_make(&cfg, "remusd", "../x", keys, &err));
    assert_null(kept_make(&cfg, "remusd", "x", "memory = 1\n", &err));
    assert_null(kept_make(&cfg, "remusd", "x", "}\nvm y {\n", &err));
    snprintf(file, sizeof(file), "%s/x.remusd.conf", cfg.state_dir);
    assert_int_equal(access(file, F_OK), -1);
    /* a file of another VM's name is an error, whoever put it there */
    f = fopen(file, "w");
    fputs("vm y {\nplatform = fake\n}\n", f);
    fclose(f);
    assert_int_equal(kept_each(&cfg, "remusd", count_section, &count, &err), -1);
    assert_non_null(strstr(err.text, "x.remusd.conf"));
    unlink(file);
    count = 0;
    assert_int_equal(kept_each(&cfg, "remus-backupd", count_section, &count, &err), 0);
    assert_int_equal(count, 0); /* the other daemon's */
    assert_int_equal(kept_each(&cfg, "remusd", count_section, &count, &err), 0);
    assert_int_equal(count, 1);
    assert_int_equal(kept_forget(&cfg, "remusd", "db1", &err), 0);
    assert_int_equal(kept_each(&cfg, "remusd", count_section, &count, &err), 0);
    assert_int_equal(count, 1);
    rmdir(cfg.state_dir);
    rmdir(dir);
    config_free(&cfg);
}

/* With an argument: what `remusd -t -c FILE` does, for synopsis.py. */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_every_key),
        cmocka_unit_test(test_kept_sections),
        cmocka_unit_test(test_r10_bad_input_names_the_place),
        cmocka_unit_test(test_r10_one_image_under_two_names),
        cmocka_unit_test(test_r10_numbers_at_their_limits),
        cmocka_unit_test(test_what_is_taken),
        cmocka_unit_test(test_r10_no_text_file),
        cmocka_unit_test(test_r10_any_octets),
        cmocka_unit_test(test_split_address),
    };

    if (argc == 2) {
        struct config cfg;
        struct error err;
        int rc = config_load(&cfg, argv[1], &err);

        puts(rc < 0 ? err.text : "ok");
        config_free(&cfg);
        return rc < 0;
    }
    return cmocka_run_group_tests(tests, make_file, remove_file);
}
