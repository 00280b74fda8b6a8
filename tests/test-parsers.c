/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The databases' protocols: what ends a transaction, what does not, and what is beyond the parser
 * (R3, R10).  Each case is fed as a whole, and again cut at every place.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "netbuf/packet.h"
#include "netbuf/parser.h"

enum { END = PARSED_END, BLOCK = PARSED_IN_BLOCK, LOST = PARSED_LOST };

struct text {
    uint8_t data[512];
    size_t len;
};

/* "C:COMMIT Z:T D K!raw": a message a word, TYPE:BODY with a length and, for C, a final NUL; '_' is
 * a space. A word with '!' behind the first letter is the raw letter. */
static void add_words(struct text *t, const char *words)
{
    char copy[256], *word, *save = NULL;

    snprintf(copy, sizeof(copy), "%s", words);
    for (word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        uint8_t *p = t->data + t->len;
        size_t n = 0;

        p[0] = (uint8_t)word[0];
        if (word[1] == '!') {
            t->len++;
            continue;
        }
        if (word[1] == ':')
            for (const char *c = word + 2; *c; c++)
                p[5 + n++] = *c == '_' ? ' ' : *c == '0' ? 0 : (uint8_t)*c;
        if (word[0] == 'C')
            p[5 + n++] = 0;
        put_be32(p + 1, (uint32_t)(n + 4));
        t->len += 5 + n;
    }
}

static unsigned feed(const char *before, const struct text *t, size_t cut)
{
    uint8_t state[PARSER_STATE_MAX] __attribute__((aligned(8)));
    struct text first = {.len = 0};
    unsigned parsed;

    parser_pgsql.init(state);
    add_words(&first, before);
    parser_pgsql.from_guest(state, first.data, first.len);
    parsed = parser_pgsql.from_guest(state, t->data, cut);
    if (cut < t->len && !(parsed & LOST)) {
        unsigned ends = parsed & END;
        parsed = parser_pgsql.from_guest(state, t->data + cut, t->len - cut) | ends;
    }
    return parsed;
}

#define START "R:xxxx S:a0b0 K:xxxxxxxx Z:I "

static const struct {
    const char *before, *words;
    unsigned want;
} cases[] = {
    /* the beginning */
    {"", "R:xxxx", 0},
    {"", "N! R:xxxx S:a0b0 Z:I", END},
    {"", "N! N! R:xxxx", 0},
    {"", "v:xxxxxxxx R:xxxx", 0},
    {"", "E:SFATAL0VFATAL0", END},
    {"", "S!", LOST | PARSED_ENCRYPTED},             /* TLS */
    {"", "N! G! x! x!", LOST | PARSED_ENCRYPTED},    /* GSSAPI */
    {"", "N:SNOTICE0", LOST},
    {"", "S:a0b0", LOST | PARSED_ENCRYPTED},
    {"", "D", LOST},

    /* outside of a block everything ends something */
    {START, "T:xx D:xx C:SELECT_1 Z:I", END},
    {START, "C:INSERT_0_1", END},
    {START, "Z:I", END},
    {START, "I Z:I", END},
    {START, "V:xxxx Z:I", END},
    {START, "T:xx", END},
    {START, "D:xx", END},
    {START, "H:xx", END},
    {START, "E:SERROR0VERROR0Cxxxxx00", END},

    /* but the answer to BEGIN */
    {START, "C:BEGIN", 0},
    {START, "C:BEGIN Z:T", BLOCK},
    {START, "C:START_TRANSACTION Z:T", BLOCK},
    {START, "1 2 n N:SNOTICE0 S:a0b0 C:BEGIN", 0},
    {START, "C:INSERT_0_1 C:BEGIN Z:T", END | BLOCK},
    {START, "1 2 C:BEGIN 1 2 C:INSERT_0_1", END},
    {START, "A:xxxxx0y0", END},

    /* inside */
    {START "C:BEGIN Z:T", "", BLOCK},
    {START "C:BEGIN Z:T", "T:xx D:xx D:xx C:SELECT_2 Z:T", BLOCK},
    {START "C:BEGIN Z:T", "1 2 n C:UPDATE_1 3 t:xx s Z:T", BLOCK},
    {START "C:BEGIN Z:T", "N:SNOTICE0 S:a0b0", BLOCK},
    {START "C:BEGIN Z:T", "G:xx C:COPY_5 Z:T", BLOCK},
    {START "C:BEGIN Z:T", "H:xx d:xxxxxxxxxxx d c C:COPY_5 Z:T", BLOCK},
    {START "C:BEGIN Z:T", "E:SERROR0VERROR0Cxxxxx00 Z:E", BLOCK},
    {START "C:BEGIN Z:T", "E:SFEHLER0VERROR0Cxxxxx00 Z:E", BLOCK},
    {START "C:BEGIN Z:T", "E:SERROR0Cxxxxx00 Z:E", END | BLOCK}, /* before 9.6: no V field */
    {START "C:BEGIN Z:T", "E:SFATAL0VFATAL0Cxxxxx00", END | BLOCK},
    {START "C:BEGIN Z:T", "C:SAVEPOINT Z:T", BLOCK},
    {START "C:BEGIN Z:T", "C:COMMIT_PREPAREDX Z:T", BLOCK},
    {START "C:BEGIN Z:T", "C:LISTEN Z:T", BLOCK},
    {START "C:BEGIN Z:T", "A:xxxxx0y0", END | BLOCK},

    /* its end */
    {START "C:BEGIN Z:T", "C:COMMIT", END},
    {START "C:BEGIN Z:T", "C:COMMIT Z:I", END},
    {START "C:BEGIN Z:T", "C:COMMIT Z:T", END | BLOCK}, /* AND CHAIN */
    {START "C:BEGIN Z:T", "C:ROLLBACK Z:I", END},
    {START "C:BEGIN Z:T", "C:ROLLBACK Z:T", END | BLOCK},
    {START "C:BEGIN Z:T", "C:PREPARE_TRANSACTION Z:I", END},
    {START "C:BEGIN Z:T", "C:COMMIT_PREPARED", END},
    {START "C:BEGIN Z:T", "C:ROLLBACK_PREPARED", END},
    {START "C:BEGIN Z:T", "C:COMMIT C:INSERT_0_1", END}, /* one query string, or a pipeline */
    {START "C:BEGIN Z:T", "C:COMMIT C:BEGIN Z:T", END | BLOCK},
    {START "C:BEGIN Z:T", "E:SERROR0VERROR0Cxxxxx00 Z:I", END}, /* COMMIT failed */
    {START "C:BEGIN Z:T", "C:A_TAG_LONGER_THAN_ANY_THAT_THE_SERVER_KNOWS", END},

    /* beyond the parser */
    {START "C:BEGIN Z:T", "W:xxx", LOST | PARSED_REPLICATION}, /* walsender */
    {START "C:BEGIN Z:T", "p:xxx", LOST},
    {START "C:BEGIN Z:T", "Z:X", LOST},
    {START "C:BEGIN Z:T", "Z:TT", LOST},
    {START "C:BEGIN Z:T", "Z", LOST},
};

static void test_pgsql(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct text t = {.len = 0};

        add_words(&t, cases[i].words);
        for (size_t cut = 0; cut <= t.len; cut++) {
            unsigned got = feed(cases[i].before, &t, cut);
            if (got != cases[i].want)
                fail_msg("\"%s\" then \"%s\" cut at %zu: %u, expected %u", cases[i].before,
                         cases[i].words, cut, got, cases[i].want);
        }
    }
}

/* R10: lengths that lie. */
static void test_pgsql_lengths(void **state)
{
    static const struct {
        uint32_t length;
        unsigned want;
    } lengths[] = {
        {0, LOST},           {3, LOST},          {4, BLOCK},         {1u << 30, BLOCK},
        {0x7fffffff, BLOCK}, {0x80000000, LOST}, {0xffffffff, LOST},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        struct text t = {.data = "D", .len = 5};
        put_be32(t.data + 1, lengths[i].length);
        assert_int_equal(feed(START "C:BEGIN Z:T", &t, 5), lengths[i].want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pgsql),
        cmocka_unit_test(test_pgsql_lengths),
    };

    return cmocka_run_group_tests_name("parsers", tests, NULL, NULL);
}
