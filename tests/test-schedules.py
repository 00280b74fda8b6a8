#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""R1, R2, R4, R6: whatever happens to link and daemons, in any order, the primary's death loses nothing.  R7: and whatever
happens while both ask the arbiter, one of them runs the VM."""
import contextlib
import importlib
import os
import random
import signal
import threading
import time
from functools import partial

from remus_hosts import PATIENCE, Pair, Suite, say, wait_for

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


def one_way(pair):
    """What one of them sends comes late."""
    way, end = random.choice("PB"), time.monotonic() + random.uniform(0, 0.6)
    pair.proxy.filter = lambda direction, *_: max(0, end - time.monotonic()) if direction == way else 0
    time.sleep(max(0, end - time.monotonic()))
    pair.proxy.filter = lambda *_: 0


def corrupt(pair):
    pair.proxy.corrupt_next = True


def pause(pid):
    """Also for longer than the timeout."""
    os.kill(pid, signal.SIGSTOP)
    time.sleep(random.uniform(0, 0.6))
    os.kill(pid, signal.SIGCONT)


def primary_sleeps(pair):
    pause(pair.primary.daemon.pid)


def backup_sleeps(pair):
    pause(pair.backup.daemon.pid)


def guest_sleeps(pair):
    pause(pair.primary.guest_pid())


def restart(host):
    host.kill_daemon()
    time.sleep(random.uniform(0, 0.2))
    host.start()


def backup_daemon(pair):
    restart(pair.backup)


def primary_daemon(pair):
    restart(pair.primary)


def both_daemons(pair):
    hosts = random.sample((pair.primary, pair.backup), 2)
    for host in hosts:
        host.kill_daemon()
        time.sleep(random.choice((0, 0.1)))
    for host in random.sample(hosts, 2):
        host.start()
        time.sleep(random.choice((0, 0.1)))


EVENTS = (cut, stall, unreachable, slow, one_way, corrupt, primary_sleeps, backup_sleeps, guest_sleeps, backup_daemon,
          primary_daemon, both_daemons)


def run_events(pair):
    events = random.choices(EVENTS, k=6)
    say("# " + " ".join(e.__name__ for e in events))
    safe = True
    for event in events:
        time.sleep(random.choice((0, 0.02, 0.1)))
        event(pair)
        safe = safe and event not in (backup_daemon, both_daemons)
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
    pair.check_released(events.count(primary_daemon) + events.count(both_daemons))


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


class Lock:
    """An arbiter: who asks first has the VM.  It takes a while."""

    def __init__(self, pair):
        self.path = os.path.join(pair.dir, "arbiter")
        with open(self.path, "w", encoding="ascii") as f:
            f.write(f"#!/bin/sh\necho $$ >>{self.path}.asked\nsleep {random.choice((0, 0.1, 0.4))}\n"
                    f"mkdir {self.path}.lock && echo $2 >{self.path}.lock/owner\n[ $(cat {self.path}.lock/owner) = $2 ]\n")
        os.chmod(self.path, 0o755)
        for host in (pair.primary, pair.backup):
            with open(host.config, "r+", encoding="ascii") as f:
                text = f.read().replace("}\n", f'    arbiter = "exec {self.path}"\n}}\n')
                f.seek(0)
                f.write(text)

    def asked(self):
        """Its processes, also those that have ended."""
        with contextlib.suppress(FileNotFoundError), open(self.path + ".asked", encoding="ascii") as f:
            return [int(pid) for pid in f.read().split()]
        return []

    def wait_asked(self, count=1):
        wait_for("the arbiter is asked", lambda: len(self.asked()) >= count)
        time.sleep(random.uniform(0, 0.6))


@contextlib.contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    yield
    os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def silent(pair, ways):
    """Nothing arrives in these directions; then all of it."""
    over = threading.Event()
    pair.proxy.filter = lambda way, *_: (way in ways and not over.wait(PATIENCE)) and 0
    yield
    pair.proxy.filter = lambda *_: 0
    over.set()
    if random.random() < 0.5:
        pair.proxy.cut()


def arbiter_dies(pair, lock):
    with silent(pair, "PB"):
        lock.wait_asked()
        with contextlib.suppress(ProcessLookupError):
            os.kill(lock.asked()[-1], signal.SIGKILL)
        lock.wait_asked(2)


def asker_dies(pair, lock):
    with silent(pair, "PB"):
        lock.wait_asked()
        restart(random.choice((pair.primary, pair.backup)))


def one_sleeps(pair, lock):
    with stopped(random.choice((pair.primary, pair.backup)).daemon.pid):
        lock.wait_asked()


def one_is_not_heard(pair, lock):
    with silent(pair, random.choice(("P", "B", "PB"))):
        lock.wait_asked()


def race(event):
    """R7: it ends with a VM on one host, and clients saw nothing of the other one's that this one does not know."""
    with Pair(degrade="release", degrade_after=random.choice((100, 300, 600)), timeout=1000) as pair:
        lock = Lock(pair)
        pair.protect()
        pair.wait_epochs(3)
        event(pair, lock)

        def settled():
            """A remus-backupd that dies while it takes over leaves none: nobody knows whether the replica has run."""
            states = (pair.primary.state(), pair.backup.state())
            return states in (("lost", "active"), ("protected", "ready"), ("lost", "waiting"))
        wait_for("one of them has the VM", settled)
        count = pair.primary.sink.count()
        wait_for("frames flow", lambda: pair.backup.sink.beacons() or pair.primary.sink.count() > count
                 or pair.backup.state() == "waiting")
        if pair.backup.sink.beacons():
            pair.primary.wait_state("lost")
            wait_for("the guest on the primary is ended", lambda: not pair.primary.guest_pid())
            pair.primary.sink.count()
            told = [f.number for f in pair.primary.sink.beacons()]
            assert told[-1] < pair.backup.sink.beacons()[0].number, told[-1]
        else:
            assert not (pair.primary.guest_pid() and pair.backup.guest_pid())


for how in (arbiter_dies, asker_dies, one_sleeps, one_is_not_heard):
    suite.test(partial(race, how), f"race_{how.__name__}_R1_R7")
for number in range(6):
    suite.test(partial(schedule), f"schedule_{number + 1}_R1_R2_R4_R6")
if disk.available():
    for number in range(2):
        suite.test(partial(schedule_with_disks), f"schedule_with_disks_{number + 1}_R1_R2_R4_R5")

suite.main()
