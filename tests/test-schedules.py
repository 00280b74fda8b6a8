#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""R1, R2, R4, R6: whatever happens to link and daemons, in any order, the primary's death loses nothing."""
import importlib
import random
import time
from functools import partial

from remus_hosts import Pair, Suite, say, wait_for

disk = importlib.import_module("test-disk")
suite = Suite()
# Memory: the old checkpoint is kept while less than a quarter of it changes.
SETTINGS = {"takeover": "manual", "degrade_after": 60000, "timeout": 300, "memory": 512}


def cut(pair):
    pair.proxy.cut()


def stall(pair):
    pair.proxy.stalled.set()
    time.sleep(random.uniform(0, 0.6))
    pair.proxy.stalled.clear()


def unreachable(pair):
    pair.proxy.refuse = True
    pair.proxy.cut()
    time.sleep(random.uniform(0, 0.6))
    pair.proxy.refuse = False


def slow(pair):
    pair.proxy.filter = lambda *_: random.uniform(0, 0.03)
    time.sleep(0.4)
    pair.proxy.filter = lambda *_: 0


def restart(host):
    host.kill_daemon()
    time.sleep(random.uniform(0, 0.2))
    host.start()


def backup_daemon(pair):
    restart(pair.backup)


def primary_daemon(pair):
    restart(pair.primary)


def run_events(pair):
    """True when the backup must hold a checkpoint in the end."""
    events = random.choices((cut, stall, unreachable, slow, backup_daemon, primary_daemon), k=6)
    say("# " + " ".join(e.__name__ for e in events))
    safe = True
    for event in events:
        time.sleep(random.choice((0, 0.02, 0.1)))
        event(pair)
        safe = safe and event != backup_daemon
        if random.random() < 0.6:  # otherwise the next one comes in the middle of what this one began
            pair.primary.wait_state("protected")
            pair.backup.wait_state("ready")
            safe = True
    if not safe or random.random() < 0.5:
        pair.primary.wait_state("protected")
        pair.backup.wait_state("ready")
        pair.wait_epochs(3)
        if random.random() < 0.5:
            pair.proxy.cut()
    pair.check_released(events.count(primary_daemon))


def take_over(pair):
    """Once more when a connection that the primary opened before it died is seen only now, and looks like life."""
    def taken():
        state = pair.backup.state()
        if state == "suspect":
            pair.backup.request("takeover")
        return state == "active"
    wait_for("the backup runs the VM", taken)


def schedule():
    with Pair(**SETTINGS) as pair:
        pair.protect()
        run_events(pair)
        pair.primary.kill_host()
        take_over(pair)
        pair.check_takeover()


def schedule_with_disks():
    with disk.Disks(2, **SETTINGS) as pair:
        pair.protect()
        writer = disk.Writer(pair, pair.primary)
        run_events(pair)
        pair.kill_primary()
        writer.join()
        take_over(pair)
        disk.check_takeover(pair, writer)


for number in range(6):
    suite.test(partial(schedule), f"schedule_{number + 1}_R1_R2_R4_R6")
if disk.available():
    for number in range(2):
        suite.test(partial(schedule_with_disks), f"schedule_with_disks_{number + 1}_R1_R2_R4_R5")

suite.main()
