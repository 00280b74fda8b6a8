/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <glob.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transcript.h"

#define LINE_MAX_ 512

struct run {
    const struct transcript_machine *m;
    const char *path;
    bool print;            /* show what is said, compare nothing */
    unsigned line, cases;
    unsigned command_line; /* of the command whose output is being compared */
    char title[LINE_MAX_]; /* of the open case; "" for none */
    char failure[2048];    /* the first of the case */
    bool failed;           /* any case of the program */
};

static char said[1 << 16];
static size_t said_at; /* up to where it was compared */

void transcript_say(const char *fmt, ...)
{
    size_t at = strlen(said);
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(said + at, sizeof(said) - at - 1, fmt, ap);
    va_end(ap);
    strcat(said, "\n");
}

static void fail(struct run *r, const char *what, const char *text)
{
    if (!r->failure[0])
        snprintf(r->failure, sizeof(r->failure), "%s:%u: %s%s", r->path, r->line, what, text);
}

/* The next line that was said and not yet compared; NULL when there is none. */
static char *next_said(void)
{
    char *line = said + said_at, *end = strchr(line, '\n');

    if (!end)
        return NULL;
    *end = '\0';
    said_at = (size_t)(end + 1 - said);
    return line;
}

static void end_command(struct run *r)
{
    char *line;

    while ((line = next_said()))
        if (r->print)
            printf("%s\n", line);
        else
            fail(r, "it said more before this line: ", line);
    said[0] = '\0';
    said_at = 0;
}

static void end_case(struct run *r)
{
    end_command(r);
    if (r->title[0] && !r->print) {
        r->cases++;
        printf("%sok %u - %s\n", r->failure[0] ? "not " : "", r->cases, r->title);
        if (r->failure[0])
            printf("# %s\n", r->failure);
        r->failed |= r->failure[0] != '\0';
    }
    r->failure[0] = r->title[0] = '\0';
}

static void do_line(struct run *r, const char *line)
{
    char word[32];
    int args = 0;

    if (!line[0] && r->print) {
        end_command(r);
    } else if (strncmp(line, "case ", 5) == 0) {
        end_case(r);
        snprintf(r->title, sizeof(r->title), "%s", line + 5);
        r->m->begin();
    } else if (sscanf(line, "> %31s %n", word, &args) == 1) {
        end_command(r);
        if (!r->title[0])
            fail(r, "command before the first case: ", line);
        else if (!r->m->command(word, line + args))
            fail(r, "no such command: ", line);
    } else if (line[0] && line[0] != '#' && !r->print) {
        const char *got = next_said();
        char text[LINE_MAX_ * 2];

        if (got && strcmp(got, line) == 0)
            return;
        snprintf(text, sizeof(text), "%s\n#   instead of: %s", got ? got : "nothing", line);
        fail(r, "it said: ", text);
    }
}

static void do_file(struct run *r, const char *path)
{
    FILE *f = fopen(path, "r");
    char line[LINE_MAX_];

    r->path = path;
    r->line = 0;
    if (!f) {
        printf("Bail out! cannot read %s\n", path);
        exit(1);
    }
    while (fgets(line, sizeof(line), f)) {
        r->line++;
        line[strcspn(line, "\n")] = '\0';
        do_line(r, line);
        if (r->print && (!line[0] || strchr(">#", line[0]) || strncmp(line, "case ", 5) == 0))
            printf("%s\n", line);
    }
    end_case(r);
    fclose(f);
}

int transcript_main(int argc, char **argv, const struct transcript_machine *m)
{
    const char *top = getenv("top_srcdir");
    struct run r = {.m = m, .print = argc > 1};
    char pattern[4096];
    glob_t files;

    for (int i = 1; i < argc; i++)
        do_file(&r, argv[i]);
    if (r.print)
        return 0;
    snprintf(pattern, sizeof(pattern), "%s/tests/transcripts/%s/*.txt", top ? top : "..", m->name);
    if (glob(pattern, 0, NULL, &files) != 0) {
        printf("Bail out! no transcripts at %s\n", pattern);
        return 1;
    }
    for (size_t i = 0; i < files.gl_pathc; i++)
        do_file(&r, files.gl_pathv[i]);
    globfree(&files);
    printf("1..%u\n", r.cases);
    return r.failed;
}
