/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * remusctl: asks the daemons of this host over their control sockets (common/control.h) and shows
 * the answer.
 *
 *   main.c     options and the table of verbs
 *   verb-*.c   one file a verb, or two that belong together
 *   client.c   one request, one answer; the answers of both daemons together
 *   show.c     a VM's status for a person
 *   watch.c    follows a VM's status until an operation has ended
 */
#ifndef REMUS_REMUSCTL_H
#define REMUS_REMUSCTL_H

#include <jansson.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>

/* Exit statuses as in LSB and OCF; remusctl(8) explains them. */
enum {
    STATUS_OK = 0,
    STATUS_FAILED = 1,
    STATUS_USAGE = 2,
    STATUS_NOT_PROTECTED = 3,
    STATUS_UNKNOWN = 4, /* and: no permission */
    STATUS_UNKNOWN_VM = 6,
    STATUS_NO_DAEMON = 7,
    STATUS_DIFFERENT = 8, /* verify */
};

enum side { PRIMARY, BACKUP }; /* remusd, remus-backupd */

struct ctl {
    const char *run_dir;
    const char *socket; /* -s: the only daemon to ask; NULL = both of run_dir */
    bool json;
};

struct failure {
    int status;       /* exit status */
    char code[16];    /* the daemon's (common/control.h), or no-daemon, daemon-gone, no-permission,
                         no-answer, interrupted */
    char text[1024];
};

struct verb {
    const char *name, *args, *help;
    int min_args, max_args;
    /*
     * Prints what is to print on success; 0 or an exit status, with f filled unless it says
     * f->text = "".
     */
    int (*run)(const struct ctl *ctl, int argc, char **argv, struct failure *f);
};

extern const struct verb list_verb, status_verb, protect_verb, unprotect_verb, takeover_verb,
    switchover_verb, discard_verb, set_verb, verify_verb, preflight_verb, forget_verb;

/* client.c.  Each returns 0 or f->status. */
int fail(struct failure *f, int status, const char *code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* args: reference taken, may be NULL.  *result: new reference. */
int call(const struct ctl *ctl, enum side side, const char *verb, const char *vm, json_t *args,
         json_t **result, struct failure *f);
/*
 * `verb` asked of both daemons: *vms is an array of VM objects.  One daemon that is not there is
 * no failure.
 */
int call_both(const struct ctl *ctl, const char *verb, const char *vm, json_t **vms,
              struct failure *f);

/* show.c */
bool is_safe_state(const json_t *vm); /* protected, or ready to take over */
const char *text_at(const json_t *vm, const char *key); /* "" when it is not there */
double number_at(const json_t *vm, const char *path); /* "sync.percent"; NAN: not there */
void show_verdict(FILE *out, const json_t *vm);         /* one line */
void show_trouble(FILE *out, const json_t *vm);         /* what is wrong, what to do */
void show_status(const json_t *vm);
void make_printable(json_t *value); /* strings come from outside: no control characters */
int print_json(json_t *object);     /* with "format":1; takes the reference */
int print_vms(json_t *vms);         /* {"format":1,"vms":[...]}; takes the reference */

/* An operation that takes time, as seen in the status. */
struct goal {
    const char *verb;
    enum side side;
    const char *target;          /* state in which it is done */
    const char *const *underway; /* states in which it may still be; NULL-terminated */
    bool back_is_failure;        /* in the state of before, with a new error, it has failed */
};

/*
 * watch.c.  Sends the verb and shows the progress until the goal is reached or missed.  Ctrl-C ends
 * the watching, not the operation.
 */
int pursue(const struct ctl *ctl, const struct goal *goal, const char *vm, struct failure *f);
void catch_interrupts(void); /* from now on Ctrl-C sets: */
extern volatile sig_atomic_t interrupted;

#endif
