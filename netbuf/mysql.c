/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * MySQL's and MariaDB's protocol ("Client/Server Protocol" in MariaDB's knowledge base):
 *
 *     packet    := length[3] number[1] body     as long as bodies have 2^24-1 octets, one message
 *     stream    := greeting, answer with capabilities, what authentication needs, OK, exchange*
 *     exchange  := command, result*
 *     result    := OK | ERR | columns[1] column* EOF? row* (EOF | ERR)
 *                      the first EOF not with CLIENT_DEPRECATE_EOF; then the last one is an OK
 *
 * OK and EOF say whether a transaction is open behind them (SERVER_STATUS_IN_TRANS) and whether
 * another result follows.  A transaction that ended and another that began look the same to them,
 * so the commands are read, too: a statement whose first word shows that it commits nothing is
 * "plain".  What ends a transaction (PARSED_END):
 *   an OK or EOF behind which none is open
 *   every answer to a statement that is not plain (COMMIT AND CHAIN, BEGIN inside of one, CALL, DDL,
 *                              prepared statements of those), and every further result
 *   ERR: it may have rolled back everything
 *   any answer outside of a transaction, but the OK to a statement that began one
 */
#include <ctype.h>
#include <stdbool.h>
#include <string.h>
#include <strings.h>

#include "packet.h"
#include "parser.h"

#define KEPT 32u /* octets of a body that a decision may need */
#define LONGEST 0xffffffu
#define PENDING 16u /* commands of a pipeline */
#define PREPARED 32u

enum {
    CLIENT_MYSQL = 1, /* not set: MariaDB, with capabilities of its own */
    CLIENT_COMPRESS = 1 << 5,
    CLIENT_PROTOCOL_41 = 1 << 9,
    CLIENT_SSL = 1 << 11,
    CLIENT_DEPRECATE_EOF = 1 << 24,
    CLIENT_OPTIONAL_RESULTSET_METADATA = 1 << 25,
    CLIENT_ZSTD_COMPRESSION = 1 << 26,
    CLIENT_QUERY_ATTRIBUTES = 1 << 27,

    MARIADB_CACHE_METADATA = 1 << 4,
    MARIADB_KNOWN = 0x1f, /* what these bits change is nothing to us, or we follow it */

    STATUS_IN_TRANS = 1 << 0,
    STATUS_MORE_RESULTS = 1 << 3,
    STATUS_CURSOR_EXISTS = 1 << 6,
};

enum phase { GREETING, AUTHENTICATION, COMMANDS };

/* What answers a command; with PLAIN or BEGINS: see above. */
enum answer {
    RESULTS,       /* as in the grammar */
    ROWS_ONLY,     /* row* EOF */
    TEXT,          /* one packet without a form */
    PREPARED_ID,   /* identifier and numbers, definitions of parameters and columns */
    AUTHENTICATED, /* anything up to OK or ERR */
    ANSWERS = 7,
    PLAIN = 8,
    BEGINS = 16,
    PREPARES_PLAIN = 32,
};

enum result { FIRST, DEFINITIONS, DEFINITIONS_EOF, ROWS };
enum transaction { OUTSIDE, INSIDE, UNKNOWN };

struct side {
    uint32_t left; /* octets of the body that are still to come */
    uint32_t length;
    uint8_t have; /* octets of head that are there */
    bool judged;  /* what is left decides nothing more */
    bool more;    /* the packet before was of the greatest length: this one goes on */
    bool goes_on; /* it does */
    uint8_t head[4 + KEPT];
};

struct mysql {
    struct side server, client;
    uint32_t capabilities, mariadb; /* the server's; both sides' when `answered` */
    uint8_t phase;
    uint8_t lost; /* 0, or PARSED_ flags for ever */
    uint8_t transaction;
    bool answered;
    bool version_ended;

    uint8_t pending[PENDING]; /* commands not answered, oldest first */
    uint8_t pendings;
    uint8_t result;
    uint32_t definitions;     /* to come */
    uint32_t plain[PREPARED]; /* numbers of plain prepared statements, by their lowest bits */
};
_Static_assert(sizeof(struct mysql) <= PARSER_STATE_MAX, "fits into a flow");

static void mysql_init(void *state)
{
    *(struct mysql *)state = (struct mysql){0};
}

static uint32_t get_le(const uint8_t *p, unsigned octets)
{
    uint32_t v = 0;

    while (octets-- > 0)
        v = v << 8 | p[octets];
    return v;
}

static unsigned lose(struct mysql *m, uint8_t why)
{
    m->lost = PARSED_LOST | why;
    return m->lost;
}

static bool deprecates_eof(const struct mysql *m)
{
    return m->capabilities & CLIENT_DEPRECATE_EOF;
}

/* What the client says */

static bool is_word(const char *text, size_t len, const char *word)
{
    size_t n = strlen(word);

    return len >= n && strncasecmp(text, word, n) == 0 &&
           (len == n || !(isalnum((unsigned char)text[n]) || text[n] == '_' || text[n] == '$' ||
                          (unsigned char)text[n] >= 0x80));
}

static size_t blanks(const char *text, size_t len)
{
    size_t n = 0;

    while (n < len && (text[n] == ' ' || (text[n] >= '\t' && text[n] <= '\r')))
        n++;
    return n;
}

/* Moves behind `word` and the blanks after it. */
static bool skip_word(const char **text, size_t *len, const char *word)
{
    size_t n = strlen(word);

    if (!is_word(*text, *len, word))
        return false;
    n += blanks(*text + n, *len - n);
    *text += n;
    *len -= n;
    return true;
}

/* whole: nothing of the text is missing at its end. */
static uint8_t statement_class(const char *text, size_t len, bool whole)
{
    /* Reserved words, so what begins with them is no label of a block. */
    static const char *const plain[] = {"SELECT",  "INSERT", "UPDATE", "DELETE",
                                        "REPLACE", "WITH",   "RELEASE"};
    size_t n = blanks(text, len);

    text += n;
    len -= n;
    for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++)
        if (is_word(text, len, plain[i]))
            return PLAIN;
    if (skip_word(&text, &len, "SAVEPOINT"))
        return len > 0 && (isalpha((unsigned char)*text) || *text == '`' || *text == '_') ? PLAIN
                                                                                          : 0;
    if (skip_word(&text, &len, "ROLLBACK"))
        return is_word(text, len, "TO") ? PLAIN : 0;
    if (skip_word(&text, &len, "START"))
        return is_word(text, len, "TRANSACTION") ? BEGINS : 0;
    /* More than the word may be a block. */
    if (skip_word(&text, &len, "BEGIN")) {
        skip_word(&text, &len, "WORK");
        return whole && len == 0 ? BEGINS : 0;
    }
    return 0;
}

static uint8_t query_class(const struct mysql *m, const uint8_t *body, size_t kept, bool whole)
{
    if (m->capabilities & CLIENT_QUERY_ATTRIBUTES) {
        if (kept < 3 || body[1] != 0 || body[2] != 1)
            return 0;
        body += 2;
        kept -= 2;
    }
    return statement_class((const char *)body + 1, kept - 1, whole);
}

static uint8_t prepared_class(const struct mysql *m, const uint8_t *body, size_t kept)
{
    uint32_t number = kept >= 5 ? get_le(body + 1, 4) : 0;

    return number && m->plain[number % PREPARED] == number ? PLAIN : 0;
}

static unsigned command(struct mysql *m, const uint8_t *body, size_t kept, bool whole)
{
    enum {
        QUIT = 1,
        INIT_DB,
        QUERY,
        FIELD_LIST,
        REFRESH = 7,
        SHUTDOWN,
        STATISTICS,
        PROCESS_INFO,
        PROCESS_KILL = 12,
        DEBUG,
        PING,
        CHANGE_USER = 17,
        BINLOG_DUMP,
        REGISTER_SLAVE = 21,
        STMT_PREPARE,
        STMT_EXECUTE,
        STMT_SEND_LONG_DATA,
        STMT_CLOSE,
        STMT_RESET,
        SET_OPTION,
        STMT_FETCH,
        BINLOG_DUMP_GTID = 30,
        RESET_CONNECTION,
        STMT_BULK_EXECUTE = 250,
    };
    uint8_t answer = RESULTS;

    switch (kept > 0 ? body[0] : 0) {
    case QUIT:
    case STMT_SEND_LONG_DATA:
    case STMT_CLOSE:
        return 0;
    case QUERY:
        answer |= query_class(m, body, kept, whole);
        break;
    case STMT_PREPARE:
        answer = PREPARED_ID | PLAIN;
        if (statement_class((const char *)body + 1, kept - 1, whole) & PLAIN)
            answer |= PREPARES_PLAIN;
        break;
    case STMT_EXECUTE:
    case STMT_BULK_EXECUTE:
        answer |= prepared_class(m, body, kept);
        break;
    case STMT_FETCH:
        answer = ROWS_ONLY | PLAIN;
        break;
    case STMT_RESET:
        answer |= PLAIN;
        break;
    case FIELD_LIST:
        answer = ROWS_ONLY;
        break;
    case STATISTICS:
        answer = TEXT;
        break;
    case CHANGE_USER:
        answer = AUTHENTICATED;
        break;
    case INIT_DB:
    case REFRESH:
    case SHUTDOWN:
    case PROCESS_INFO:
    case PROCESS_KILL:
    case DEBUG:
    case PING:
    case SET_OPTION:
    case RESET_CONNECTION:
        break;
    case BINLOG_DUMP:
    case REGISTER_SLAVE:
    case BINLOG_DUMP_GTID:
        return lose(m, PARSED_REPLICATION);
    default:
        return lose(m, 0);
    }
    if (m->pendings == PENDING)
        return lose(m, 0);
    m->pending[m->pendings++] = answer;
    return 0;
}

/* The client's answer to the greeting. */
static unsigned capabilities(struct mysql *m, const uint8_t *body, size_t kept)
{
    uint32_t theirs;

    if (kept < KEPT)
        return lose(m, 0);
    theirs = get_le(body, 4);
    m->mariadb &= theirs & CLIENT_MYSQL ? 0 : get_le(body + 28, 4);
    m->capabilities &= theirs;
    m->answered = true;
    if (m->capabilities & (CLIENT_SSL | CLIENT_COMPRESS | CLIENT_ZSTD_COMPRESSION))
        return lose(m, PARSED_ENCRYPTED);
    if (!(m->capabilities & CLIENT_PROTOCOL_41) || m->mariadb & ~(uint32_t)MARIADB_KNOWN ||
        m->capabilities & CLIENT_OPTIONAL_RESULTSET_METADATA)
        return lose(m, 0);
    return 0;
}

static unsigned client_packet(struct mysql *m, const uint8_t *body, size_t kept)
{
    uint8_t number = m->client.head[3];

    if (m->phase == GREETING || (m->phase == AUTHENTICATION && number == 0))
        return lose(m, 0);
    if (!m->answered)
        return capabilities(m, body, kept);
    if (m->phase == AUTHENTICATION || number != 0) /* what authentication needs */
        return 0;
    return command(m, body, kept, m->client.length == kept);
}

/* What the server says */

/* The status in an OK packet, or in an EOF that has the form of one. */
static bool ok_status(const uint8_t *body, size_t kept, uint16_t *status)
{
    size_t at = 1;

    for (int i = 0; i < 2; i++) { /* affected rows, last inserted identifier */
        if (at >= kept)
            return false;
        at += body[at] < 0xfb ? 1 : body[at] == 0xfc ? 3 : body[at] == 0xfd ? 4 : 9;
    }
    if (at + 2 > kept)
        return false;
    *status = (uint16_t)get_le(body + at, 2);
    return true;
}

static bool eof_status(const struct mysql *m, const uint8_t *body, size_t kept, uint16_t *status)
{
    if (deprecates_eof(m))
        return ok_status(body, kept, status);
    if (kept != 5)
        return false;
    *status = (uint16_t)get_le(body + 3, 2);
    return true;
}

static bool is_eof(const struct mysql *m, const uint8_t *body)
{
    return body[0] == 0xfe && m->server.length < (deprecates_eof(m) ? LONGEST : 9);
}

static void next_command(struct mysql *m)
{
    m->pendings--;
    memmove(m->pending, m->pending + 1, m->pendings);
    m->result = FIRST;
}

/* A result ends with this status. */
static unsigned result_ends(struct mysql *m, uint16_t status)
{
    bool inside = status & STATUS_IN_TRANS, harmless = m->pending[0] & PLAIN;

    if (m->pending[0] & BEGINS)
        harmless = m->transaction == OUTSIDE;
    /* Only an OK may begin a transaction unnoticed: rows came from outside. */
    if (m->result != FIRST && m->transaction != INSIDE)
        harmless = false;
    m->transaction = inside ? INSIDE : OUTSIDE;
    m->result = FIRST;
    if (status & STATUS_MORE_RESULTS)
        m->pending[0] &= ANSWERS;
    else
        next_command(m);
    return harmless && inside ? 0 : PARSED_END;
}

static unsigned error(struct mysql *m, const uint8_t *body, size_t kept)
{
    if (kept < 3 || get_le(body + 1, 2) != 0xffff) /* 0xffff: a report of progress */
        next_command(m);
    m->transaction = UNKNOWN;
    return PARSED_END;
}

/* An answer that is neither its own end nor known to be harmless. */
static unsigned part(struct mysql *m)
{
    if (m->pending[0] & PLAIN && m->transaction == INSIDE)
        return 0;
    if (!(m->pending[0] & PLAIN))
        m->transaction = UNKNOWN;
    return PARSED_END;
}

static unsigned prepared(struct mysql *m, const uint8_t *body, size_t kept)
{
    uint32_t number, columns, parameters;
    unsigned parsed = part(m);

    if (body[0] != 0 || kept != 12)
        return lose(m, 0);
    number = get_le(body + 1, 4);
    columns = get_le(body + 5, 2);
    parameters = get_le(body + 7, 2);
    m->plain[number % PREPARED] = m->pending[0] & PREPARES_PLAIN ? number : 0;
    m->definitions = columns + parameters;
    if (!deprecates_eof(m))
        m->definitions += (columns > 0) + (parameters > 0);
    m->result = DEFINITIONS;
    if (m->definitions == 0)
        next_command(m);
    return parsed;
}

static unsigned columns(struct mysql *m, const uint8_t *body, size_t kept)
{
    size_t octets = body[0] < 0xfb ? 1 : body[0] == 0xfc ? 3 : 0;
    bool defined = true;

    if (octets == 0 || kept < octets)
        return lose(m, 0);
    m->definitions = octets == 1 ? body[0] : get_le(body + 1, 2);
    if (m->mariadb & MARIADB_CACHE_METADATA) {
        if (kept != octets + 1)
            return lose(m, 0);
        defined = body[octets];
    }
    if (!defined)
        m->definitions = 0;
    m->result = m->definitions ? DEFINITIONS : deprecates_eof(m) ? ROWS : DEFINITIONS_EOF;
    return part(m);
}

static unsigned first(struct mysql *m, const uint8_t *body, size_t kept)
{
    uint16_t status;

    switch (m->pending[0] & ANSWERS) {
    case TEXT:
        m->transaction = UNKNOWN;
        next_command(m);
        return PARSED_END;
    case AUTHENTICATED:
        if (body[0] != 0)
            return part(m);
        break;
    case PREPARED_ID:
        return prepared(m, body, kept);
    default:
        break;
    }
    if (body[0] == 0)
        return ok_status(body, kept, &status) ? result_ends(m, status) : lose(m, 0);
    if (is_eof(m, body))
        return eof_status(m, body, kept, &status) ? result_ends(m, status) : lose(m, 0);
    return columns(m, body, kept); /* a request for a local file is none */
}

static unsigned answer(struct mysql *m, const uint8_t *body, size_t kept)
{
    uint16_t status;

    if (m->result == FIRST && (m->pending[0] & ANSWERS) == ROWS_ONLY)
        m->result = ROWS;
    if (m->result == FIRST)
        return first(m, body, kept);
    if (m->result == DEFINITIONS) {
        if (--m->definitions == 0 && (m->pending[0] & ANSWERS) == PREPARED_ID) {
            unsigned parsed = part(m);
            next_command(m);
            return parsed;
        }
        if (m->definitions == 0)
            m->result = deprecates_eof(m) ? ROWS : DEFINITIONS_EOF;
        return part(m);
    }
    if (!is_eof(m, body))
        return m->result == ROWS ? part(m) : lose(m, 0);
    if (!eof_status(m, body, kept, &status))
        return lose(m, 0);
    if (m->result == DEFINITIONS_EOF && !(status & STATUS_CURSOR_EXISTS)) {
        m->result = ROWS;
        return part(m);
    }
    return result_ends(m, status);
}

/* Behind the version, which is not kept: connection[4] salt[8] 0 capabilities[2] charset status[2]
 * capabilities[2] length 0[6] mariadb[4] */
static unsigned greeting(struct mysql *m, const uint8_t *rest, size_t kept)
{
    if (kept < 31)
        return lose(m, 0);
    m->capabilities = get_le(rest + 13, 2) | get_le(rest + 18, 2) << 16;
    m->mariadb = m->capabilities & CLIENT_MYSQL ? 0 : get_le(rest + 27, 4);
    m->phase = AUTHENTICATION;
    return PARSED_END;
}

static unsigned server_packet(struct mysql *m, const uint8_t *body, size_t kept)
{
    uint16_t status;

    if (m->phase == GREETING)
        return greeting(m, body, kept);
    if (kept == 0)
        return lose(m, 0);
    if (m->phase == COMMANDS && m->pendings > 0)
        return body[0] == 0xff ? error(m, body, kept) : answer(m, body, kept);
    if (body[0] == 0xff) /* the connection ends */
        return PARSED_END;
    if (m->phase == COMMANDS || !m->answered)
        return lose(m, 0);
    if (body[0] != 0)
        return PARSED_END;
    if (!ok_status(body, kept, &status))
        return lose(m, 0);
    m->phase = COMMANDS;
    m->transaction = status & STATUS_IN_TRANS ? INSIDE : OUTSIDE;
    return PARSED_END;
}

/* Packets of one side */

typedef unsigned judge_fn(struct mysql *m, const uint8_t *body, size_t kept);

/* The version in a greeting can be of any length. */
static size_t skip_version(struct mysql *m, const uint8_t *data, size_t len)
{
    const uint8_t *end;

    if (m->phase != GREETING || m->version_ended || m->server.judged)
        return 0;
    if (m->server.left == m->server.length && data[0] == 0xff) { /* an ERR: the connection ends */
        m->server.judged = true;
        return len;
    }
    end = memchr(data, 0, len);
    m->version_ended = end;
    return end ? (size_t)(end - data) + 1 : len;
}

static void begin_packet(struct side *s)
{
    s->left = s->length = get_le(s->head, 3);
    s->goes_on = s->more;
    s->more = s->length == LONGEST;
    s->judged = s->goes_on;
}

/* Takes octets of the packet that comes; how many. */
static size_t take(struct mysql *m, struct side *s, judge_fn *judge, const uint8_t *data,
                   size_t len, unsigned *parsed)
{
    size_t n = 1, want;

    if (s->have < 4) {
        s->head[s->have++] = data[0];
        if (s->have < 4)
            return 1;
        begin_packet(s);
        if (s->left > 0)
            return 1;
    } else {
        if (len > s->left)
            len = s->left;
        n = s == &m->server ? skip_version(m, data, len) : 0;
        want = sizeof(s->head) - s->have;
        if (!s->judged && n == 0) {
            n = len < want ? len : want;
            memcpy(s->head + s->have, data, n);
            s->have = (uint8_t)(s->have + n);
        } else if (n == 0) {
            n = len;
        }
        s->left -= (uint32_t)n;
    }
    if (!s->judged && (s->left == 0 || s->have == sizeof(s->head))) {
        *parsed |= judge(m, s->head + 4, s->have - 4u);
        s->judged = true;
    }
    if (s->left == 0)
        s->have = 0;
    return n;
}

static unsigned follow(struct mysql *m, struct side *s, judge_fn *judge, const uint8_t *data,
                       size_t len)
{
    unsigned parsed = 0;

    while (len > 0 && !m->lost) {
        size_t n = take(m, s, judge, data, len, &parsed);
        data += n;
        len -= n;
    }
    return parsed;
}

static unsigned mysql_from_guest(void *state, const uint8_t *data, size_t len)
{
    struct mysql *m = state;
    unsigned parsed = follow(m, &m->server, server_packet, data, len);

    if (m->lost)
        return m->lost;
    return parsed | (m->transaction == INSIDE ? PARSED_IN_BLOCK : 0);
}

static unsigned mysql_from_client(void *state, const uint8_t *data, size_t len)
{
    struct mysql *m = state;

    follow(m, &m->client, client_packet, data, len);
    return m->lost;
}

const struct parser parser_mysql = {
    .name = "mysql",
    .init = mysql_init,
    .from_guest = mysql_from_guest,
    .from_client = mysql_from_client,
};
