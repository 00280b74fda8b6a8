/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <arpa/inet.h>
#include <confuse.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cleanup.h"
#include "config.h"
#include "log.h"

#define FILE_MAX (1u << 20)
#define RUN_DIR_MAX 80  /* leaves room for NAME.net in a sun_path of 108 octets */
#define UNIX_PATH_MAX 107
#define DIRECTORY_MAX 512
#define DIRECTORY_WANT "an absolute path of at most 512 octets, without a quote"
#define MIB (UINT64_C(1) << 20)

/*
 * For libconfuse the end of the file also ends a section: this key behind the text tells whether
 * it did.
 */
#define END_KEY "end-of-file"

_Static_assert(sizeof(size_t) == 8, "guests are mapped whole: 64-bit hosts only");

/*
 * One key.  Every value reaches us as text, so that all errors read alike; set() converts it into
 * the field at `offset`, or returns -1 when the text is not what `want` says.
 */
struct key {
    const char *name;
    int (*set)(const struct key *key, void *field, const char *value);
    size_t offset;
    const char *def;
    const char *want;        /* for the error; numbers: the unit */
    uint64_t min, max;       /* numbers */
    const char *const *words;/* choices, NULL-terminated */
};

static int take_string(void *field, const char *value)
{
    char **s = field, *copy = strdup(value);

    if (!copy)
        return -1;
    free(*s);
    *s = copy;
    return 0;
}

static int set_text(const struct key *key, void *field, const char *value)
{
    (void)key;
    return take_string(field, value);
}

static int read_number(const struct key *key, const char *value, uint64_t *n)
{
    char *end;

    if (!isdigit((unsigned char)*value))
        return -1;
    errno = 0;
    *n = strtoull(value, &end, 10);
    return errno || *end || *n < key->min || *n > key->max ? -1 : 0;
}

static int set_number(const struct key *key, void *field, const char *value)
{
    uint64_t n;

    if (read_number(key, value, &n) < 0)
        return -1;
    *(unsigned *)field = (unsigned)n;
    return 0;
}

static int set_mib(const struct key *key, void *field, const char *value)
{
    uint64_t n;

    if (read_number(key, value, &n) < 0)
        return -1;
    n *= MIB;
    memcpy(field, &n, sizeof(n));
    return 0;
}

static int set_bool(const struct key *key, void *field, const char *value)
{
    (void)key;
    if (strcmp(value, "yes") != 0 && strcmp(value, "no") != 0)
        return -1;
    *(bool *)field = *value == 'y';
    return 0;
}

/* A word to its place in the list: an enum in the same order. */
static int set_enum(const struct key *key, void *field, const char *value)
{
    for (int i = 0; key->words[i]; i++)
        if (strcmp(value, key->words[i]) == 0) {
            *(int *)field = i;
            return 0;
        }
    return -1;
}

static int set_word(const struct key *key, void *field, const char *value)
{
    int unused;

    return set_enum(key, &unused, value) < 0 ? -1 : take_string(field, value);
}

static int set_run_dir(const struct key *key, void *field, const char *value)
{
    (void)key;
    if (value[0] != '/' || strlen(value) > RUN_DIR_MAX || strchr(value, ','))
        return -1;
    return take_string(field, value);
}

static int set_directory(const struct key *key, void *field, const char *value)
{
    (void)key;
    return value[0] == '/' && !strchr(value, '\'') && strlen(value) <= DIRECTORY_MAX ? take_string(field, value) : -1;
}

static int set_address(const struct key *key, void *field, const char *value)
{
    char host[256], port[16];

    (void)key;
    if (config_split_address(value, host, port, NULL) < 0)
        return -1;
    return take_string(field, value);
}

static int set_arbiter(const struct key *key, void *field, const char *value)
{
    (void)key;
    if (strcmp(value, "none") == 0)
        return take_string(field, "");
    if (strncmp(value, "exec ", 5) != 0)
        return -1;
    value += 5 + strspn(value + 5, " ");
    return *value == '/' ? take_string(field, value) : -1;
}

/* A name as Linux takes it (dev_valid_name). */
bool config_good_interface(const char *name)
{
    for (const char *c = name; *c; c++)
        if (isspace((unsigned char)*c) || iscntrl((unsigned char)*c))
            return false;
    return *name && strlen(name) <= CONFIG_TAPLEN_MAX && !strpbrk(name, "/:") && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0;
}

static int set_interface(const struct key *key, void *field, const char *value)
{
    (void)key;
    return config_good_interface(value) ? take_string(field, value) : -1;
}

/* An interface's name, or unix:PATH. */
static int set_tap(const struct key *key, void *field, const char *value)
{
    if (strncmp(value, "unix:", 5) != 0)
        return set_interface(key, field, value);
    return value[5] != '/' || strlen(value + 5) > UNIX_PATH_MAX ? -1 : take_string(field, value);
}

bool config_good_mac(const char *mac)
{
    unsigned zero = 0;

    if (strlen(mac) != 17)
        return false;
    for (int i = 0; i < 17; i++) {
        if (i % 3 == 2 ? mac[i] != ':' : !isxdigit((unsigned char)mac[i]))
            return false;
        zero += i % 3 != 2 && mac[i] == '0';
    }
    return !(strtoul(mac, NULL, 16) & 1) && zero != 12;
}

static int set_mac(const struct key *key, void *field, const char *value)
{
    (void)key;
    return config_good_mac(value) ? take_string(field, value) : -1;
}

int config_next_service(const char **at, char protocol[16], uint16_t *value)
{
    unsigned long n;
    bool mark;
    int len = 0;
    char *end;

    *at += strspn(*at, " ");
    if (!**at)
        return 0;
    if (sscanf(*at, "%15[a-z]:%n", protocol, &len) != 1 || !isdigit((unsigned char)(*at)[len]) || !len)
        return -1;
    mark = strcmp(protocol, "dscp") == 0;
    n = strtoul(*at + len, &end, mark ? 0 : 10);
    if (n < 1 || n > (mark ? 63 : 65535) || (*end && *end != ' '))
        return -1;
    *value = (uint16_t)n;
    *at = end;
    return 1;
}

static int set_services(const struct key *key, void *field, const char *value)
{
    unsigned count = 0, marks = 0;
    const char *at = value;
    char protocol[16];
    uint16_t n;
    int rc;

    (void)key;
    while ((rc = config_next_service(&at, protocol, &n)) > 0) {
        marks += strcmp(protocol, "dscp") == 0;
        if ((strcmp(protocol, "pgsql") != 0 && strcmp(protocol, "mysql") != 0 &&
             strcmp(protocol, "dscp") != 0) ||
            ++count > CONFIG_SERVICES_MAX)
            return -1;
    }
    return rc < 0 || count == 0 || marks > 1 ? -1 : take_string(field, value);
}

#define TOP(field) offsetof(struct config, field)
#define VM(field) offsetof(struct vm_config, field)
#define WORDS(...) .words = (const char *const[]){__VA_ARGS__, NULL}
static const char *const netbuf_words[] = {"auto", "frames", "nfqueue", "plug", NULL}; /* as enum netbuf */
#define ADDRESS_WANT "HOST:PORT or [IPV6]:PORT, PORT from 1 to 65535"

_Static_assert(sizeof(enum degrade_policy) == sizeof(int), "set_enum writes an int");

static const struct key top_keys[] = {
    {"run-dir", set_run_dir, TOP(run_dir), "/run/remus",
     "an absolute path of at most 80 octets, without a comma", 0, 0, NULL},
    {"state-dir", set_directory, TOP(state_dir), "/var/lib/remus", DIRECTORY_WANT, 0, 0, NULL},
    {"listen", set_address, TOP(listen), "0.0.0.0:7910", ADDRESS_WANT, 0, 0, NULL},
    {"log-level", set_enum, TOP(log_level), "info", "error, warning, info or debug", 0, 0,
     WORDS("error", "warning", "info", "debug")},
};

static const struct key vm_keys[] = {
    {"backup", set_address, VM(backup), NULL, ADDRESS_WANT, 0, 0, NULL},
    {"protect", set_bool, VM(protect), "no", "yes or no", 0, 0, NULL},
    {"interval", set_number, VM(interval_ms), "25", "ms", CONFIG_INTERVAL_MIN,
     CONFIG_INTERVAL_MAX, NULL},
    {"heartbeat", set_number, VM(heartbeat_ms), "20", "ms", 1, 10000, NULL},
    {"timeout", set_number, VM(timeout_ms), "200", "ms", 10, 600000, NULL},
    {"degrade", set_enum, VM(degrade), "hold", "hold, release or stop", 0, 0,
     WORDS("hold", "release", "stop")},
    {"degrade-after", set_number, VM(degrade_after_ms), "2000", "ms", 0, 3600000, NULL},
    {"arbiter", set_arbiter, VM(arbiter), "none", "none, or exec /PATH/TO/COMMAND ARGUMENTS", 0, 0,
     NULL},
    {"arbiter-timeout", set_number, VM(arbiter_timeout_ms), "5000", "ms", 100, 600000, NULL},
    {"takeover", set_enum, VM(takeover), "manual", "manual or automatic", 0, 0,
     WORDS("manual", "automatic")},
    {"compression", set_word, VM(compression), "auto", "off, lz4, zstd or auto", 0, 0,
     WORDS("off", "lz4", "zstd", "auto")},
    {"compression-threads", set_number, VM(compression_threads), "1", "threads", 1, 64, NULL},
    {"staging", set_mib, VM(staging_bytes), "64", "MiB", 4, 65536, NULL},
    {"net-queue", set_mib, VM(net_queue_bytes), "32", "MiB", 1, 4096, NULL},
    {"disk-queue", set_mib, VM(disk_queue_bytes), "32", "MiB", 1, 65536, NULL},
    {"disk-reads", set_mib, VM(disk_reads_bytes), "4", "MiB", 0, 1024, NULL},
    {"disk-sync-rate", set_mib, VM(disk_sync_rate), "0", "MiB", 0, 65536, NULL},
    {"disk-journal", set_mib, VM(disk_journal_bytes), "256", "MiB", 16, 65536, NULL},
    {"image-dir", set_directory, VM(image_dir), NULL, DIRECTORY_WANT, 0, 0, NULL},
    {"platform", set_word, VM(platform), "qemu", "qemu, xen or fake", 0, 0,
     WORDS("qemu", "xen", "fake")},
    {"memory", set_mib, VM(memory_bytes), "128", "MiB", 16, 4194304, NULL},
    {"cpus", set_number, VM(cpus), "1", "processors", 1, 255, NULL},
    {"tracker", set_word, VM(tracker), "auto", "auto, uffd or compare", 0, 0,
     WORDS("auto", "uffd", "compare")},
    {"tap", set_tap, VM(tap), NULL, "an interface name of at most 15 octets, or unix:/PATH", 0, 0,
     NULL},
    {"mac", set_mac, VM(mac), NULL, "six octets as in 52:54:00:12:34:56, no multicast address", 0,
     0, NULL},
    {"guest-bridge", set_interface, VM(guest_bridge), NULL, "an interface name of at most 15 octets", 0, 0, NULL},
    {"vif", set_interface, VM(vif), NULL, "an interface name of at most 15 octets", 0, 0, NULL},
    {"nfqueue", set_number, VM(nfqueue), "0", "queues", 0, 65534, NULL},
    {"netbuf", set_enum, VM(netbuf), "auto", "auto, frames, nfqueue or plug", 0, 0,
     .words = netbuf_words},
    {"services", set_services, VM(services), NULL,
     "pgsql:PORT, mysql:PORT or dscp:MARK (1 to 63, once), at most 16 of them with blanks in between", 0, 0, NULL},
    {"open-when", set_enum, VM(open_when), "active", "active or in-transaction", 0, 0,
     WORDS("in-transaction", "active")},
    {"qemu", set_text, VM(qemu), "qemu-system-x86_64", "", 0, 0, NULL},
    {"accelerator", set_word, VM(accelerator), "auto", "auto, kvm or tcg", 0, 0,
     WORDS("auto", "kvm", "tcg")},
    {"kernel", set_text, VM(kernel), NULL, "", 0, 0, NULL},
    {"initrd", set_text, VM(initrd), NULL, "", 0, 0, NULL},
    {"append", set_text, VM(append), NULL, "", 0, 0, NULL},
    {"machine-state", set_word, VM(machine_state), "devices", "devices or full", 0, 0,
     WORDS("devices", "full")},
    {"fake-rate", set_number, VM(fake_rate), "5000", "pages a second", 0, 100000000, NULL},
    {"fake-pattern", set_word, VM(fake_pattern), "random", "random, sequential or hot", 0, 0,
     WORDS("random", "sequential", "hot")},
    {"fake-frames", set_number, VM(fake_frames), "100", "frames a second", 0, 1000000, NULL},
};

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

/* What libconfuse's callbacks work on while config_load() runs: they have no argument of ours. */
struct parse {
    struct config *cfg;
    const char *path;
    struct error *err;
    bool failed;             /* err is set: the first error is the one to report */
    bool ended;              /* END_KEY was seen at the top level */
    const struct vm_config *base; /* of a kept section: where it says nothing; NULL: the defaults */
    const cfg_t *section;    /* being read ... */
    struct vm_config *vm;    /* ... into this */
    int top_line[COUNT(top_keys)], vm_line[COUNT(vm_keys)]; /* where it was set; 0 = not */
    int args_line, disks_line;
};

static _Thread_local struct parse *parse;

/* line 0: the place is the file.  vm: NULL at the top level. */
__attribute__((format(printf, 3, 4))) static int fail(int line, const struct vm_config *vm,
                                                      const char *fmt, ...)
{
    char text[400];
    va_list ap;

    if (parse->failed)
        return -1;
    parse->failed = true;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return line ? error_set(parse->err, "%s:%d: %s%s%s%s", parse->path, line, vm && vm != parse->cfg->others ? "vm " : "",
                            vm ? vm->name : "", vm ? ": " : "", text)
                : error_set(parse->err, "%s: %s", parse->path, text);
}

static void on_syntax_error(cfg_t *section, const char *fmt, va_list ap)
{
    static const char *const hints[][2] = {
        {"no such option", "remusd.conf(5) lists the keys"},
        {"found duplicate title", "each VM needs a name of its own"},
    };
    char text[300];

    vsnprintf(text, sizeof(text), fmt, ap);
    if (strcmp(text, "no such option '" END_KEY "'") == 0) {
        fail(section->line, NULL, "%s%.80s: the section is not closed, its '}' is missing", cfg_title(section) ? "vm " : "",
             cfg_title(section) ? cfg_title(section) : "others");
        return;
    }
    for (size_t i = 0; i < COUNT(hints); i++)
        if (strncmp(text, hints[i][0], strlen(hints[i][0])) == 0) {
            fail(section->line, NULL, "%s; %s", text, hints[i][1]);
            return;
        }
    fail(section->line, NULL, "%s", text);
}

static bool has_control_character(const char *s)
{
    for (; *s; s++)
        if (iscntrl((unsigned char)*s))
            return true;
    return false;
}

static int set_key(const struct key *key, void *base, const struct vm_config *vm, int *set_at,
                   int line, const char *value)
{
    if (*set_at)
        return fail(line, vm, "%s is already set in line %d; remove one", key->name, *set_at);
    *set_at = line;
    if (has_control_character(value))
        return fail(line, vm, "%s: has a control character; is a quote missing?",
                    key->name);
    if (key->set(key, (char *)base + key->offset, value) == 0)
        return 0;
    if (key->max)
        return fail(line, vm, "%s = \"%.80s\": want a number of %s from %" PRIu64 " to %" PRIu64,
                    key->name, value, key->want, key->min, key->max);
    return fail(line, vm, "%s = \"%.80s\": want %s", key->name, value, key->want);
}

static int set_defaults(const struct key *keys, size_t count, void *base)
{
    for (size_t i = 0; i < count; i++) {
        void *field = (char *)base + keys[i].offset;

        if ((keys[i].def ? keys[i].set(&keys[i], field, keys[i].def) : take_string(field, "")) < 0)
            return -1;
    }
    return 0;
}

bool config_good_name(const char *name)
{
    size_t len = strlen(name);

    if (len < 1 || len > CONFIG_NAME_MAX || *name == '.' || *name == '-')
        return false;
    for (; *name; name++)
        if (!isalnum((unsigned char)*name) && !strchr("-_.", *name))
            return false;
    return true;
}

/* Of vm_keys, one that only a section of its own can have. */
static bool is_own_key(const char *name)
{
    static const char *const own[] = {"backup", "protect", "platform", "memory", "tap", "mac", "guest-bridge",
                                      "vif", "nfqueue", "kernel", "initrd", "append"};

    for (size_t i = 0; i < COUNT(own); i++)
        if (strcmp(own[i], name) == 0)
            return true;
    return false;
}

static bool is_string(const struct key *key)
{
    return key->set != set_number && key->set != set_mib && key->set != set_bool && key->set != set_enum;
}

/* Of all keys that `others` has, `from` into `to`. */
static int copy_settings(struct vm_config *to, const struct vm_config *from)
{
    for (size_t i = 0; i < COUNT(vm_keys); i++) {
        const struct key *key = &vm_keys[i];
        void *field = (char *)to + key->offset;
        const void *value = (const char *)from + key->offset;

        if (is_own_key(key->name))
            continue;
        if (is_string(key) && take_string(field, *(char *const *)value) < 0)
            return -1;
        if (!is_string(key))
            memcpy(field, value, key->set == set_mib ? sizeof(uint64_t) : key->set == set_bool ? sizeof(bool) : sizeof(int));
    }
    return 0;
}

static int begin_section(cfg_t *section, struct vm_config *vm)
{
    if (set_defaults(vm_keys, COUNT(vm_keys), vm) < 0 || (parse->base && copy_settings(vm, parse->base) < 0))
        return fail(section->line, NULL, "out of memory");
    memset(parse->vm_line, 0, sizeof(parse->vm_line));
    parse->args_line = parse->disks_line = 0;
    parse->section = section;
    parse->vm = vm;
    return 0;
}

/* It describes no machine; platform xen is the one of which the fewest keys are missing then. */
static int begin_others(cfg_t *section)
{
    struct config *cfg = parse->cfg;

    if (cfg->others)
        return fail(section->line, NULL, "there is an others section already; remove one");
    cfg->others = calloc(1, sizeof(*cfg->others));
    if (!cfg->others || begin_section(section, cfg->others) < 0 || take_string(&cfg->others->platform, "xen") < 0)
        return fail(section->line, NULL, "out of memory");
    snprintf(cfg->others->name, sizeof(cfg->others->name), "others");
    return 0;
}

static int begin_vm(cfg_t *section)
{
    struct config *cfg = parse->cfg;
    struct vm_config *vms, *vm;

    if (!config_good_name(cfg_title(section)))
        return fail(section->line, NULL,
                    "vm \"%.80s\": want a name of at most %d letters, digits, '-', '_' and '.', "
                    "the first one no '-' or '.'",
                    cfg_title(section), CONFIG_NAME_MAX);
    vms = realloc(cfg->vms, (cfg->vm_count + 1) * sizeof(*vms));
    if (!vms)
        return fail(section->line, NULL, "out of memory");
    cfg->vms = vms;
    vm = &vms[cfg->vm_count++];
    memset(vm, 0, sizeof(*vm));
    snprintf(vm->name, sizeof(vm->name), "%s", cfg_title(section));
    return begin_section(section, vm);
}

static struct vm_config *vm_of(cfg_t *section)
{
    if (parse->section != section && (cfg_title(section) ? begin_vm(section) : begin_others(section)) < 0)
        return NULL;
    return parse->vm;
}

/* Has the section a key that belongs in the other kind? */
static int check_place(cfg_t *section, const char *name)
{
    bool others = parse->vm == parse->cfg->others;

    if (others && (is_own_key(name) || strcmp(name, "disks") == 0 || strcmp(name, "qemu-args") == 0))
        return fail(section->line, NULL, "others: %s is of one VM: it belongs in a section vm NAME", name);
    if (!others && strcmp(name, "image-dir") == 0)
        return fail(section->line, parse->vm, "image-dir belongs in the section others; here disks = {...} names the images");
    return 0;
}

static int on_top_key(cfg_t *section, cfg_opt_t *opt)
{
    for (size_t i = 0; i < COUNT(top_keys); i++)
        if (strcmp(opt->name, top_keys[i].name) == 0)
            return set_key(&top_keys[i], parse->cfg, NULL, &parse->top_line[i], section->line,
                           cfg_opt_getnstr(opt, 0));
    return -1;
}

static int on_vm_key(cfg_t *section, cfg_opt_t *opt)
{
    struct vm_config *vm = vm_of(section);

    if (!vm || check_place(section, opt->name) < 0)
        return -1;
    for (size_t i = 0; i < COUNT(vm_keys); i++)
        if (strcmp(opt->name, vm_keys[i].name) == 0)
            return set_key(&vm_keys[i], vm, vm, &parse->vm_line[i], section->line,
                           cfg_opt_getnstr(opt, 0));
    return -1;
}

/* Of a list; called once for each element, unlike a list's validcb. */
static int list_element(cfg_t *section, cfg_opt_t *opt, const char *value, void *result, int *set_at)
{
    struct vm_config *vm = vm_of(section);

    if (!vm || check_place(section, opt->name) < 0)
        return -1;
    if (cfg_opt_size(opt) == 1 && *set_at)
        return fail(section->line, vm, "%s is already set in line %d; remove one", opt->name, *set_at);
    *set_at = section->line;
    *(const char **)result = value;
    if (has_control_character(value))
        return fail(section->line, vm, "%s: has a control character; is a quote missing?", opt->name);
    return 0;
}

static int on_qemu_arg(cfg_t *section, cfg_opt_t *opt, const char *value, void *result)
{
    return list_element(section, opt, value, result, &parse->args_line);
}

/* What is kept of an image lies beside it, which /dev does not do for long. */
static int on_disk(cfg_t *section, cfg_opt_t *opt, const char *value, void *result)
{
    if (list_element(section, opt, value, result, &parse->disks_line) < 0)
        return -1;
    if (cfg_opt_size(opt) > CONFIG_DISKS_MAX)
        return fail(section->line, vm_of(section), "disks: want at most %d", CONFIG_DISKS_MAX);
    if (value[0] != '/' || strncmp(value, "/dev/", 5) == 0)
        return fail(section->line, vm_of(section),
                    "disks = \"%.80s\": want the absolute path of an image; for a block device a symbolic link "
                    "to it in a directory that lasts", value);
    return 0;
}

static int line_of(const char *name, int otherwise)
{
    for (size_t i = 0; i < COUNT(vm_keys); i++)
        if (strcmp(name, vm_keys[i].name) == 0 && parse->vm_line[i])
            return parse->vm_line[i];
    return otherwise;
}

/* What one key alone cannot tell. */
static int check_vm(const struct vm_config *vm, int end)
{
    bool xen = strcmp(vm->platform, "xen") == 0;

    if (vm->timeout_ms <= 2 * vm->heartbeat_ms)
        return fail(line_of("timeout", line_of("heartbeat", end)), vm,
                    "timeout = %u: want more than twice the heartbeat of %u ms, or one lost "
                    "heartbeat looks like a lost host",
                    vm->timeout_ms, vm->heartbeat_ms);
    if (vm->protect && !*vm->backup)
        return fail(line_of("protect", end), vm,
                    "protect = yes needs backup = HOST:PORT, where remus-backupd listens");
    if (*vm->tap && !*vm->mac && !xen)
        return fail(line_of("tap", end), vm,
                    "tap needs mac, the guest's address, to announce it after a takeover");
    if (*vm->vif && (!xen || *vm->tap))
        return fail(line_of("vif", end), vm, "vif is for platform = xen, and goes without tap");
    if (*vm->services && !*vm->tap && !xen)
        return fail(line_of("services", end), vm, "services needs tap: without a network there are none");
    if (vm->netbuf != NETBUF_AUTO && (vm->netbuf == NETBUF_FRAMES ? !*vm->tap : *vm->tap || !xen))
        return fail(line_of("netbuf", end), vm,
                    "netbuf = frames needs tap; nfqueue and plug are for platform = xen, and go without tap");
    if (vm->netbuf == NETBUF_PLUG && *vm->services)
        return fail(line_of("services", line_of("netbuf", end)), vm, "services does not go with netbuf = plug, which cannot tell connections apart");
    if (*vm->guest_bridge && !xen)
        return fail(line_of("guest-bridge", end), vm, "guest-bridge is for platform = xen");
    if (*vm->tap && xen && (strlen(vm->tap) > CONFIG_TAPLEN_MAX - 2 || strchr(vm->tap, ':')))
        return fail(line_of("tap", end), vm, "tap: want an interface name of at most %d octets, TAP-g is one too",
                    CONFIG_TAPLEN_MAX - 2);
    if (strcmp(vm->platform, "qemu") == 0 && !*vm->kernel)
        return fail(end, vm, "kernel is missing: platform = qemu boots a Linux kernel");
    return 0;
}

/* Under two names, too, where it exists already: the backup may be about to make it. */
static bool same_image(const char *a, const char *b)
{
    struct stat x, y;

    if (strcmp(a, b) == 0)
        return true;
    if (stat(a, &x) < 0 || stat(b, &y) < 0)
        return false;
    return S_ISBLK(x.st_mode) && S_ISBLK(y.st_mode) ? x.st_rdev == y.st_rdev : x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Two guests on one image or tap: the second one would ruin it for both. */
static int check_shared(const struct vm_config *vm, int end)
{
    const struct config *cfg = parse->cfg;

    for (const struct vm_config *other = cfg->vms; other < cfg->vms + cfg->vm_count; other++) {
        if (other != vm && *vm->tap && strcmp(vm->tap, other->tap) == 0)
            return fail(line_of("tap", end), vm, "tap = \"%.80s\" is vm %s's already; each VM needs its own", vm->tap, other->name);
        for (unsigned i = 0; i < vm->disk_count; i++)
            for (unsigned k = 0; k < (other == vm ? i : other->disk_count); k++)
                if (same_image(vm->disks[i], other->disks[k]))
                    return fail(parse->disks_line, vm, "disks = \"%.80s\" is vm %s's already, as \"%.80s\"; each disk needs an image "
                                "of its own", vm->disks[i], other->name, other->disks[k]);
        if (other == vm)
            break;
    }
    return 0;
}

/* NULL without memory. */
static char **copy_list(cfg_t *section, const char *name)
{
    unsigned count = cfg_size(section, name);
    char **list = calloc(count + 1, sizeof(*list));

    for (unsigned i = 0; list && i < count; i++) {
        list[i] = strdup(cfg_getnstr(section, name, i));
        if (!list[i])
            break;
    }
    return list;
}

static int end_vm(cfg_t *top, cfg_opt_t *opt)
{
    cfg_t *section = cfg_opt_getnsec(opt, cfg_opt_size(opt) - 1);
    struct vm_config *vm = vm_of(section);

    if (!vm)
        return -1;
    vm->qemu_args = copy_list(section, "qemu-args");
    vm->disks = copy_list(section, "disks");
    vm->disk_count = cfg_size(section, "disks");
    parse->section = NULL;
    if (!vm->qemu_args || !vm->disks)
        return fail(top->line, vm, "out of memory");
    if (strcmp(vm->platform, "xen") == 0 && line_of("memory", 0) == 0)
        vm->memory_bytes = 0;
    return check_vm(vm, top->line) < 0 ? -1 : check_shared(vm, top->line);
}

/* The whole file as text with END_KEY behind it.  Closes f, which may be NULL. */
static char *read_file(FILE *f, const char *path, struct error *err)
{
    static const char end[] = "\n" END_KEY " = \"\"\n";
    char *text = f ? malloc(FILE_MAX + sizeof(end)) : NULL;
    size_t len = 0;

    if (!text) {
        error_set(err, "%s: %s", path, strerror(errno));
        goto fail;
    }
    len = fread(text, 1, FILE_MAX + 1, f);
    if (ferror(f)) {
        error_set(err, "%s: %s", path, strerror(errno));
        goto fail;
    }
    if (len > FILE_MAX) {
        error_set(err, "%s: larger than 1 MiB, not a configuration file", path);
        goto fail;
    }
    text[len] = '\0';
    if (strlen(text) != len) {
        error_set(err, "%s: has a NUL octet, not a text file", path);
        goto fail;
    }
    strcpy(text + len, len && text[len - 1] == '\n' ? end + 1 : end);
    fclose(f);
    return text;
fail:
    if (f)
        fclose(f);
    free(text);
    return NULL;
}

static int on_end(cfg_t *top, cfg_opt_t *opt)
{
    (void)opt;
    if (parse->ended)
        return fail(top->line, NULL, "no such option '" END_KEY "'");
    parse->ended = true;
    return 0;
}

static int parse_text(const char *text)
{
    cfg_opt_t vm_opts[COUNT(vm_keys) + 3], opts[COUNT(top_keys) + 4];
    cfg_t *conf;
    size_t i;
    int rc;

    for (i = 0; i < COUNT(vm_keys); i++) {
        vm_opts[i] = (cfg_opt_t)CFG_STR(vm_keys[i].name, NULL, CFGF_NONE);
        vm_opts[i].validcb = on_vm_key;
    }
    vm_opts[i] = (cfg_opt_t)CFG_STR_LIST("qemu-args", NULL, CFGF_NONE);
    vm_opts[i].parsecb = on_qemu_arg;
    vm_opts[i + 1] = (cfg_opt_t)CFG_STR_LIST("disks", NULL, CFGF_NONE);
    vm_opts[i + 1].parsecb = on_disk;
    vm_opts[i + 2] = (cfg_opt_t)CFG_END();
    for (i = 0; i < COUNT(top_keys); i++) {
        opts[i] = (cfg_opt_t)CFG_STR(top_keys[i].name, NULL, CFGF_NONE);
        opts[i].validcb = on_top_key;
    }
    opts[i] = (cfg_opt_t)CFG_SEC("vm", vm_opts, CFGF_MULTI | CFGF_TITLE | CFGF_NO_TITLE_DUPES);
    opts[i].validcb = end_vm;
    opts[i + 1] = (cfg_opt_t)CFG_SEC("others", vm_opts, CFGF_NODEFAULT);
    opts[i + 1].validcb = end_vm;
    opts[i + 2] = (cfg_opt_t)CFG_STR(END_KEY, NULL, CFGF_NONE);
    opts[i + 2].validcb = on_end;
    opts[i + 3] = (cfg_opt_t)CFG_END();

    conf = cfg_init(opts, CFGF_NONE);
    if (!conf)
        return fail(0, NULL, "out of memory");
    cfg_set_error_function(conf, on_syntax_error);
    rc = cfg_parse_buf(conf, text);
    if ((rc != CFG_SUCCESS || !parse->ended) && !parse->failed)
        fail(conf->line, NULL, "a comment or a string is not closed");
    cfg_free(conf);
    return parse->failed ? -1 : 0;
}

static int load(struct config *cfg, FILE *f, const char *path, const struct vm_config *base, const char *run_dir, struct error *err)
{
    struct parse state = {.cfg = cfg, .path = path, .err = err, .base = base};
    cleanup_free char *text = NULL;
    int rc = -1;

    memset(cfg, 0, sizeof(*cfg));
    text = read_file(f, path, err);
    if (!text)
        return -1;
    parse = &state;
    if (set_defaults(top_keys, COUNT(top_keys), cfg) < 0)
        fail(0, NULL, "out of memory");
    else
        rc = parse_text(text);
    for (size_t i = 0; rc == 0 && i < cfg->vm_count; i++)
        if (take_string(&cfg->vms[i].run_dir, run_dir ? run_dir : cfg->run_dir) < 0)
            rc = fail(0, NULL, "out of memory");
    parse = NULL;
    if (rc < 0)
        config_free(cfg);
    return rc;
}

int config_load(struct config *cfg, const char *path, struct error *err)
{
    FILE *f = fopen(path, "re");

    if (!f && errno == ENOENT) {
        memset(cfg, 0, sizeof(*cfg));
        return error_set(err, "%s: there is no such file: write it as remusd.conf(5) says, or name another one with -c", path);
    }
    return load(cfg, f, path, NULL, NULL, err);
}

static void free_strings(const struct key *keys, size_t count, void *base)
{
    for (size_t i = 0; i < count; i++)
        if (is_string(&keys[i]))
            free(*(char **)((char *)base + keys[i].offset));
}

static void free_list(char **list)
{
    for (char **text = list; text && *text; text++)
        free(*text);
    free(list);
}

static void free_vm(struct vm_config *vm)
{
    free_strings(vm_keys, COUNT(vm_keys), vm);
    free(vm->run_dir);
    free_list(vm->qemu_args);
    free_list(vm->disks);
}

void config_free(struct config *cfg)
{
    for (size_t i = 0; i < cfg->vm_count; i++)
        free_vm(&cfg->vms[i]);
    free(cfg->vms);
    config_free_section(cfg->others);
    free_strings(top_keys, COUNT(top_keys), cfg);
    memset(cfg, 0, sizeof(*cfg));
}

struct vm_config *config_load_section(const struct config *cfg, const char *path, const char *text, struct error *err)
{
    struct vm_config *vm = malloc(sizeof(*vm));
    struct config alone;

    if (!vm || load(&alone, text ? fmemopen((char *)text, strlen(text), "r") : fopen(path, "re"), path, cfg->others,
                    cfg->run_dir, err) < 0) {
        if (!vm)
            error_set(err, "out of memory");
        free(vm);
        return NULL;
    }
    if (alone.vm_count == 1) {
        *vm = alone.vms[0];
        alone.vm_count = 0;
    } else {
        error_set(err, "%s: has %zu sections, want one", path, alone.vm_count);
        free(vm);
        vm = NULL;
    }
    config_free(&alone);
    return vm;
}

void config_free_section(struct vm_config *vm)
{
    if (vm)
        free_vm(vm);
    free(vm);
}

const char *config_netbuf_name(enum netbuf netbuf)
{
    return netbuf_words[netbuf];
}

const struct vm_config *config_vm(const struct config *cfg, const char *name)
{
    for (size_t i = 0; i < cfg->vm_count; i++)
        if (strcmp(cfg->vms[i].name, name) == 0)
            return &cfg->vms[i];
    return NULL;
}

static bool good_host(const char *host, bool bracketed)
{
    char address[INET6_ADDRSTRLEN];
    struct in6_addr unused;
    size_t len = strcspn(host, "%");

    if (!bracketed)
        return *host && !host[strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                           "0123456789.-_")];
    if (len >= sizeof(address) || has_control_character(host) || strchr(host, ' '))
        return false;
    memcpy(address, host, len);
    address[len] = '\0';
    return inet_pton(AF_INET6, address, &unused) == 1;
}

int config_split_address(const char *address, char host[256], char port[16], struct error *err)
{
    const char *colon = strrchr(address, ':'), *from = address, *to = colon;
    bool bracketed = *address == '[';
    size_t digits;

    if (!colon)
        goto bad;
    if (bracketed) {
        from++;
        to--;
        if (to < from || *to != ']')
            goto bad;
    }
    digits = strspn(colon + 1, "0123456789");
    if (to - from > 255 || digits < 1 || digits > 5 || colon[1 + digits])
        goto bad;
    memcpy(host, from, (size_t)(to - from));
    host[to - from] = '\0';
    if (!good_host(host, bracketed) || atoi(colon + 1) < 1 || atoi(colon + 1) > 65535)
        goto bad;
    memcpy(port, colon + 1, digits + 1);
    return 0;
bad:
    return error_set(err, "\"%.80s\": want " ADDRESS_WANT, address);
}
