/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a server and its client send, in turns as the input says, as a whole and cut into pieces: the
 * parser must come to the same. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "netbuf/parser.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/* Input: turns of 1 octet (lowest bit: the client speaks; the others: length) and what is said. */
static unsigned feed(const struct parser *parser, const uint8_t *data, size_t len, size_t piece)
{
    uint8_t state[PARSER_STATE_MAX] __attribute__((aligned(8))) = {0};
    unsigned parsed = 0, block = 0, ends = 0;

    parser->init(state);
    while (len > 0) {
        size_t turn = data[0] / 2u;
        unsigned (*from)(void *, const uint8_t *, size_t) =
            data[0] & 1 ? parser->from_client : parser->from_guest;

        data++;
        len--;
        turn = turn < len ? turn : len;
        len -= turn;
        for (; turn > 0; turn -= piece < turn ? piece : turn) {
            size_t n = piece < turn ? piece : turn;
            parsed = from ? from(state, data, n) : 0;
            data += n;
            if (parsed & PARSED_LOST)
                return PARSED_LOST;
            ends |= parsed & PARSED_END;
            if (from == parser->from_guest)
                block = parsed & PARSED_IN_BLOCK;
            else if (parsed)
                abort();
        }
    }
    return block | ends;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    const struct parser *parser;

    if (len < 2)
        return 0;
    parser = data[0] & 0x80 ? &parser_mysql : &parser_pgsql;
    if (feed(parser, data + 1, len - 1, len) != feed(parser, data + 1, len - 1, 1 + data[0] % 16))
        abort();
    return 0;
}
