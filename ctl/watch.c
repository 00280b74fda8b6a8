/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "remusctl.h"

#define POLL_NS (100 * NS_PER_MS)
#define LINE_NS NS_PER_S        /* between lines about the same state */
#define GRACE_NS (2 * NS_PER_S) /* until an operation must show in the status */
#define FRESH_S 5               /* an older error is not what is wrong now */
#define BACK_NS NS_PER_S        /* for which a state of before must last to count as failure */

volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
}

void catch_interrupts(void)
{
    const struct sigaction action = {.sa_handler = on_interrupt}; /* no SA_RESTART: calls end */

    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

struct watch {
    const struct goal *goal;
    uint64_t began, last_line, back_since;
    char before[64], before_error[512]; /* state and last error from before the operation */
    char shown[64], shown_error[512];
};

enum outcome { GOES_ON, REACHED, MISSED };

static bool underway(const struct goal *goal, const char *state)
{
    for (const char *const *s = goal->underway; *s; s++)
        if (strcmp(state, *s) == 0)
            return true;
    return false;
}

/* remusd is starting or finding the guest, which may take long, and has had no error since we asked. */
static bool is_opening(const struct watch *w, const json_t *vm, uint64_t now)
{
    bool failed = *text_at(vm, "last_error") && !(number_at(vm, "last_error_s") * 1e9 > (double)(now - w->began));

    return w->goal->side == PRIMARY && !*text_at(vm, "accelerator") && !failed;
}

static enum outcome judge(struct watch *w, const json_t *vm, uint64_t now)
{
    const char *state = text_at(vm, "state");
    bool same = strcmp(state, w->before) == 0;
    bool new_error = strcmp(text_at(vm, "last_error"), w->before_error) != 0;

    if (strcmp(state, w->goal->target) == 0)
        return REACHED;
    if (!same || !new_error)
        w->back_since = now;
    if (!underway(w->goal, state))
        return same && (now - w->began < GRACE_NS || is_opening(w, vm, now)) ? GOES_ON : MISSED;
    return w->goal->back_is_failure && now - w->back_since > BACK_NS ? MISSED : GOES_ON;
}

static void show_progress(struct watch *w, const json_t *vm, uint64_t now)
{
    const char *state = text_at(vm, "state"), *error = text_at(vm, "last_error");
    bool fresh = *error && !(number_at(vm, "last_error_s") > FRESH_S);
    bool news = strcmp(state, w->shown) != 0 || (fresh && strcmp(error, w->shown_error) != 0);

    if (!news && (now - w->last_line < LINE_NS || strcmp(state, "syncing") != 0))
        return;
    show_verdict(stdout, vm);
    if (fresh && strcmp(error, w->shown_error) != 0)
        printf("  %s\n", error);
    fflush(stdout);
    snprintf(w->shown, sizeof(w->shown), "%s", state);
    if (fresh)
        snprintf(w->shown_error, sizeof(w->shown_error), "%s", error);
    w->last_line = now;
}

static int get_status(const struct ctl *ctl, const struct goal *goal, const char *vm,
                      json_t **status, struct failure *f)
{
    if (call(ctl, goal->side, "status", vm, NULL, status, f))
        return f->status;
    if (json_is_object(*status)) {
        make_printable(*status);
        return 0;
    }
    json_decref(*status);
    return fail(f, STATUS_UNKNOWN, "no-answer", "the daemon's answer makes no sense");
}

static int finish(const struct ctl *ctl, const struct watch *w, enum outcome outcome, json_t *vm,
                  struct failure *f)
{
    if (ctl->json) {
        int rc = print_vms(json_pack("[O]", vm));

        f->text[0] = '\0';
        return outcome == REACHED ? rc : (f->status = STATUS_FAILED);
    }
    if (outcome == REACHED) {
        show_verdict(stdout, vm);
        return 0;
    }
    show_verdict(stderr, vm);
    show_trouble(stderr, vm);
    return fail(f, STATUS_FAILED, "failed", "%s of %s has failed", w->goal->verb,
                text_at(vm, "vm"));
}

int pursue(const struct ctl *ctl, const struct goal *goal, const char *vm, struct failure *f)
{
    struct watch w = {.goal = goal, .began = clock_ns()};
    const struct timespec pause = {0, POLL_NS};
    json_t *status = NULL, *result = NULL;

    if (get_status(ctl, goal, vm, &status, f))
        return f->status;
    snprintf(w.before, sizeof(w.before), "%s", text_at(status, "state"));
    snprintf(w.before_error, sizeof(w.before_error), "%s", text_at(status, "last_error"));
    json_decref(status);

    catch_interrupts();
    if (call(ctl, goal->side, goal->verb, vm, NULL, &result, f))
        return f->status;
    json_decref(result);
    while (!interrupted) {
        enum outcome outcome;
        uint64_t now;

        if (get_status(ctl, goal, vm, &status, f))
            break;
        now = clock_ns();
        outcome = judge(&w, status, now);
        if (outcome != GOES_ON) {
            int rc = finish(ctl, &w, outcome, status, f);

            json_decref(status);
            return rc;
        }
        if (!ctl->json)
            show_progress(&w, status, now);
        json_decref(status);
        nanosleep(&pause, NULL);
    }
    if (interrupted)
        return fail(f, STATUS_UNKNOWN, "interrupted",
                    "no longer watching; the %s of %s goes on: remusctl status %s", goal->verb, vm,
                    vm);
    return f->status;
}
