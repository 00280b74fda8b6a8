/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <string.h>

#include "parser.h"

const struct parser *parser_find(const char *name)
{
    static const struct parser *const parsers[] = {&parser_pgsql, &parser_mysql};

    for (size_t i = 0; i < sizeof(parsers) / sizeof(parsers[0]); i++)
        if (strcmp(parsers[i]->name, name) == 0)
            return parsers[i];
    return NULL;
}
