/* SPDX-License-Identifier: GPL-2.0-or-later */
/* For tests that talk to a real server: "PARSER" as argument, hexadecimal digits of what the server
 * sent a line, a line of flags for each: E end, B in block, L lost. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "netbuf/parser.h"

int main(int argc, char **argv)
{
    static const struct parser *const parsers[] = {&parser_pgsql};
    uint8_t state[PARSER_STATE_MAX] __attribute__((aligned(8)));
    const struct parser *parser = NULL;
    char *line = NULL;
    size_t cap = 0;
    ssize_t len;

    for (size_t i = 0; i < sizeof(parsers) / sizeof(parsers[0]); i++)
        if (argc == 2 && strcmp(argv[1], parsers[i]->name) == 0)
            parser = parsers[i];
    if (!parser)
        return 2;
    parser->init(state);
    while ((len = getline(&line, &cap, stdin)) > 0) {
        size_t n = (size_t)len / 2;
        uint8_t *data = malloc(n + 1);
        unsigned parsed;

        for (size_t i = 0; i < n; i++)
            if (sscanf(line + 2 * i, "%2hhx", &data[i]) != 1)
                return 2;
        parsed = parser->from_guest(state, data, n);
        printf("%s%s%s\n", parsed & PARSED_END ? "E" : "", parsed & PARSED_IN_BLOCK ? "B" : "",
               parsed & PARSED_LOST ? "L" : "");
        fflush(stdout);
        free(data);
    }
    free(line);
    return 0;
}
