#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A crash before and after each step of the protocol, on each side; each case is a named fault (docs/HACKING.md)."""
import os
import time
from functools import partial

from remus_hosts import Pair, Suite, wait_for

suite = Suite()
AT = 40  # the epoch at which it happens: long after the synchronisation


def primary_crashes(fault):
    """The host dies with its daemon: the replica goes on from a checkpoint that covers all that was released."""
    with Pair(takeover="automatic") as pair:
        pair.backup.start()
        pair.primary.start(f"{fault}@{AT}")
        pair.primary.wait_crash()
        pair.primary.kill_guest()
        epoch = pair.check_takeover()
        assert AT - 2 <= epoch <= AT + 1, epoch  # the next one may be whole, too
        pair.check_released()


def daemon_crashes(fault):
    """Only remusd dies: the guest lives, nothing is released, the next remusd finds it and protects it again."""
    with Pair(takeover="manual") as pair:
        pair.backup.start()
        pair.primary.start(f"{fault}@{AT}")
        pair.primary.wait_crash()
        guest = pair.primary.guest_pid()
        assert guest, "the guest must outlive remusd"
        told = pair.primary.sink.count()
        pair.backup.wait_state("suspect")
        pair.proxy.refuse = True  # R1: held until the backup has spoken
        pair.primary.start()
        pair.primary.wait_state("holding")
        assert pair.primary.sink.count() == told, "R1: released without the backup"
        pair.proxy.refuse = False
        pair.primary.wait_state("protected")
        assert pair.primary.guest_pid() == guest
        pair.wait_epochs(5)
        wait_for("frames flow again", lambda: len(pair.primary.sink.frames) > told)


def backup_crashes(fault):
    """The primary holds its output, nothing is lost, and it is protected again when a backup is back."""
    with Pair(degrade_after=60000) as pair:
        pair.backup.start(f"{fault}@{AT}")
        pair.primary.start()
        pair.backup.wait_crash()
        pair.primary.wait_state("holding")
        assert pair.primary.guest_pid()
        pair.backup.start()
        pair.primary.wait_state("protected")
        pair.wait_epochs(5)
        pair.check_released()
        pair.primary.kill_host()
        pair.backup.wait_state("suspect")
        pair.backup.do("takeover")
        pair.check_takeover()


@suite.test
def host_dies_while_everything_is_sent_anew_R1_R2_R4():
    """remusd crashed, and before the next one has sent everything its host dies, too."""
    for cut in (False, True):
        with Pair(takeover="manual", memory=256, fake_rate=1200) as pair:  # meanwhile far less than a quarter changes
            pair.protect()
            pair.wait_epochs(3 * AT)
            kept = pair.resync_without_end()
            assert pair.synchronising
            if cut:  # and it is sent once more, over a new link
                count = pair.proxy.counts["STATE"]
                pair.proxy.cut()
                wait_for("the same again", lambda: pair.proxy.counts["STATE"] > count)
            pair.primary.kill_host()
            pair.backup.wait_state("suspect")
            pair.backup.do("takeover")
            assert pair.check_takeover() == kept


@suite.test
def guest_dies_while_everything_is_sent_anew_R1_R7():
    """It did not shut down: the backup still has a checkpoint."""
    with Pair(takeover="manual", fake_rate=300) as pair:
        pair.protect()
        pair.wait_epochs(AT)
        pair.primary.kill_daemon()
        pair.backup.wait_state("suspect")
        pair.proxy.filter = lambda way, kind, *_: 1 if kind == "END" else 0
        pair.primary.start()
        pair.primary.wait_state("syncing")
        pair.primary.kill_guest()
        pair.primary.wait_state("shut-down", "handed-over")
        if pair.backup.wait_state("suspect", "active")["state"] == "suspect":
            pair.backup.do("takeover")
        pair.check_takeover()


PRIMARY = ("primary-before-suspend", "primary-after-suspend", "primary-after-resume", "primary-before-end",
           "primary-after-end", "primary-before-release", "primary-after-release")
BACKUP = ("backup-before-ack", "backup-before-apply", "backup-amid-apply", "backup-after-apply")
for rules, run, faults in (("R1_R2_R4_R7", primary_crashes, PRIMARY), ("R1_R7", daemon_crashes, PRIMARY),
                           ("R1_R4", backup_crashes, BACKUP)):
    for name in faults:
        suite.test(partial(run, name), f"{run.__name__}_at_{name}_{rules}")


@suite.test
def backup_crashes_in_takeover_R7():
    """The backup that comes after it must not welcome the old primary: the replica may have run."""
    with Pair(takeover="automatic") as pair:
        pair.backup.start("backup-before-activate")
        pair.primary.start()
        pair.primary.wait_state("protected")
        pair.wait_epochs(5)
        pair.primary.kill_host()
        pair.backup.wait_crash()
        pair.backup.start()
        pair.backup.wait_state("waiting", "active")


@suite.test
def backup_crashes_after_takeover_R3():
    """The backup that comes after it resets what the activated checkpoint lists; without the list nothing may leave."""
    for damage in (False, True):
        with Pair(takeover="automatic") as pair:
            pair.protect()
            pair.wait_epochs(5)
            pair.primary.kill_host()
            pair.check_takeover()
            path = os.path.join(pair.backup.dir, "fake1.net")
            with open(path, "rb") as f:
                assert f.read(2) == b"\0\1", "the network state, version 1"
            pair.backup.kill_daemon()
            if damage:
                with open(path, "r+b") as f:
                    f.write(b"\xff")
            told = pair.backup.sink.count()
            pair.backup.start()
            pair.backup.wait_state("active")
            if damage:
                assert "held" in (pair.backup.do("status")["last_error"] or ""), pair.backup.do("status")
                time.sleep(0.3)
                assert pair.backup.sink.count() == told, "R3: packets left without the list"
            else:
                wait_for("announced again", lambda: any(f.announcement or not f.ours
                                                        for f in list(pair.backup.sink.frames)[told:]))
                wait_for("the guest is heard again", lambda: any(f.ours for f in list(pair.backup.sink.frames)[told:]))


@suite.test
def lost_acknowledgement_R1_R4():
    """The primary never sees an acknowledgement: it waits, and a new link goes on from what the backup holds."""
    with Pair(takeover="manual", degrade_after=60000) as pair:
        pair.backup.start()
        pair.primary.start(f"ack-lost@{AT}")
        wait_for("acks go on", lambda: pair.primary.do("status")["acked_epoch"] > AT)
        pair.check_released()


@suite.test
def wrong_digest_is_refused_whole_R2_R4():
    with Pair(takeover="manual", degrade_after=60000) as pair:
        pair.backup.start()
        pair.primary.start(f"digest-wrong@{AT}")
        wait_for("protection goes on", lambda: pair.primary.do("status")["acked_epoch"] > AT + 5)
        assert AT not in pair.proxy.acks, "R2: acknowledged although the digest was wrong"
        assert "digest" in pair.backup.do("status")["last_error"]
        pair.check_released()
        pair.primary.kill_host()
        pair.backup.wait_state("suspect")
        pair.backup.do("takeover")
        pair.check_takeover()


@suite.test
def guest_whose_identity_cannot_be_kept_R7_R9():
    """Nobody may protect it, since a crash would forget it; each new attempt begins with nothing left of the one before."""
    with Pair() as pair:
        pair.backup.start()
        identity = os.path.join(pair.primary.dir, "fake1.guest")
        os.mkdir(identity)
        pair.primary.start()

        def maps():
            with open(f"/proc/{pair.primary.daemon.pid}/maps", encoding="ascii") as f:
                return f.read().count("memfd:remus-fake1 ")

        wait_for("it says why", lambda: "fake1.guest" in (pair.primary.do("status")["last_error"] or ""))
        guest = pair.primary.guest_pid()
        for _ in range(3):
            began = time.monotonic()
            pair.primary.do("protect")
            wait_for("another attempt", lambda began=began: pair.primary.do("status")["last_error_s"] < time.monotonic() - began)
        wait_for("nothing is left of them", lambda: maps() == 0)
        os.rmdir(identity)
        pair.primary.do("protect")
        pair.primary.wait_state("protected")
        assert pair.primary.guest_pid() == guest
        pair.wait_epochs(5)
        pair.check_released()


suite.main()
