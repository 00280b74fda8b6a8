#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""R7: who may run the VM alone.  Degrade policies, arbiter, operator, switchover, clean ends."""
import os
import signal
import time

from remus_hosts import SLOW, Pair, Suite, wait_for

suite = Suite()


def arbiter(pair, answer):
    """A script that notes who asked and answers with the exit status in a file; both hosts can be given it."""
    path = os.path.join(pair.dir, "arbiter")
    with open(path, "w", encoding="ascii") as f:
        f.write(f'#!/bin/sh\necho "$@" >>{path}.asked\nexit $(cat {path}.answer)\n')
    os.chmod(path, 0o755)
    answer_arbiter(pair, answer)
    return path


def answer_arbiter(pair, answer):
    with open(os.path.join(pair.dir, "arbiter.answer"), "w", encoding="ascii") as f:
        f.write(str(answer))


def asked(pair):
    try:
        with open(os.path.join(pair.dir, "arbiter.asked"), encoding="ascii") as f:
            return f.read().splitlines()
    except FileNotFoundError:
        return []


def with_arbiter(answer, **keys):
    """The arbiter's path is only known when the pair has a directory: write the configuration again."""
    pair = Pair(**keys)
    command = "exec " + arbiter(pair, answer)
    for host in (pair.primary, pair.backup):
        with open(host.config, encoding="ascii") as f:
            text = f.read()
        with open(host.config, "w", encoding="ascii") as f:
            f.write(text.replace("}\n", f'    arbiter = "{command}"\n}}\n'))
    return pair


def lose_backup(pair):
    pair.protect()
    pair.wait_epochs(10)
    pair.proxy.refuse = True
    pair.backup.kill_daemon()
    pair.primary.wait_state("holding", "asking", "unprotected", "stopped")


def lose_link(pair):
    """Until pair.proxy.refuse is False again."""
    pair.proxy.refuse = True
    pair.proxy.cut()
    pair.primary.wait_state("holding")


def released(pair):
    return pair.primary.sink.count()


def guest_is_ended(pair):
    """The state says so a moment before it is done."""
    wait_for("the guest on the primary is ended", lambda: not pair.primary.guest_pid())


@suite.test
def hold_waits_for_the_backup_R1_R7():
    with Pair(degrade="hold", degrade_after=100) as pair:
        lose_backup(pair)
        told = -1
        while told != (told := released(pair)):  # what was acknowledged may still be on its way out
            time.sleep(0.1)
        time.sleep(0.6)
        assert (released(pair), pair.primary.state()) == (told, "holding"), told
        assert pair.primary.guest_pid()
        pair.primary.do("unprotect")  # the operator's word
        pair.primary.wait_state("off")
        wait_for("the output is let go", lambda: released(pair) > told + 20)
        numbers = [f.number for f in pair.primary.sink.beacons()]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "R6"


@suite.test
def release_without_an_arbiter_waits_for_the_operator_R7():
    with Pair(degrade="release", degrade_after=100) as pair:
        lose_backup(pair)
        time.sleep(0.6)
        assert pair.primary.state() == "holding"
        assert "unprotect" in pair.primary.do("status")["advice"]


@suite.test
def release_with_the_arbiters_grant_R7():
    with with_arbiter(0, degrade="release", degrade_after=100) as pair:
        lose_backup(pair)
        pair.primary.wait_state("unprotected")
        assert any(line.startswith("fake1 primary ") for line in asked(pair)), asked(pair)
        told = released(pair)
        wait_for("it goes on alone", lambda: released(pair) > told + 20)
        pair.proxy.refuse = False
        pair.backup.start()
        pair.primary.wait_state("protected")  # by itself, as soon as there is a backup
        pair.wait_epochs(5)


@suite.test
def checkpoint_from_before_a_release_counts_no_more_R1_R7():
    """Clients know more than it does: it is gone as soon as everything is sent anew."""
    with Pair(takeover="manual") as pair:
        pair.protect()
        pair.wait_epochs(10)
        lose_link(pair)
        pair.backup.wait_state("suspect")
        pair.primary.do("unprotect")
        pair.primary.wait_state("off")
        told, before = released(pair), pair.proxy.counts["STATE"]
        wait_for("output is let go", lambda: released(pair) > told)
        pair.lose_ends()
        pair.proxy.refuse = False
        pair.primary.do("protect")
        wait_for("a checkpoint but for its end", lambda: pair.proxy.counts["STATE"] > before)
        status = pair.backup.do("status")
        assert status["state"] == "syncing" and status["epoch"] == 0, status
        pair.primary.kill_host()
        pair.backup.wait_state("waiting")


@suite.test
def release_denied_by_the_arbiter_R7():
    with with_arbiter(1, degrade="release", degrade_after=100) as pair:
        lose_backup(pair)
        wait_for("the arbiter is asked", lambda: asked(pair))
        pair.primary.wait_state("holding")
        told = released(pair)
        time.sleep(0.3)
        assert released(pair) == told, "went on alone without a grant"
        wait_for("it says so", lambda: "denied" in pair.primary.do("status")["last_error"])  # so do attempts to connect


@suite.test
def degrade_does_not_wait_for_a_backup_that_says_nothing_R7():
    """It is connected to, and silent: remusd would wait for 5 s.  The arbiter, which says no, is asked again after 2 s."""
    with with_arbiter(1, degrade="release", degrade_after=100, timeout=1000) as pair:
        pair.protect()
        os.kill(pair.backup.daemon.pid, signal.SIGSTOP)
        times = []
        for n in range(4):
            wait_for("the arbiter is asked", lambda n=n: len(asked(pair)) > n)
            times.append(time.monotonic())
        assert min(b - a for a, b in zip(times, times[1:])) < 5, times
        os.kill(pair.backup.daemon.pid, signal.SIGCONT)
        pair.primary.wait_state("protected")


@suite.test
def stop_ends_the_guest_R7():
    with Pair(degrade="stop", degrade_after=100) as pair:
        lose_backup(pair)
        pair.primary.wait_state("stopped")
        guest_is_ended(pair)


@suite.test
def takeover_waits_for_the_operator_without_an_arbiter_R7():
    with Pair() as pair:
        pair.protect()
        reply = pair.backup.request("takeover")
        assert not reply["ok"] and "switchover" in reply["error"], reply  # the primary lives
        pair.primary.kill_host()
        pair.backup.wait_state("suspect")
        time.sleep(0.5)
        assert pair.backup.state() == "suspect" and not pair.backup.guest_pid()
        advice = pair.backup.do("status")["advice"]
        assert "its remusd back" in advice and "remusctl takeover fake1" in advice, advice
        pair.backup.do("takeover")
        pair.check_takeover()


@suite.test
def takeover_waits_for_the_arbiter_R7():
    with with_arbiter(1) as pair:
        pair.protect()
        pair.primary.kill_host()
        wait_for("the arbiter is asked", lambda: asked(pair))
        pair.backup.wait_state("suspect")
        assert not pair.backup.guest_pid()
        pair.backup.do("takeover")  # the operator cannot overrule the arbiter
        time.sleep(0.3)
        assert not pair.backup.guest_pid()
        answer_arbiter(pair, 0)
        pair.check_takeover()
        assert all(line.startswith("fake1 backup ") for line in asked(pair)), asked(pair)


@suite.test
def silence_is_a_failure_and_the_old_primary_ends_itself_R7():
    """The link goes silent both ways; the backup takes over; when the link is back the old guest must end."""
    with Pair(takeover="automatic", timeout=300, degrade_after=60000) as pair:
        pair.protect()
        pair.wait_epochs(10)
        pair.proxy.stalled.set()
        pair.backup.wait_state("active")
        time.sleep(0.2)
        pair.check_released()  # the cut-off primary does not go on alone
        pair.proxy.stalled.clear()
        pair.primary.wait_state("lost")
        guest_is_ended(pair)
        assert pair.backup.guest_pid()
        pair.check_released()


@suite.test
def busy_is_not_gone_R7():
    """As long as anything is delivered there is no takeover: heartbeats without data, data without heartbeats."""
    for lost in ("HEARTBEAT", "PAGES"):
        with Pair(takeover="automatic", timeout=300, degrade_after=60000) as pair:
            pair.protect()
            pair.wait_epochs(5)
            pair.proxy.filter = lambda way, kind, *_: None if way == "P" and kind == lost else 0
            if lost == "PAGES":  # a checkpoint that never becomes whole: only heartbeats are left
                pair.proxy.filter = lambda way, kind, *_: 0 if way == "B" or kind == "HEARTBEAT" else None
            time.sleep(1.2 * SLOW)
            assert pair.backup.state() == "ready", pair.backup.log()


@suite.test
def clean_stop_of_remusd_is_no_failure_R7():
    with Pair(takeover="automatic") as pair:
        pair.protect()
        guest = pair.primary.guest_pid()
        assert pair.primary.stop() == 0
        time.sleep(0.5)
        status = pair.backup.do("status")
        assert status["state"] == "waiting" and "remusctl status fake1 there" in status["advice"], status
        assert pair.primary.guest_pid() == guest, "the guest outlives remusd"
        pair.primary.start()
        pair.primary.wait_state("protected")
        assert pair.primary.guest_pid() == guest


@suite.test
def clean_stop_of_the_backup_holds_R1_R7():
    with Pair(degrade_after=60000) as pair:
        pair.protect()
        assert pair.backup.stop() == 0
        pair.primary.wait_state("holding")
        pair.backup.start()
        pair.primary.wait_state("protected")


@suite.test
def unprotect_and_protect_again_R7():
    with Pair(takeover="automatic") as pair:
        pair.protect()
        pair.wait_epochs(5)
        pair.primary.do("unprotect")
        pair.primary.wait_state("off")
        pair.backup.wait_state("waiting")
        told = released(pair)
        wait_for("nothing is held any more", lambda: released(pair) > told + 20)
        pair.primary.do("protect")
        pair.primary.wait_state("protected")
        pair.wait_epochs(5)


@suite.test
def guest_that_shuts_down_is_no_failure_R7():
    with Pair(takeover="automatic") as pair:
        pair.protect()
        os.kill(pair.primary.guest_pid(), 15)  # its power button
        pair.primary.wait_state("shut-down")
        time.sleep(0.3)
        assert pair.backup.state() == "waiting"


@suite.test
def guest_that_shut_down_is_started_and_protected_again_R1_R7():
    with Pair(takeover="automatic") as pair:
        pair.protect()
        for _ in range(2):
            guest = pair.primary.guest_pid()
            os.kill(guest, 15)
            pair.primary.wait_state("shut-down")
            pair.primary.do("protect")
            pair.primary.wait_state("protected")
            assert pair.primary.guest_pid() not in (None, guest)
            pair.wait_epochs(10)
        pair.primary.sink.frames.clear()  # what the guest before it said
        pair.wait_epochs(20)
        pair.primary.kill_host()
        pair.check_takeover()


@suite.test
def guest_that_ended_is_not_started_while_its_replica_waits_R7():
    """Its process died and the link was cut: the backup is asked before there is a second one."""
    with Pair(takeover="manual") as pair:
        pair.protect()
        pair.wait_epochs(10)
        lose_link(pair)
        pair.primary.kill_guest()
        pair.primary.wait_state("shut-down")
        pair.backup.wait_state("suspect")
        pair.proxy.refuse = False
        pair.primary.do("protect")
        wait_for("it says why", lambda: "discard" in (pair.primary.do("status")["last_error"] or ""))
        assert not pair.primary.guest_pid()
        pair.backup.do("takeover")
        pair.check_takeover()


@suite.test
def guest_whose_process_dies_is_handed_over_R1_R7():
    with Pair() as pair:
        pair.protect()
        pair.wait_epochs(10)
        pair.primary.kill_guest()
        pair.primary.wait_state("handed-over")
        pair.check_takeover()


@suite.test
def guest_that_dies_while_a_new_link_catches_up_is_handed_over_R1_R7():
    with Pair(timeout=5000) as pair:
        pair.protect()
        pair.wait_epochs(10)
        pair.proxy.filter = lambda way, kind, *_: 2 if kind == "END" else 0
        pair.proxy.cut()
        pair.primary.wait_state("syncing")
        pair.primary.kill_guest()
        pair.primary.wait_state("handed-over")
        pair.check_takeover()


@suite.test
def switchover_loses_nothing_R1_R7():
    with Pair() as pair:
        pair.protect()
        pair.wait_epochs(10)
        pair.primary.do("switchover")
        pair.primary.wait_state("handed-over")
        guest_is_ended(pair)
        pair.check_takeover()
        told = [f.number for f in pair.primary.sink.beacons()]
        on = [f.number for f in pair.backup.sink.beacons()]
        assert on[0] == told[-1] + 1, "a frame was lost between the two hosts"
        reply = pair.primary.request("unprotect")
        assert not reply["ok"] and "no guest" in reply["error"], reply
        assert pair.backup.do("status")["last_error"] is None, "a planned end of the link is no error"
        lacks = pair.primary.do("preflight")["lacks"]
        assert ["runs on the backup" in lack["what"] for lack in lacks] == [True], lacks


@suite.test
def switchover_broken_in_the_middle_runs_once_R7():
    """The word HANDOVER is lost: the guest stays suspended until the link shows that it may go on here."""
    with Pair(degrade_after=60000) as pair:
        pair.protect()
        pair.proxy.filter = lambda way, kind, *_: None if kind == "HANDOVER" else 0
        pair.primary.do("switchover")
        time.sleep(0.5)
        pair.proxy.filter = lambda *_: 0
        pair.proxy.cut()
        pair.primary.wait_state("protected")
        assert not pair.backup.guest_pid()
        pair.wait_epochs(10)
        pair.check_released()


@suite.test
def fresh_guest_is_not_started_while_the_vm_runs_elsewhere_R7():
    with Pair(takeover="automatic") as pair:
        pair.protect()
        pair.primary.kill_host()
        pair.backup.wait_state("active")
        pair.primary.start()
        wait_for("it says why", lambda: pair.primary.do("status")["last_error"])
        assert "runs on this backup" in pair.primary.do("status")["last_error"]
        assert not pair.primary.guest_pid()


@suite.test
def fresh_guest_does_not_replace_a_checkpoint_that_waits_R7():
    with Pair() as pair:
        pair.protect()
        pair.primary.kill_host()
        pair.backup.wait_state("suspect")
        pair.primary.start()
        wait_for("it says why", lambda: pair.primary.do("status")["last_error"])
        assert not pair.primary.guest_pid()
        pair.backup.do("discard")
        pair.backup.wait_state("waiting", "syncing", "ready")
        pair.primary.do("protect")
        pair.primary.wait_state("protected")


@suite.test
def end_of_a_guest_that_an_earlier_daemon_activated_is_seen_R7():
    """Whether the remus-backupd that comes later finds the guest, and loses it, or does not find it."""
    for dies_before in (False, True):
        with Pair() as pair:
            pair.protect()
            pair.primary.kill_host()
            pair.backup.wait_state("suspect")
            pair.backup.do("takeover")
            pair.backup.wait_state("active")
            pair.backup.kill_daemon()
            if dies_before:
                pair.backup.kill_guest()
            pair.backup.start()
            if not dies_before:
                status = pair.backup.wait_state("active")
                assert status["memory_bytes"] and not status["takeover"], status
                pair.backup.kill_guest()
            wait_for("its end is seen", lambda: "start it here" in (pair.backup.do("status")["advice"] or ""))
            status = pair.backup.do("status")
            assert status["state"] == "waiting" and "taken over" in status["last_error"], status
            with open(os.path.join(pair.backup.dir, "fake1.active"), encoding="ascii") as f:
                assert f.read().split()[1] == "ended"
            pair.primary.start()  # a new guest may be protected here, and all is well again
            assert pair.backup.wait_state("ready")["advice"] is None


@suite.test
def refusal_shows_on_both_hosts():
    with Pair(backup_keys={"memory": 32}) as pair:
        pair.backup.start()
        pair.primary.start()
        for host in (pair.primary, pair.backup):
            wait_for("a refusal", lambda host=host: "make them equal" in (host.do("status")["last_error"] or ""))


@suite.test
def preflight_finds_nothing_missing_where_it_works():
    with Pair(interval=500) as pair:
        pair.protect()
        for host, role in (pair.primary, "primary"), (pair.backup, "backup"):
            found = host.do("preflight")
            assert found["role"] == role and found["lacks"] == [], found


@suite.test
def interval_changes_while_running():
    with Pair() as pair:
        pair.protect()
        pair.primary.do("set", interval=200)
        assert pair.primary.do("status")["interval_ms"] == 200
        pair.wait_epochs(2)
        before = pair.primary.do("status")["epoch"]
        time.sleep(1)
        assert pair.primary.do("status")["epoch"] - before <= 7
        reply = pair.primary.request("set", interval=1)
        assert not reply["ok"] and reply["code"] == "usage", reply


suite.main()
