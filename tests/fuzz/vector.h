/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef REMUS_FUZZ_VECTOR_H
#define REMUS_FUZZ_VECTOR_H

#include "compress/page-words.h"

/* Which vector code: by the input's length, so that each is tried. */
static inline const char *vector(size_t len)
{
    const struct page_words_ops *const *list = page_words_list();
    size_t n = 0;

    while (list[n])
        n++;
    return list[len % n]->name;
}

#endif
