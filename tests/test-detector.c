/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Transcripts of backup/detector.h. After each command the machine is run until it has nothing to
 * do; its actions and, when it changed, its state are said. Behind `advance`, with the milliseconds
 * since its start.
 */
#include <stdio.h>
#include <string.h>

#include "backup/detector.h"
#include "common/clock.h"
#include "transcript.h"

#define TICK_MS 5 /* how often standby.c runs the detector */

static struct detector d;
static uint64_t now;
static enum detector_state shown;

static void begin(void)
{
    now = 1000 * NS_PER_S;
    detector_init(&d, false, false, now);
    shown = d.state;
}

static void run(uint64_t began)
{
    static const char *const words[] = {
        [DT_ASK] = "ask", [DT_CANCEL] = "cancel", [DT_ACTIVATE] = "activate"};
    enum detector_action action;
    char when[32] = "";

    if (began)
        snprintf(when, sizeof(when), "+%llu ", (unsigned long long)((now - began) / NS_PER_MS));
    while ((action = detector_run(&d, now)) != DT_NOTHING)
        transcript_say("%s%s", when, words[action]);
    if (d.state == shown)
        return;
    shown = d.state;
    if (shown == DT_SUSPECT || shown == DT_ASKING || shown == DT_TAKING_OVER)
        transcript_say("%s%s (%s)", when, detector_name(shown), d.reason);
    else
        transcript_say("%s%s", when, detector_name(shown));
}

/* Time passes; every `beat` ms something is heard, every `data` ms a checkpoint is complete. */
static void advance(unsigned ms, unsigned beat, unsigned data)
{
    uint64_t began = now;

    for (unsigned t = TICK_MS; t <= ms; t += TICK_MS) {
        now = began + t * NS_PER_MS;
        if ((beat && t % beat == 0) || (data && t % data == 0))
            detector_heard(&d, now, now);
        if (data && t % data == 0)
            detector_committed(&d, now);
        run(began);
    }
}

static bool command(const char *word, const char *args)
{
    unsigned ms = 0, every = 0, timeout = 200;
    struct error err;
    char arg[32] = "";

    sscanf(args, "%31s", arg);
    sscanf(args, "%u %u", &ms, &every);
    if (strcmp(word, "new") == 0) {
        detector_init(&d, strstr(args, "arbiter"), strstr(args, "automatic"), now);
    } else if (strcmp(word, "advance") == 0) {
        advance(ms, 0, 0);
        return true;
    } else if (strcmp(word, "heartbeats") == 0) {
        advance(ms, every ? every : 20, 0);
        return true;
    } else if (strcmp(word, "data") == 0) {
        advance(ms, 0, every);
        return true;
    } else if (strcmp(word, "away") == 0) { /* this host was busy: nobody ran the detector */
        now += ms * NS_PER_MS;
    } else if (strcmp(word, "connected") == 0) {
        sscanf(args, "%*s %u", &timeout);
        detector_connected(&d, strcmp(arg, "whole") == 0, timeout * NS_PER_MS, now);
    } else if (strcmp(word, "committed") == 0) {
        detector_committed(&d, now);
    } else if (strcmp(word, "given-up") == 0) {
        detector_given_up(&d, now);
    } else if (strcmp(word, "heard") == 0) { /* heard N: what came N ms ago is read now */
        detector_heard(&d, now - ms * NS_PER_MS, now);
    } else if (strcmp(word, "closed") == 0) {
        detector_closed(&d, "closed", now);
    } else if (strcmp(word, "goodbye") == 0) {
        detector_goodbye(&d, now);
    } else if (strcmp(word, "handover") == 0) {
        detector_handover(&d, now);
    } else if (strcmp(word, "granted") == 0) {
        detector_arbiter(&d, true, now);
    } else if (strcmp(word, "denied") == 0) {
        detector_arbiter(&d, false, now);
    } else if (strcmp(word, "activated") == 0) {
        detector_activated(&d, true, now);
    } else if (strcmp(word, "activation-failed") == 0) {
        detector_activated(&d, false, now);
    } else if (strcmp(word, "takeover") == 0) {
        if (detector_operator(&d, now, &err) < 0)
            transcript_say("refused: %s", err.text);
    } else {
        return false;
    }
    run(0);
    return true;
}

int main(int argc, char **argv)
{
    static const struct transcript_machine machine = {"detector", begin, command};

    return transcript_main(argc, argv, &machine);
}
