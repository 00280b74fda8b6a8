/* SPDX-License-Identifier: GPL-2.0-or-later */
/* For tests that talk to a real server: "PARSER" as argument; a line of hexadecimal digits for what the
 * server sent, or with '>' before them for what its client sent.  A line of flags for each: E end, B in
 * block, L lost. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "netbuf/parser.h"

static int value(char digit)
{
    return digit <= '9' ? digit - '0' : digit - 'a' + 10;
}

int main(int argc, char **argv)
{
    uint8_t state[PARSER_STATE_MAX] __attribute__((aligned(8)));
    const struct parser *parser = argc == 2 ? parser_find(argv[1]) : NULL;
    char *line = NULL;
    size_t cap = 0;
    ssize_t len;

    if (!parser)
        return 2;
    parser->init(state);
    while ((len = getline(&line, &cap, stdin)) > 0) {
        const char *digits = line + (line[0] == '>');
        size_t n = strlen(digits) / 2;
        uint8_t *data = malloc(n + 1);
        unsigned parsed;

        for (size_t i = 0; i < n; i++)
            data[i] = (uint8_t)(value(digits[2 * i]) << 4 | value(digits[2 * i + 1]));
        parsed = (line[0] == '>' ? parser->from_client : parser->from_guest)(state, data, n);
        printf("%s%s%s\n", parsed & PARSED_END ? "E" : "", parsed & PARSED_IN_BLOCK ? "B" : "",
               parsed & PARSED_LOST ? "L" : "");
        fflush(stdout);
        free(data);
    }
    free(line);
    return 0;
}
