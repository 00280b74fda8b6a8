/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * XXH3-64 (xxhash.h) over whatever is long: with the widest vectors of the processor where libxxhash chooses at run time,
 * which is three times as fast on octets that are in a cache; otherwise as compiled here.  An XXH3_state_t on the heap
 * comes from XXH3_createState(): its alignment is more than malloc's.
 */
#ifndef REMUS_HASH_H
#define REMUS_HASH_H

#ifdef HAVE_XXH_DISPATCH
#define XXH_STATIC_LINKING_ONLY
#include <xxh_x86dispatch.h>
#else
#define XXH_INLINE_ALL
#include <xxhash.h>
#endif

#endif
