/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a database's replies say about its transactions.  One file a protocol; pure and incremental:
 * data may be cut anywhere.  A parser sees what the guest sends, and if it wants what the client
 * sends, each octet once and in order, from the first one on.
 *
 * It errs on the side of holding: whatever ends a transaction, may end one, or is outside of one is
 * PARSED_END, no later than with the octet that completes the message (before it no client acts on
 * it); what it cannot follow is PARSED_LOST.
 */
#ifndef REMUS_PARSER_H
#define REMUS_PARSER_H

#include <stddef.h>
#include <stdint.h>

#define PARSER_STATE_MAX 320u

enum {
    PARSED_END = 1,      /* the data ends, or may end, a transaction: hold it, and what follows */
    PARSED_IN_BLOCK = 2, /* behind the data, a transaction is open that nothing in it has ended */
    PARSED_LOST = 4,     /* strict for ever: out of step or no such protocol, unless with one of */
    PARSED_ENCRYPTED = 8, /* TLS and the like */
    PARSED_REPLICATION = 16, /* another protocol from here on */
};

struct parser {
    const char *name;
    void (*init)(void *state);
    unsigned (*from_guest)(void *state, const uint8_t *data, size_t len);
    /* NULL: what the client says does not matter.  PARSED_LOST (with why) or 0. */
    unsigned (*from_client)(void *state, const uint8_t *data, size_t len);
};

/* PostgreSQL's protocol 3. */
extern const struct parser parser_pgsql;
/* MySQL's and MariaDB's. */
extern const struct parser parser_mysql;

/* By its name; NULL: there is no such one. */
const struct parser *parser_find(const char *name);

#endif
