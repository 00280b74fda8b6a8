/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a PostgreSQL server sends (protocol 3, "Frontend/Backend Protocol" in PostgreSQL's manual):
 *
 *     stream    := 'N'* message*            'N': "no" to a request for TLS or GSSAPI; "yes" ('S',
 *                                           'G') is strict
 *     message   := type length[4] body       length: of itself and the body
 *
 * What ends a transaction (PARSED_END):
 *   ReadyForQuery 'I'
 *   any answer outside of a block but that to BEGIN: CommandComplete is sent after an implicit
 *                              commit, before ReadyForQuery
 *   CommandComplete COMMIT, ROLLBACK, PREPARE TRANSACTION, COMMIT PREPARED, ROLLBACK PREPARED:
 * behind COMMIT AND CHAIN ReadyForQuery says 'T', and in a pipeline it comes much later
 *   NotificationResponse: what it tells of is committed
 *   ErrorResponse that is not of severity ERROR: the connection ends
 *   NoticeResponse that is not of severity NOTICE: a warning may say that the commit is done, though its
 *                              wait for PostgreSQL's own standby was canceled; it comes before CommandComplete
 */
#include <stdbool.h>
#include <string.h>

#include "packet.h"
#include "parser.h"

#define KEPT 40u /* octets of a body that a decision may need */

struct pgsql {
    bool started; /* the first message has begun */
    uint8_t lost; /* 0, or PARSED_ flags for ever */
    bool in_block;          /* ReadyForQuery said so, and nothing ended it since */
    uint8_t have;           /* octets of head that are there */
    uint32_t left;          /* octets of the message that are still to come */
    uint8_t head[5 + KEPT]; /* type, length, beginning of the body */
};
_Static_assert(sizeof(struct pgsql) <= PARSER_STATE_MAX, "fits into a flow");

static void pgsql_init(void *state)
{
    *(struct pgsql *)state = (struct pgsql){0};
}

/* Types that a decision needs the body of. */
static bool decides(uint8_t type)
{
    return type == 'C' || type == 'E' || type == 'N' || type == 'Z';
}

static bool ends_block(const char *tag)
{
    static const char *const ends[] = {"COMMIT", "ROLLBACK", "PREPARE TRANSACTION",
                                       "COMMIT PREPARED", "ROLLBACK PREPARED"};

    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
        if (strcmp(tag, ends[i]) == 0)
            return true;
    return false;
}

static bool begins_block(const char *tag)
{
    return strcmp(tag, "BEGIN") == 0 || strcmp(tag, "START TRANSACTION") == 0;
}

static unsigned command_complete(struct pgsql *p, const uint8_t *tag, size_t len)
{
    if (memchr(tag, 0, len) &&
        (p->in_block ? !ends_block((const char *)tag) : begins_block((const char *)tag)))
        return 0;
    p->in_block = false;
    return PARSED_END;
}

/* An error or a notice, "SERROR\0VERROR\0..." in any language of the S field.  plain: the V field of one
 * that ends nothing inside of a block. */
static unsigned report(bool in_block, const char *plain, const uint8_t *fields, size_t len)
{
    const uint8_t *end = memchr(fields, 0, len);
    size_t n = strlen(plain) + 1;

    if (in_block && end && len - (size_t)(end + 1 - fields) >= n && memcmp(end + 1, plain, n) == 0)
        return 0;
    return PARSED_END;
}

/* The message in p->head is there, as far as it is kept. */
static unsigned judge(struct pgsql *p, size_t body)
{
    const uint8_t *data = p->head + 5;

    if (p->head[0] == 'C')
        return command_complete(p, data, body);
    if (p->head[0] == 'E')
        return report(p->in_block, "VERROR", data, body);
    if (p->head[0] == 'N')
        return report(p->in_block, "VNOTICE", data, body);
    if (get_be32(p->head + 1) != 5 || !memchr("ITE", data[0], 3)) {
        p->lost = PARSED_LOST;
        return PARSED_END;
    }
    p->in_block = data[0] != 'I';
    return p->in_block ? 0 : PARSED_END;
}

/* The type and length are there. */
static unsigned message(struct pgsql *p)
{
    static const char known[] = "RKSZCDTtI123nsENAVGHcdv";
    uint8_t type = p->head[0];
    uint32_t length = get_be32(p->head + 1);

    if (length < 4 || length > INT32_MAX || !type || !memchr(known, type, sizeof(known) - 1) ||
        (!p->started && !memchr("REv", type, 3)) || (decides(type) && length < 5)) {
        p->lost = PARSED_LOST;
        if (p->started && type == 'W') /* CopyBothResponse */
            p->lost |= PARSED_REPLICATION;
        return PARSED_END;
    }
    p->started = true;
    p->left = length - 4;
    if (type == 'A')
        return PARSED_END;
    /* What goes along with a BEGIN may pass, and what is judged later.  Not parameters: what other clients
     * made the server reload is in them. */
    return p->in_block || memchr("12n3sNCEZRKv", type, 12) ? 0 : PARSED_END;
}

/* Takes octets that belong to the message begun; how many. */
static size_t take(struct pgsql *p, const uint8_t *data, size_t len, unsigned *parsed)
{
    size_t want, n;

    if (p->have < 5) {
        p->head[p->have++] = data[0];
        if (p->have == 5)
            *parsed |= message(p);
        return 1;
    }
    if (!decides(p->head[0])) {
        n = len < p->left ? len : p->left;
    } else {
        want = p->left < sizeof(p->head) - p->have ? p->left : sizeof(p->head) - p->have;
        n = len < want ? len : want;
        memcpy(p->head + p->have, data, n);
        p->have = (uint8_t)(p->have + n);
        if (n == want) {
            *parsed |= judge(p, p->have - 5u);
            p->head[0] = 'D'; /* what is left of the body decides nothing more */
        }
    }
    p->left -= (uint32_t)n;
    if (p->left == 0)
        p->have = 0;
    return n;
}

static unsigned pgsql_from_guest(void *state, const uint8_t *data, size_t len)
{
    struct pgsql *p = state;
    unsigned parsed = 0;

    while (len > 0 && !p->lost) {
        size_t n = 1;

        /* Before the first message: "no" is one octet, and neither 'S' nor 'G' begins a message. */
        if (!p->started && p->have == 0 && (data[0] == 'S' || data[0] == 'G'))
            p->lost = PARSED_LOST | PARSED_ENCRYPTED;
        else if (p->started || p->have > 0 || data[0] != 'N')
            n = take(p, data, len, &parsed);
        data += n;
        len -= n;
    }
    if (p->lost)
        return p->lost;
    return parsed | (p->in_block ? PARSED_IN_BLOCK : 0);
}

const struct parser parser_pgsql = {
    .name = "pgsql",
    .init = pgsql_init,
    .from_guest = pgsql_from_guest,
};
