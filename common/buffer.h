/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A byte buffer that grows and is recycled: buffer_clear() keeps the memory, so that a buffer used once an
 * epoch stops allocating after the first epochs.
 */
#ifndef REMUS_BUFFER_H
#define REMUS_BUFFER_H

#include <stddef.h>
#include <stdint.h>

struct buffer {
    uint8_t *data;
    size_t len, cap;
};

/* Makes room for `more` bytes beyond len.  0, or -1 with errno ENOMEM and the buffer as it was. */
int buffer_reserve(struct buffer *b, size_t more);
int buffer_append(struct buffer *b, const void *data, size_t len);
void buffer_clear(struct buffer *b);
void buffer_free(struct buffer *b);

#endif
