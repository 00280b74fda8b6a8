#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""R1, R6 on two daemons: frames leave only with the acknowledgement of their epoch, in order, none lost."""
import random
import time

from remus_hosts import SLOW, Pair, Suite, wait_for

suite = Suite()


@suite.test
def late_acknowledgements_hold_frames_R1_R6():
    with Pair() as pair:
        pair.proxy.filter = lambda way, kind, *_: random.uniform(0, 0.05) if kind == "ACK" else 0
        pair.protect()
        pair.wait_epochs(60)
        assert pair.check_released() > 100


@suite.test
def withheld_acknowledgement_holds_for_ever_R1():
    with Pair(timeout=2000) as pair:
        pair.protect()
        pair.wait_epochs(20)
        stop_at = pair.primary.do("status")["epoch"] + 5
        pair.proxy.filter = lambda way, kind, epoch, _: None if kind == "ACK" and epoch >= stop_at else 0
        wait_for("two are in flight", lambda: pair.primary.do("status")["in_flight"] == 2)
        time.sleep(0.2)
        count = pair.primary.sink.count()
        time.sleep(0.5)
        assert pair.primary.sink.count() == count, "frames left without an acknowledgement"
        assert pair.primary.do("status")["net"]["held_frames"] > 0
        pair.check_released()


@suite.test
def slow_link_slows_epochs_down_and_loses_nothing_R6_R9():
    with Pair(timeout=3000) as pair:
        pair.proxy.filter = lambda way, kind, *_: 0.03 * SLOW if kind == "END" else 0
        pair.protect()
        pair.wait_epochs(30)
        status = pair.primary.do("status")
        assert status["in_flight"] <= 2 and status["waited"] > 0, status
        pair.check_released()


@suite.test
def short_link_losses_without_restart_R1_R4():
    with Pair(takeover="manual", degrade_after=60000) as pair:
        pair.protect()
        for _ in range(6):
            pair.wait_epochs(random.randint(3, 12))
            pair.proxy.cut()
            pair.primary.wait_state("protected")
            pair.backup.wait_state("ready")
        pair.wait_epochs(5)
        pair.check_released()
        pair.primary.kill_host()
        pair.backup.wait_state("suspect")
        pair.backup.do("takeover")
        pair.check_takeover()


def primary_dies():
    with Pair(takeover="automatic", fake_rate=3000) as pair:
        pair.proxy.filter = lambda way, kind, *_: random.uniform(0, 0.01)
        pair.protect()
        pair.wait_epochs(random.randint(5, 40))
        time.sleep(random.uniform(0, 0.02))
        pair.primary.kill_host()
        pair.backup.wait_state("active")
        pair.check_released()
        pair.check_takeover()


for time_over in range(5):
    suite.test(primary_dies, f"primary_dies_at_random_moment_{time_over + 1}_R1_R2_R4")

suite.main()
