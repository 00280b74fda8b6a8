/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a server sends, as a whole and cut into pieces as the first octet says: the parser must come
 * to the same. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "netbuf/parser.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static unsigned feed(const uint8_t *data, size_t len, size_t piece)
{
    uint8_t state[PARSER_STATE_MAX] __attribute__((aligned(8))) = {0};
    unsigned parsed = 0, ends = 0;

    parser_pgsql.init(state);
    while (len > 0 && !(parsed & PARSED_LOST)) {
        size_t n = len < piece ? len : piece;
        parsed = parser_pgsql.from_guest(state, data, n);
        ends |= parsed & PARSED_END;
        data += n;
        len -= n;
    }
    return parsed & PARSED_LOST ? PARSED_LOST : parsed | ends;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (len < 2)
        return 0;
    if (feed(data + 1, len - 1, len - 1) != feed(data + 1, len - 1, 1 + data[0] % 16))
        abort();
    return 0;
}
