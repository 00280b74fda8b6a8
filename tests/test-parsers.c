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
    {START, "1 2 n C:BEGIN", 0},
    {START, "N:SNOTICE0VNOTICE0", END}, /* of a procedure that has committed */
    {START, "S:a0b0", END},
    {START, "C:INSERT_0_1 C:BEGIN Z:T", END | BLOCK},
    {START, "1 2 C:BEGIN 1 2 C:INSERT_0_1", END},
    {START, "A:xxxxx0y0", END},

    /* inside */
    {START "C:BEGIN Z:T", "", BLOCK},
    {START "C:BEGIN Z:T", "T:xx D:xx D:xx C:SELECT_2 Z:T", BLOCK},
    {START "C:BEGIN Z:T", "1 2 n C:UPDATE_1 3 t:xx s Z:T", BLOCK},
    {START "C:BEGIN Z:T", "N:SNOTICE0VNOTICE0Cxxxxx00 S:a0b0", BLOCK},
    {START "C:BEGIN Z:T", "N:SWARNING0VWARNING0Cxxxxx00", END | BLOCK}, /* committed, not replicated */
    {START "C:BEGIN Z:T", "N:SLOG0VLOG0Cxxxxx00", END | BLOCK},
    {START "C:BEGIN Z:T", "N:SNOTICE0Cxxxxx00", END | BLOCK}, /* before 9.6 */
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

/* MySQL */

enum { P41 = 1 << 9, SSL = 1 << 11, NO_EOF = 1 << 24, ATTRIBUTES = 1 << 27, ALL = 0x7fffffff };
enum { MYSQL = 1, MARIA_CACHES = 1 << 4, MARIA_NEW = 1 << 5 }; /* MARIA_: the last four octets, of who has not MYSQL */

static void add_packet(struct text *t, uint8_t seq, const void *body, size_t len)
{
    uint8_t *p = t->data + t->len;

    p[0] = (uint8_t)len;
    p[1] = (uint8_t)(len >> 8);
    p[2] = 0;
    p[3] = seq;
    memcpy(p + 4, body, len);
    t->len += 4 + len;
}

/* Packets of a server: okN and eofN with status N, endN (an OK in the form of an EOF), err, colN (N
 * columns), big (two, said in three octets), old and new (one, whose definition the client has or has not), def, row, bin (binary
 * row), prep (number 7, no parameters, one column), par (two parameters, no column), non (neither), prog (progress), file, cutN
 * (an OK of N octets), far (an OK with status 3 behind long numbers), X (none). */
static void add_answers(struct text *t, const char *words)
{
    char copy[128], *word, *save = NULL;

    snprintf(copy, sizeof(copy), "%s", words);
    for (word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        uint8_t n = (uint8_t)(word[0] && word[1] && word[2] && word[3] ? atoi(word + (word[2] == 'k' ? 2 : 3)) : 0);
        if (word[0] == 'o' && word[1] == 'k') {
            n = (uint8_t)atoi(word + 2);
            add_packet(t, 1, (uint8_t[]){0, 0xfc, 1, 1, 0, n, 0, 0, 0}, 9);
        } else if (strncmp(word, "eof", 3) == 0) {
            add_packet(t, 1, (uint8_t[]){0xfe, 0, 0, n, 0}, 5);
        } else if (strncmp(word, "end", 3) == 0) {
            add_packet(t, 1, (uint8_t[]){0xfe, 0, 0, n, 0, 0, 0}, 7);
        } else if (strcmp(word, "err") == 0) {
            add_packet(t, 1, "\xff\x10\x04#42000no", 11);
        } else if (strncmp(word, "col", 3) == 0) {
            add_packet(t, 1, &n, 1);
        } else if (strcmp(word, "big") == 0) {
            add_packet(t, 1, "\xfc\2\0", 3);
        } else if (strcmp(word, "old") == 0) {
            add_packet(t, 1, "\1\0", 2);
        } else if (strcmp(word, "new") == 0) {
            add_packet(t, 1, "\1\1", 2);
        } else if (strcmp(word, "def") == 0) {
            add_packet(t, 1, "\3def", 4);
        } else if (strcmp(word, "row") == 0) {
            add_packet(t, 1, "\3one\3two", 8);
        } else if (strcmp(word, "bin") == 0) {
            add_packet(t, 1, "\0\0\1\0\0\0", 6);
        } else if (strcmp(word, "prep") == 0) {
            add_packet(t, 1, "\0\7\0\0\0\1\0\0\0\0\0\0", 12);
        } else if (strcmp(word, "par") == 0) {
            add_packet(t, 1, "\0\7\0\0\0\0\0\2\0\0\0\0", 12);
        } else if (strcmp(word, "non") == 0) {
            add_packet(t, 1, "\0\7\0\0\0\0\0\0\0\0\0\0", 12);
        } else if (strcmp(word, "prog") == 0) {
            add_packet(t, 1, "\xff\xff\xff\1\1\1", 6);
        } else if (strncmp(word, "cut", 3) == 0) {
            add_packet(t, 1, "\0\0\0\3", n);
        } else if (strcmp(word, "far") == 0) {
            add_packet(t, 1, "\0\xfd\1\1\1\xfe\1\1\1\1\1\1\1\1\3\0\0\0", 18);
        } else if (strcmp(word, "file") == 0) {
            add_packet(t, 1, "\xfbname", 5);
        } else {
            add_packet(t, 1, "", 0);
        }
    }
}

/* From the greeting to the first OK. */
static unsigned mysql_begin(void *state, uint32_t server, uint32_t client, uint32_t maria)
{
    uint8_t hello[80] = "\x0a" "10.11.19", answer[40] = {0};
    struct text s = {.len = 0}, c = {.len = 0};
    unsigned parsed;

    hello[10 + 13] = (uint8_t)server;
    hello[10 + 14] = (uint8_t)(server >> 8);
    hello[10 + 18] = (uint8_t)(server >> 16);
    hello[10 + 19] = (uint8_t)(server >> 24);
    hello[10 + 27] = answer[28] = (uint8_t)maria;
    for (int i = 0; i < 4; i++)
        answer[i] = (uint8_t)(client >> 8 * i);
    add_packet(&s, 0, hello, 60);
    add_packet(&c, 1, answer, sizeof(answer));
    parser_mysql.init(state);
    parser_mysql.from_guest(state, s.data, s.len);
    parsed = parser_mysql.from_client(state, c.data, c.len);
    s.len = 0;
    add_answers(&s, "ok2");
    return parsed ? parsed : parser_mysql.from_guest(state, s.data, s.len);
}

/* "Ctext; Ctext": commands, C their first octet as a letter: Query, Prepare, Execute of number 7,
 * Fetch, sTatistics, cHange user, replication (D), coLumns, Odd, quit (Z), long daTa (A), Reset of a statement, Wab: a query with
 * the octets a and b ahead of its text, X: none at all, Sx: not a command but what goes on. */
static unsigned mysql_commands(void *state, const char *words, size_t piece)
{
    static const char letters[] = "QPEFTHDLOZARWXS";
    static const uint8_t codes[] = {3, 22, 23, 28, 9, 17, 18, 4, 99, 1, 24, 26, 3, 99, 99};
    struct text t = {.len = 0};
    uint8_t body[128];
    unsigned parsed = 0;

    while (*words) {
        const char *end = strchr(words, '|'), *letter = strchr(letters, words[0]);
        size_t len = end ? (size_t)(end - words) : strlen(words);

        memcpy(body, words, len);
        body[0] = codes[letter - letters];
        if (words[0] == 'E')
            len = (size_t)(stpcpy((char *)body + 1, "\7") - (char *)body) + 8, memset(body + 2, 0, 8);
        for (size_t i = 1; words[0] == 'W' && i < len && i < 3; i++)
            body[i] -= '0';
        add_packet(&t, words[0] == 'S' ? 3 : 0, body, words[0] == 'X' ? 0 : len);
        words = end ? end + 1 : "";
    }
    for (size_t at = 0; at < t.len && !(parsed & LOST); at += piece)
        parsed = parser_mysql.from_client(state, t.data + at, t.len - at < piece ? t.len - at : piece);
    return parsed;
}

static const struct {
    uint32_t capabilities;
    const char *before, *before_answers, *commands, *answers;
    unsigned want;
} mysql_cases[] = {
    /* outside of a transaction everything ends something, but what begins one */
    {0, "", "", "QINSERT", "ok2", END},
    {0, "", "", "QSELECT 1", "col1 def eof2 row eof2", END},
    {0, "", "", "QSELECT 1", "col1 def eof3 row eof3", END | BLOCK},
    {0, "", "", "QBEGIN", "ok3", BLOCK},
    {0, "", "", "Q begin work ", "ok3", BLOCK},
    {0, "", "", "QSTART TRANSACTION READ ONLY", "ok3", BLOCK},
    {0, "", "", "QINSERT", "ok1", BLOCK}, /* autocommit = 0 */
    {0, "", "", "QBEGIN NOT ATOMIC", "ok3", END | BLOCK},
    {0, "", "", "QCALL p", "ok3", END | BLOCK},
    {0, "QSELECT", "err", "QBEGIN", "ok3", END | BLOCK},

    /* inside */
    {0, "QBEGIN", "ok3", "", "", BLOCK},
    {0, "QBEGIN", "ok3", "QINSERT", "ok3", BLOCK},
    {0, "QBEGIN", "ok3", "Qselect*", "col2 def def eof3 row row eof3", BLOCK},
    {NO_EOF, "QBEGIN", "ok3", "QSELECT 1", "col1 def row end3", BLOCK},
    {0, "QBEGIN", "ok3", "Q\t\rSELECT", "ok3", BLOCK},
    {0, "QBEGIN", "ok3", "QSELECT", "far", BLOCK},
    {0, "QBEGIN", "ok3", "QSELECT", "big def def eof3 row eof3", BLOCK},
    {0, "QBEGIN", "ok3", "QSAVEPOINT a", "ok3", BLOCK},
    {0, "QBEGIN", "ok3", "QSAVEPOINT `a", "ok3", BLOCK},
    {0, "QBEGIN", "ok3", "QSAVEPOINT _a", "ok3", BLOCK},
    {0, "QBEGIN", "ok3", "QROLLBACK TO a", "ok3", BLOCK},
    {0, "QBEGIN", "ok3", "QUPDATE|QDELETE", "ok3 ok3", BLOCK},
    {0, "QBEGIN", "ok3", "AxxxxxxX|QUPDATE", "ok3", BLOCK},
    {0, "QBEGIN", "ok3", "PSELECT", "prep def eof3", BLOCK},
    {NO_EOF, "QBEGIN", "ok3", "PSELECT", "prep def", BLOCK},
    {0, "QBEGIN", "ok3", "PUPDATE|QUPDATE", "par def def eof3 ok3", BLOCK},
    {0, "QBEGIN", "ok3", "PUPDATE|QUPDATE", "non ok3", BLOCK},
    {0, "QBEGIN|PSELECT", "ok3 prep def eof3", "E", "col1 def eof3 bin eof3", BLOCK},
    {0, "QBEGIN|PSELECT", "ok3 prep def eof3", "E|F", "col1 def eof67 bin bin eof67", BLOCK},
    {0, "QBEGIN|PSELECT", "ok3 prep def eof3", "R", "ok3", BLOCK},
    {ATTRIBUTES, "QBEGIN", "ok3", "QSELECT", "ok3", END | BLOCK},
    {ATTRIBUTES, "W01BEGIN", "ok3", "W01SELECT", "ok3", BLOCK},
    {ATTRIBUTES, "W01BEGIN", "ok3", "W11SELECT", "ok3", END | BLOCK},
    {ATTRIBUTES, "W01BEGIN", "ok3", "W02SELECT", "ok3", END | BLOCK},
    {ATTRIBUTES, "W01BEGIN|W01SELECT", "ok3 ok3", "W0", "ok3", END | BLOCK}, /* what is behind it was another's */

    /* its end */
    {0, "QBEGIN", "ok3", "QCOMMIT", "ok2", END},
    {0, "QBEGIN", "ok3", "QINSERT", "ok2", END},
    {0, "QBEGIN", "ok3", "QCOMMIT AND CHAIN", "ok3", END | BLOCK},
    {0, "QBEGIN", "ok3", "QBEGIN", "ok3", END | BLOCK},
    {0, "QBEGIN", "ok3", "QROLLBACK", "ok2", END},
    {0, "QBEGIN", "ok3", "QROLLBACK TOO", "ok3", END | BLOCK},
    {0, "QBEGIN", "ok3", "QSAVEPOINT : BEGIN", "ok3", END | BLOCK},
    {0, "QBEGIN|QSELECT 1,abc", "ok3 ok3", "QSAVEPOINT", "ok3", END | BLOCK},
    {0, "QBEGIN", "ok3", "QSELECTED", "ok3", END | BLOCK},
    {0, "QBEGIN", "ok3", "QSELECT_", "ok3", END | BLOCK},
    {0, "QBEGIN", "ok3", "QSELECT$", "ok3", END | BLOCK},
    {0, "QBEGIN", "ok3", "QSELECT\x80", "ok3", END | BLOCK},
    {0, "QBEGIN", "ok3", "Q/*! COMMIT */", "ok3", END | BLOCK},
    {0, "QBEGIN", "ok3", "QSELECT 1; COMMIT AND CHAIN", "col1 def eof11 row eof11", BLOCK},
    {0, "QBEGIN", "ok3", "QSELECT 1; COMMIT AND CHAIN", "col1 def eof11 row eof11 ok3", END | BLOCK},
    {0, "QBEGIN", "ok3", "QCALL p", "col1", END},
    {0, "QBEGIN", "ok3", "QCALL p", "col1 def eof11 row eof11 ok3", END | BLOCK},
    {0, "QBEGIN", "ok3", "QSELECT", "err", END},
    {0, "QBEGIN", "ok3", "QSELECT", "col1 def eof3 row err", END},
    {0, "QBEGIN|PCOMMIT", "ok3 prep def eof3", "E", "ok3", END | BLOCK},
    {0, "QBEGIN", "ok3", "E", "ok3", END | BLOCK},
    {0, "QBEGIN", "ok3", "QALTER", "prog ok2", END},
    {0, "QBEGIN", "ok3", "T", "row", END},
    {0, "QBEGIN", "ok3", "T|QUPDATE", "row ok3", END | BLOCK},
    {0, "QBEGIN", "ok3", "L", "def def eof3", END | BLOCK},
    {0, "QBEGIN", "ok3", "Hroot", "eof0 ok2", END},
    {0, "QBEGIN", "ok3", "Hroot|Spassword", "eof0 ok2", END},
    {0, "QBEGIN", "ok3", "Z", "err", END | BLOCK},

    /* beyond the parser */
    {0, "QBEGIN", "ok3", "", "ok3", LOST},
    {0, "QBEGIN", "ok3", "QSELECT", "X", LOST},
    {0, "QBEGIN", "ok3", "QSELECT", "cut1", LOST},
    {0, "QBEGIN", "ok3", "QSELECT", "cut2", LOST},
    {0, "QBEGIN", "ok3", "QSELECT", "cut4", LOST},
    {0, "QBEGIN", "ok3", "X", "", LOST},
    {0, "QBEGIN", "ok3", "QLOAD DATA", "file", LOST},
    {0, "QBEGIN", "ok3", "QSELECT", "col1 def row", LOST},
    {0, "QBEGIN", "ok3", "QSELECT", "col1 def end3", LOST},
    {0, "QBEGIN", "ok3", "PSELECT", "ok3", LOST},
    {0, "", "", "D", "", LOST | PARSED_REPLICATION},
    {0, "", "", "O", "", LOST},
    {0, "", "", "Q1|Q2|Q3|Q4|Q5|Q6|Q7|Q8|Q9|Q0|Q1|Q2|Q3|Q4|Q5|Q6|Q7", "", LOST},
};

static unsigned mysql_case(size_t i, size_t piece, size_t cut)
{
    uint8_t state[PARSER_STATE_MAX] __attribute__((aligned(8)));
    struct text t = {.len = 0};
    unsigned parsed, ends;

    assert_int_equal(mysql_begin(state, ALL & ~SSL & ~(1u << 5) & ~(1u << 25) & ~(1u << 26),
                                 P41 | MYSQL | mysql_cases[i].capabilities, 0),
                     END);
    assert_int_equal(mysql_commands(state, mysql_cases[i].before, 1000), 0);
    add_answers(&t, mysql_cases[i].before_answers);
    parser_mysql.from_guest(state, t.data, t.len);
    parsed = mysql_commands(state, mysql_cases[i].commands, piece);
    t.len = 0;
    add_answers(&t, mysql_cases[i].answers);
    if (parsed & LOST || cut > t.len)
        return parsed;
    parsed = parser_mysql.from_guest(state, t.data, cut);
    ends = parsed & END;
    return parsed & LOST ? parsed : parser_mysql.from_guest(state, t.data + cut, t.len - cut) | ends;
}

static void test_mysql(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(mysql_cases) / sizeof(mysql_cases[0]); i++) {
        struct text t = {.len = 0};

        add_answers(&t, mysql_cases[i].answers);
        for (size_t cut = 0; cut <= t.len; cut++) {
            unsigned got = mysql_case(i, 1 + cut % 7, cut);
            if ((got & LOST ? got & ~(unsigned)END : got) != mysql_cases[i].want)
                fail_msg("\"%s\" then \"%s\": %s, cut at %zu: %u, expected %u", mysql_cases[i].before,
                         mysql_cases[i].commands, mysql_cases[i].answers, cut, got,
                         mysql_cases[i].want);
        }
    }
}

/* What was agreed upon at the beginning. */
static void test_mysql_capabilities(void **state)
{
    static const struct {
        uint32_t server, client;
        unsigned want, maria;
    } agreed[] = {
        {ALL, P41, END, 0},
        {P41, ALL, END, 0}, /* what only one of them knows does not count */
        {ALL, 0, LOST, 0},
        {ALL, P41 | SSL, LOST | PARSED_ENCRYPTED, 0},
        {ALL, P41 | 1 << 5, LOST | PARSED_ENCRYPTED, 0},
        {ALL, P41 | 1 << 26, LOST | PARSED_ENCRYPTED, 0},
        {ALL, P41 | 1 << 25, LOST, 0},
        {P41, P41, LOST, MARIA_NEW},
        {P41 | MYSQL, P41, END, MARIA_NEW}, /* these octets mean nothing in MySQL */
        {P41, P41 | MYSQL, END, MARIA_NEW},
    };
    uint8_t parser[PARSER_STATE_MAX] __attribute__((aligned(8)));

    (void)state;
    for (size_t i = 0; i < sizeof(agreed) / sizeof(agreed[0]); i++)
        assert_int_equal(mysql_begin(parser, agreed[i].server, agreed[i].client, agreed[i].maria), agreed[i].want);
}

/* MariaDB leaves definitions out that the client has. */
static void test_mariadb_caches(void **state)
{
    static const struct {
        const char *answers;
        unsigned want;
    } results[] = {
        {"new def eof3 row eof3", BLOCK},
        {"old eof3 row eof3", BLOCK},
        {"old row", LOST},
        {"col1", LOST},
    };
    uint8_t parser[PARSER_STATE_MAX] __attribute__((aligned(8)));

    (void)state;
    for (size_t i = 0; i < sizeof(results) / sizeof(results[0]); i++) {
        struct text t = {.len = 0};

        assert_int_equal(mysql_begin(parser, P41, P41, MARIA_CACHES), END);
        assert_int_equal(mysql_commands(parser, "QBEGIN|QSELECT", 1000), 0);
        add_answers(&t, "ok3");
        assert_int_equal(parser_mysql.from_guest(parser, t.data, t.len), BLOCK);
        t.len = 0;
        add_answers(&t, results[i].answers);
        assert_int_equal(parser_mysql.from_guest(parser, t.data, t.len), results[i].want);
    }
}

/* Rows end outside of a transaction, long after the first of them left: that is an end, too, although one is open behind it. */
static void test_mysql_last_row(void **state)
{
    uint8_t parser[PARSER_STATE_MAX] __attribute__((aligned(8)));
    struct text t = {.len = 0};

    (void)state;
    mysql_begin(parser, P41 | MYSQL, P41 | MYSQL, 0);
    mysql_commands(parser, "QSELECT", 1000);
    add_answers(&t, "col1 def eof2 row");
    assert_int_equal(parser_mysql.from_guest(parser, t.data, t.len), END);
    t.len = 0;
    add_answers(&t, "eof3");
    assert_int_equal(parser_mysql.from_guest(parser, t.data, t.len), END | BLOCK);
}

/* A row of more than one packet: what the next one begins with means nothing. */
static void test_mysql_long_row(void **state)
{
    static const uint8_t head[] = {0xff, 0xff, 0xff, 4};
    uint8_t parser[PARSER_STATE_MAX] __attribute__((aligned(8))), *row = calloc(1, 0xffffff);
    struct text t = {.len = 0};

    (void)state;
    mysql_begin(parser, P41 | MYSQL, P41 | MYSQL, 0);
    mysql_commands(parser, "QBEGIN|QSELECT", 1000);
    add_answers(&t, "ok3 col1 def eof3");
    assert_int_equal(parser_mysql.from_guest(parser, t.data, t.len), BLOCK);
    assert_int_equal(parser_mysql.from_guest(parser, head, sizeof(head)), BLOCK);
    assert_int_equal(parser_mysql.from_guest(parser, row, 0xffffff), BLOCK);
    t.len = 0;
    add_packet(&t, 5, "\xfe", 1);
    add_answers(&t, "row eof3");
    assert_int_equal(parser_mysql.from_guest(parser, t.data, t.len), BLOCK);
    free(row);
}

/* What comes instead of a greeting, or before it. */
static void test_mysql_greeting(void **state)
{
    static const char text[] = "\xff\x10\x04Too many connections";
    uint8_t parser[PARSER_STATE_MAX] __attribute__((aligned(8)));
    struct text t = {.len = 0};

    (void)state;
    add_packet(&t, 0, text, sizeof(text) - 1);
    for (size_t cut = 0; cut < t.len; cut++) {
        parser_mysql.init(parser);
        assert_int_equal(parser_mysql.from_guest(parser, t.data, cut), 0);
        assert_int_equal(parser_mysql.from_guest(parser, t.data + cut, t.len - cut), 0);
    }
    parser_mysql.init(parser);
    assert_int_equal(mysql_commands(parser, "QCOMMIT", 1000), LOST);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pgsql),
        cmocka_unit_test(test_pgsql_lengths),
        cmocka_unit_test(test_mysql),
        cmocka_unit_test(test_mysql_capabilities),
        cmocka_unit_test(test_mariadb_caches),
        cmocka_unit_test(test_mysql_last_row),
        cmocka_unit_test(test_mysql_long_row),
        cmocka_unit_test(test_mysql_greeting),
    };

    return cmocka_run_group_tests_name("parsers", tests, NULL, NULL);
}
