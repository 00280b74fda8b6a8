/* SPDX-License-Identifier: GPL-2.0-or-later */
#define XXH_INLINE_ALL
#include <assert.h>
#include <inttypes.h>
#include <string.h>
#include <xxhash.h>

#include "protocol.h"
#include "wire.h"

/* Fixed parts of the bodies, in octets, as the specification draws them. */
#define HELLO_FIXED 68
#define WELCOME_LEN 20
#define END_LEN 24
#define NOTICE_FIXED 2
#define DISK_END_LEN 24
#define HELLO_DISK 16
#define COMPARED_FIXED 8
#define PROBE_LEN 16
#define COMPARED_RANGE 16

_Static_assert(2 + 2 + 4 + 8 + 8 == PROTO_HEADER_LEN, "header as drawn");
_Static_assert(8 + 2 + 2 + 8 + 8 + 8 + 8 + 4 + 4 + 4 + 4 + 8 == HELLO_FIXED, "HELLO as drawn");
_Static_assert(HELLO_FIXED + sizeof(((struct proto_hello *)0)->vm) + sizeof(((struct proto_hello *)0)->platform) + 256 + 1 +
                   CONFIG_DISKS_MAX * HELLO_DISK + 18 + 3 * (CONFIG_TAPLEN_MAX + 1) <= PROTO_SMALL_MAX,
               "HELLO fits");
_Static_assert(2 * sizeof(((struct proto_lack *)0)->what) <= PROTO_SMALL_MAX, "LACK fits");
_Static_assert(COMPARED_FIXED + COMPARED_RANGES * COMPARED_RANGE <= PROTO_SMALL_MAX, "COMPARED fits");

static const char *const type_names[PROTO_TYPE_MAX + 1] = {
    [PROTO_HELLO] = "HELLO",         [PROTO_WELCOME] = "WELCOME", [PROTO_REFUSE] = "REFUSE",
    [PROTO_HEARTBEAT] = "HEARTBEAT", [PROTO_PAGES] = "PAGES",     [PROTO_STATE] = "STATE",
    [PROTO_NET] = "NET",             [PROTO_END] = "END",         [PROTO_ACK] = "ACK",
    [PROTO_GOODBYE] = "GOODBYE",     [PROTO_HANDOVER] = "HANDOVER",
    [PROTO_ACTIVATED] = "ACTIVATED", [PROTO_DISK] = "DISK",       [PROTO_DISK_END] = "DISK_END",
    [PROTO_DISKS] = "DISKS",         [PROTO_COMPARED] = "COMPARED", [PROTO_MACHINE] = "MACHINE",
    [PROTO_BLOCKS] = "BLOCKS",     [PROTO_PROBE] = "PROBE",     [PROTO_LACK] = "LACK",
};

const char *proto_type_name(unsigned type)
{
    return type <= PROTO_TYPE_MAX && type_names[type] ? type_names[type] : "unknown";
}

static uint16_t header_check(const uint8_t header[PROTO_HEADER_LEN])
{
    uint8_t covered[PROTO_CHECKED];

    memcpy(covered, header, sizeof(covered));
    covered[2] = covered[3] = 0;
    return (uint16_t)XXH3_64bits(covered, sizeof(covered));
}

void proto_put_header(uint8_t out[PROTO_HEADER_LEN], const struct proto_header *h)
{
    struct wire_writer w = wire_writer(out, PROTO_HEADER_LEN);

    wire_put_uint(&w, h->type, 2);
    wire_put_uint(&w, 0, 2);
    wire_put_uint(&w, h->length, 4);
    wire_put_uint(&w, h->epoch, 8);
    wire_put_uint(&w, h->checksum, 8);
    w = wire_writer(out + 2, 2);
    wire_put_uint(&w, header_check(out), 2);
}

static uint32_t longest(unsigned type)
{
    if (type == PROTO_PAGES || type == PROTO_STATE || type == PROTO_NET || type == PROTO_DISK ||
        type == PROTO_MACHINE || type == PROTO_BLOCKS)
        return PROTO_BODY_MAX;
    return type == PROTO_PROBE ? PROTO_PROBE_MAX : PROTO_SMALL_MAX;
}

int proto_get_header(struct proto_header *h, const uint8_t in[PROTO_HEADER_LEN], struct error *err)
{
    struct wire_reader r = wire_reader(in, PROTO_HEADER_LEN);
    uint16_t check;

    h->type = wire_get_u16(&r);
    check = wire_get_u16(&r);
    h->length = wire_get_u32(&r);
    h->epoch = wire_get_u64(&r);
    h->checksum = wire_get_u64(&r);
    if (h->type == 0 || h->type > PROTO_TYPE_MAX)
        return error_set(err, "record of unknown type %u: is the peer a remusd of this version?",
                         h->type);
    if (h->length > longest(h->type))
        return error_set(err, "%s record of %" PRIu32 " octets is longer than allowed",
                         proto_type_name(h->type), h->length);
    if (check != header_check(in))
        return error_set(err, "header of a %s record: check wrong, the stream is corrupt",
                         proto_type_name(h->type));
    return 0;
}

/* A text from outside goes into logs and terminals. */
static bool unprintable(unsigned char c)
{
    return c < ' ' || c == 127;
}

static bool printable(const char *s)
{
    while (*s && !unprintable((unsigned char)*s))
        s++;
    return !*s;
}

size_t proto_put_hello(uint8_t *out, const struct proto_hello *m)
{
    struct wire_writer w = wire_writer(out, PROTO_SMALL_MAX);

    wire_put_uint(&w, PROTO_MAGIC, 8);
    wire_put_uint(&w, m->version_min, 2);
    wire_put_uint(&w, m->version_max, 2);
    wire_put_uint(&w, m->features, 8);
    wire_put_uint(&w, m->required, 8);
    wire_put_uint(&w, m->session, 8);
    wire_put_uint(&w, m->pages, 8);
    wire_put_uint(&w, m->page_size, 4);
    wire_put_uint(&w, m->heartbeat_ms, 4);
    wire_put_uint(&w, m->timeout_ms, 4);
    wire_put_uint(&w, m->flags, 4);
    wire_put_uint(&w, 0, 8);
    wire_put_string(&w, m->vm);
    wire_put_string(&w, m->platform);
    wire_put_string(&w, m->profile);
    if (m->features & FEATURE_DISKS) {
        wire_put_uint(&w, m->disk_count, 1);
        for (unsigned i = 0; i < m->disk_count; i++) {
            wire_put_uint(&w, m->disks[i].size, 8);
            wire_put_uint(&w, m->disks[i].id, 8);
        }
    }
    if (m->flags & HELLO_PREFLIGHT) {
        wire_put_string(&w, m->mac);
        wire_put_string(&w, m->guest_bridge);
        wire_put_string(&w, m->vif);
        wire_put_string(&w, m->netbuf);
    }
    assert(!w.failed);
    return (size_t)(w.at - out);
}

int proto_get_hello(struct proto_hello *m, const uint8_t *in, size_t len, struct error *err)
{
    struct wire_reader r = wire_reader(in, len);

    if (wire_get_u64(&r) != PROTO_MAGIC)
        return error_set(err, "HELLO without the magic number: the peer is no remusd");
    m->version_min = wire_get_u16(&r);
    m->version_max = wire_get_u16(&r);
    m->features = wire_get_u64(&r);
    m->required = wire_get_u64(&r);
    m->session = wire_get_u64(&r);
    m->pages = wire_get_u64(&r);
    m->page_size = wire_get_u32(&r);
    m->heartbeat_ms = wire_get_u32(&r);
    m->timeout_ms = wire_get_u32(&r);
    m->flags = wire_get_u32(&r);
    wire_get(&r, 8); /* reserved */
    wire_get_string(&r, m->vm, sizeof(m->vm));
    wire_get_string(&r, m->platform, sizeof(m->platform));
    wire_get_string(&r, m->profile, sizeof(m->profile));
    m->disk_count = m->features & FEATURE_DISKS ? wire_get_u8(&r) : 0;
    if (m->disk_count > CONFIG_DISKS_MAX)
        return error_set(err, "HELLO with %u disks: at most %d", m->disk_count, CONFIG_DISKS_MAX);
    for (unsigned i = 0; i < m->disk_count; i++) {
        m->disks[i].size = wire_get_u64(&r);
        m->disks[i].id = wire_get_u64(&r);
        if (!r.failed && (m->disks[i].size == 0 || m->disks[i].id == 0))
            return error_set(err, "HELLO with a disk of no size or no id");
    }
    m->mac[0] = m->guest_bridge[0] = m->vif[0] = m->netbuf[0] = '\0';
    if (m->flags & HELLO_PREFLIGHT) {
        wire_get_string(&r, m->mac, sizeof(m->mac));
        wire_get_string(&r, m->guest_bridge, sizeof(m->guest_bridge));
        wire_get_string(&r, m->vif, sizeof(m->vif));
        wire_get_string(&r, m->netbuf, sizeof(m->netbuf));
    }
    /* A later version may append fields: what is left over is ignored. */
    if (r.failed)
        return error_set(err, "HELLO of %zu octets ends too early or has a string too long", len);
    if (!printable(m->vm) || !printable(m->platform) || !printable(m->profile) || !printable(m->mac) ||
        !printable(m->guest_bridge) || !printable(m->vif) || !printable(m->netbuf))
        return error_set(err, "HELLO with control characters in a name");
    return 0;
}

size_t proto_put_welcome(uint8_t *out, const struct proto_welcome *m)
{
    struct wire_writer w = wire_writer(out, PROTO_SMALL_MAX);

    wire_put_uint(&w, m->version, 2);
    wire_put_uint(&w, 0, 2);
    wire_put_uint(&w, m->features, 8);
    wire_put_uint(&w, m->committed, 8);
    return (size_t)(w.at - out);
}

int proto_get_welcome(struct proto_welcome *m, const uint8_t *in, size_t len, struct error *err)
{
    struct wire_reader r = wire_reader(in, len);

    _Static_assert(2 + 2 + 8 + 8 == WELCOME_LEN, "WELCOME as drawn");
    m->version = wire_get_u16(&r);
    wire_get_u16(&r);
    m->features = wire_get_u64(&r);
    m->committed = wire_get_u64(&r);
    if (!wire_reader_ok(&r))
        return error_set(err, "WELCOME of %zu octets, must have %d", len, WELCOME_LEN);
    if (m->version < PROTO_VERSION_MIN || m->version > PROTO_VERSION_MAX)
        return error_set(err, "the backup chose protocol version %u, which was not offered",
                         m->version);
    return 0;
}

size_t proto_put_end(uint8_t *out, const struct proto_end *m)
{
    struct wire_writer w = wire_writer(out, PROTO_SMALL_MAX);

    wire_put_uint(&w, m->pages, 8);
    wire_put_uint(&w, m->state_length, 4);
    wire_put_uint(&w, m->net_length, 4);
    wire_put_uint(&w, m->digest, 8);
    return (size_t)(w.at - out);
}

int proto_get_end(struct proto_end *m, const uint8_t *in, size_t len, struct error *err)
{
    struct wire_reader r = wire_reader(in, len);

    _Static_assert(8 + 4 + 4 + 8 == END_LEN, "END as drawn");
    m->pages = wire_get_u64(&r);
    m->state_length = wire_get_u32(&r);
    m->net_length = wire_get_u32(&r);
    m->digest = wire_get_u64(&r);
    if (!wire_reader_ok(&r))
        return error_set(err, "END of %zu octets, must have %d", len, END_LEN);
    return 0;
}

uint64_t proto_disk_digest(uint64_t digest, uint64_t checksum)
{
    uint8_t both[16];
    struct wire_writer w = wire_writer(both, sizeof(both));

    wire_put_uint(&w, digest, 8);
    wire_put_uint(&w, checksum, 8);
    return XXH3_64bits(both, sizeof(both));
}

size_t proto_put_disk_end(uint8_t *out, const struct proto_disk_end *m)
{
    struct wire_writer w = wire_writer(out, PROTO_SMALL_MAX);

    wire_put_uint(&w, m->generation, 8);
    wire_put_uint(&w, m->length, 8);
    wire_put_uint(&w, m->digest, 8);
    return (size_t)(w.at - out);
}

int proto_get_disk_end(struct proto_disk_end *m, const uint8_t *in, size_t len, struct error *err)
{
    struct wire_reader r = wire_reader(in, len);

    _Static_assert(8 + 8 + 8 == DISK_END_LEN, "DISK_END as drawn");
    m->generation = wire_get_u64(&r);
    m->length = wire_get_u64(&r);
    m->digest = wire_get_u64(&r);
    if (!wire_reader_ok(&r) || m->generation == 0)
        return error_set(err, "DISK_END of %zu octets, must have %d, or of generation 0", len, DISK_END_LEN);
    return 0;
}

size_t proto_put_disks(uint8_t *out, const uint64_t *generations, unsigned count)
{
    struct wire_writer w = wire_writer(out, PROTO_SMALL_MAX);

    for (unsigned i = 0; i < count; i++)
        wire_put_uint(&w, generations[i], 8);
    return (size_t)(w.at - out);
}

int proto_get_disks(uint64_t *generations, unsigned count, const uint8_t *in, size_t len,
                    struct error *err)
{
    struct wire_reader r = wire_reader(in, len);

    for (unsigned i = 0; i < count; i++)
        generations[i] = wire_get_u64(&r);
    if (!wire_reader_ok(&r))
        return error_set(err, "DISKS of %zu octets, must have 8 for each of %u disks", len, count);
    return 0;
}

size_t proto_put_compared(uint8_t *out, const struct proto_compared *m)
{
    struct wire_writer w = wire_writer(out, PROTO_SMALL_MAX);

    wire_put_uint(&w, m->octets, 8);
    for (unsigned i = 0; i < m->count; i++) {
        wire_put_uint(&w, m->differ[i].disk, 4);
        wire_put_uint(&w, m->differ[i].length, 4);
        wire_put_uint(&w, m->differ[i].offset, 8);
    }
    return (size_t)(w.at - out);
}

int proto_get_compared(struct proto_compared *m, const uint8_t *in, size_t len, struct error *err)
{
    struct wire_reader r = wire_reader(in, len);

    if (len < COMPARED_FIXED || len % COMPARED_RANGE != COMPARED_FIXED ||
        len > COMPARED_FIXED + COMPARED_RANGES * COMPARED_RANGE)
        return error_set(err, "COMPARED of %zu octets: must have %d, and %d for each range", len, COMPARED_FIXED,
                         COMPARED_RANGE);
    m->octets = wire_get_u64(&r);
    m->count = (unsigned)((len - COMPARED_FIXED) / COMPARED_RANGE);
    for (unsigned i = 0; i < m->count; i++) {
        m->differ[i].disk = wire_get_u32(&r);
        m->differ[i].length = wire_get_u32(&r);
        m->differ[i].offset = wire_get_u64(&r);
    }
    return 0;
}

size_t proto_put_block(uint8_t *out, const struct proto_block *m)
{
    struct wire_writer w = wire_writer(out, PROTO_BLOCK_LEN);

    _Static_assert(8 + 8 + 4 + 4 + 8 == PROTO_BLOCK_LEN, "BLOCKS as drawn");
    wire_put_uint(&w, m->pfn, 8);
    wire_put_uint(&w, m->generation, 8);
    wire_put_uint(&w, m->disk, 4);
    wire_put_uint(&w, m->block, 4);
    wire_put_uint(&w, m->hash, 8);
    return PROTO_BLOCK_LEN;
}

void proto_get_block(struct proto_block *m, const uint8_t in[PROTO_BLOCK_LEN])
{
    struct wire_reader r = wire_reader(in, PROTO_BLOCK_LEN);

    m->pfn = wire_get_u64(&r);
    m->generation = wire_get_u64(&r);
    m->disk = wire_get_u32(&r);
    m->block = wire_get_u32(&r);
    m->hash = wire_get_u64(&r);
}

size_t proto_put_probe(uint8_t *out, const struct proto_probe *m)
{
    struct wire_writer w = wire_writer(out, PROTO_SMALL_MAX);

    wire_put_uint(&w, m->received, 8);
    wire_put_uint(&w, m->sent, 8);
    return (size_t)(w.at - out);
}

int proto_get_probe(struct proto_probe *m, const uint8_t *in, size_t len, struct error *err)
{
    struct wire_reader r = wire_reader(in, len);

    _Static_assert(8 + 8 == PROBE_LEN, "PROBE as drawn");
    m->received = wire_get_u64(&r);
    m->sent = wire_get_u64(&r);
    if (!wire_reader_ok(&r))
        return error_set(err, "PROBE of %zu octets, must have %d", len, PROBE_LEN);
    return 0;
}

static void put_cut_string(struct wire_writer *w, const char *text)
{
    char cut[256] = "";

    strncat(cut, text, sizeof(cut) - 1);
    wire_put_string(w, cut);
}

size_t proto_put_lack(uint8_t *out, const char *what, const char *remedy)
{
    struct wire_writer w = wire_writer(out, PROTO_SMALL_MAX);

    put_cut_string(&w, what);
    put_cut_string(&w, remedy);
    return (size_t)(w.at - out);
}

/* It goes into JSON too, which takes no half characters. */
static void make_ascii(char *text)
{
    for (; *text; text++)
        if (unprintable((unsigned char)*text) || (unsigned char)*text > 126)
            *text = '?';
}

int proto_get_lack(struct proto_lack *m, const uint8_t *in, size_t len, struct error *err)
{
    struct wire_reader r = wire_reader(in, len);

    wire_get_string(&r, m->what, sizeof(m->what));
    wire_get_string(&r, m->remedy, sizeof(m->remedy));
    if (!wire_reader_ok(&r))
        return error_set(err, "LACK of %zu octets is malformed", len);
    make_ascii(m->what);
    make_ascii(m->remedy);
    return 0;
}

size_t proto_put_notice(uint8_t *out, unsigned code, const char *text)
{
    struct wire_writer w = wire_writer(out, PROTO_SMALL_MAX);

    wire_put_uint(&w, code, 2);
    put_cut_string(&w, text);
    return (size_t)(w.at - out);
}

int proto_get_notice(struct proto_notice *m, const uint8_t *in, size_t len, struct error *err)
{
    struct wire_reader r = wire_reader(in, len);

    m->code = wire_get_u16(&r);
    wire_get_string(&r, m->text, sizeof(m->text));
    if (!wire_reader_ok(&r))
        return error_set(err, "notice of %zu octets is malformed (fixed part %d)", len,
                         NOTICE_FIXED);
    for (char *p = m->text; *p; p++)
        if (unprintable((unsigned char)*p))
            *p = '?';
    return 0;
}

unsigned proto_choose_version(const struct proto_hello *hello, struct error *err)
{
    unsigned v = hello->version_max < PROTO_VERSION_MAX ? hello->version_max : PROTO_VERSION_MAX;

    if (v < hello->version_min || v < PROTO_VERSION_MIN) {
        error_set(err,
                  "no common protocol version: the primary speaks %u to %u, this backup %d to %d; "
                  "install the same remusd on both hosts",
                  hello->version_min, hello->version_max, PROTO_VERSION_MIN, PROTO_VERSION_MAX);
        return 0;
    }
    return v;
}
