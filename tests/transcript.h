/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Runs text transcripts against a pure machine.  tests/transcripts/NAME/ holds files like this:
 *
 *     # comment
 *     case R7: the arbiter's word is needed
 *     > event arguments
 *     what the machine says to it
 *     > advance 50
 *
 * Lines behind a command are what it must say; empty lines do not count. Each case begins with a
 * new machine and is one TAP line. `test-NAME FILE` prints the file with what the machine really
 * says: so new cases are written, and then read with care.
 */
#ifndef REMUS_TEST_TRANSCRIPT_H
#define REMUS_TEST_TRANSCRIPT_H

#include <stdbool.h>

struct transcript_machine {
    const char *name;
    void (*begin)(void);
    bool (*command)(const char *word, const char *args); /* false: no such command */
};

/* One line of output of the command being run. */
void transcript_say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* main() of a test program. */
int transcript_main(int argc, char **argv, const struct transcript_machine *m);

#endif
