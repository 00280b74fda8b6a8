#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""R1, R2, R4, R6: whatever happens to link and daemons, in any order, the primary's death loses nothing."""
import random
import time
from functools import partial

from remus_hosts import Pair, Suite

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


def schedule():
    with Pair(**SETTINGS) as pair:
        events = random.choices((cut, stall, unreachable, slow, backup_daemon, primary_daemon), k=6)
        print("#", *(e.__name__ for e in events), flush=True)
        pair.protect()
        safe = True  # the backup has held a checkpoint ever since
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
        pair.primary.kill_host()
        pair.backup.wait_state("suspect")
        pair.backup.do("takeover")
        pair.check_takeover()


for number in range(6):
    suite.test(partial(schedule), f"schedule_{number + 1}_R1_R2_R4_R6")

suite.main()
