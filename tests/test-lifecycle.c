/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Transcripts of remusd/lifecycle.h. After each command the machine is run until it has nothing to
 * do; its actions are said, its state when it changed, and whether the guest's output is held when
 * that changed. `advance` sleeps from deadline to deadline, as the daemon does, so it tests
 * lifecycle_deadline() too.
 */
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "remusd/lifecycle.h"
#include "transcript.h"

static struct lifecycle lc;
static uint64_t now;
static enum lifecycle_state shown;
static bool shown_held;

static void show(const char *when)
{
    if (lc.state != shown)
        transcript_say("%s%s", when, lifecycle_name(lc.state));
    if (lc.held != shown_held)
        transcript_say("%soutput is %s", when, lc.held ? "held" : "free");
    shown = lc.state;
    shown_held = lc.held;
}

static void begin(void)
{
    now = 1000 * NS_PER_S;
    lifecycle_init(&lc, DEGRADE_HOLD, false, 2 * NS_PER_S, false, now);
    shown = lc.state;
    shown_held = lc.held;
}

static void run(uint64_t began)
{
    static const char *const words[] = {[LC_CONNECT] = "connect",
                                        [LC_ASK_ARBITER] = "ask",
                                        [LC_RELEASE] = "release",
                                        [LC_DESTROY] = "destroy"};
    enum lifecycle_action action;
    char when[32] = "";

    if (began)
        snprintf(when, sizeof(when), "+%llu ", (unsigned long long)((now - began) / NS_PER_MS));
    show(when);
    while ((action = lifecycle_run(&lc, now)) != LC_NOTHING) {
        transcript_say("%s%s", when, words[action]);
        show(when);
    }
}

static void advance(uint64_t ns)
{
    uint64_t began = now, end = now + ns, due;

    while ((due = lifecycle_deadline(&lc)) <= end) {
        struct lifecycle before = lc;

        if (due > now && lifecycle_run(&before, due - 1) != LC_NOTHING)
            transcript_say("it had something to do before its deadline");
        if (due <= now) {
            transcript_say("its deadline has passed and it does nothing");
            break;
        }
        now = due;
        run(began);
    }
    now = end;
}

static void new_machine(const char *args)
{
    const char *after = strstr(args, "after=");
    unsigned ms = 2000;

    if (after)
        sscanf(after, "after=%u", &ms);
    lifecycle_init(&lc,
                   strstr(args, "release") ? DEGRADE_RELEASE
                   : strstr(args, "stop")  ? DEGRADE_STOP
                                           : DEGRADE_HOLD,
                   strstr(args, "arbiter"), ms * NS_PER_MS, strstr(args, "held"), now);
    if (strstr(args, "protected")) {
        lifecycle_protect(&lc, now);
        lifecycle_run(&lc, now);
        lifecycle_connected(&lc, now);
        lifecycle_first_checkpoint(&lc, now);
        lifecycle_acked(&lc, now);
    }
}

static bool command(const char *word, const char *args)
{
    unsigned ms = 0;

    sscanf(args, "%u", &ms);
    if (strcmp(word, "new") == 0) {
        new_machine(args);
    } else if (strcmp(word, "advance") == 0) {
        advance(ms * NS_PER_MS);
        return true;
    } else if (strcmp(word, "protect") == 0) {
        lifecycle_protect(&lc, now);
    } else if (strcmp(word, "unprotect") == 0) {
        lifecycle_unprotect(&lc, now);
    } else if (strcmp(word, "connected") == 0) {
        lifecycle_connected(&lc, now);
    } else if (strcmp(word, "connect-failed") == 0) {
        lifecycle_connect_failed(&lc, now);
    } else if (strcmp(word, "refused") == 0) {
        lifecycle_refused(&lc, now);
    } else if (strcmp(word, "peer-active") == 0) {
        lifecycle_peer_active(&lc, now);
    } else if (strcmp(word, "first-checkpoint") == 0) {
        lifecycle_first_checkpoint(&lc, now);
    } else if (strcmp(word, "never-held") == 0) {
        lifecycle_never_held(&lc);
    } else if (strcmp(word, "acked") == 0) {
        lifecycle_acked(&lc, now);
    } else if (strcmp(word, "link-lost") == 0) {
        lifecycle_link_lost(&lc, now);
    } else if (strcmp(word, "granted") == 0) {
        lifecycle_arbiter(&lc, true, now);
    } else if (strcmp(word, "denied") == 0) {
        lifecycle_arbiter(&lc, false, now);
    } else if (strcmp(word, "handover-sent") == 0) {
        lifecycle_handover_sent(&lc);
    } else if (strcmp(word, "handed-over") == 0) {
        lifecycle_handed_over(&lc, now);
    } else if (strcmp(word, "guest-gone") == 0) {
        lifecycle_guest_gone(&lc, now);
    } else {
        return false;
    }
    run(0);
    return true;
}

int main(int argc, char **argv)
{
    static const struct transcript_machine machine = {"lifecycle", begin, command};

    return transcript_main(argc, argv, &machine);
}
