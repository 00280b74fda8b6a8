# SPDX-License-Identifier: GPL-2.0-or-later
"""Two hosts on one machine for the integration tests: daemons, a fake guest, sinks for its frames, and a
proxy between the daemons that reads, delays, drops or cuts the protocol.  No root needed.

    with Pair() as pair:                 # directories, ports, configurations
        pair.backup.start(); pair.primary.start()
        pair.primary.wait_state("protected")
        pair.primary.kill_host()         # daemon and guest, as a power failure would
        pair.backup.wait_state("active")
"""
import contextlib
import fcntl
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback

BUILD = os.environ.get("top_builddir", ".")
TYPES = ("", "HELLO", "WELCOME", "REFUSE", "HEARTBEAT", "PAGES", "STATE", "NET", "END", "ACK", "GOODBYE",
         "HANDOVER", "ACTIVATED", "DISK", "DISK_END", "DISKS", "COMPARED", "MACHINE",
         "BLOCKS", "PROBE", "LACK")
SLOW = int(os.environ.get("REMUS_TEST_SLOW", 1))  # how much slower the build under test is, with a sanitizer
PATIENCE = 60 * SLOW  # seconds that anything may take on a busy machine
SLOTS = max(1, 3 * os.cpu_count() // SLOW)  # tests that run at a time, in all programs of a build together


def wait_for(what, condition, patience=PATIENCE):
    """Polls until condition() is true and returns it; fails naming `what`."""
    end = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"timed out: {what}")
        time.sleep(0.01)


def say(line):
    """A line of TAP in one write: several processes speak at a time, and print() may do it in two."""
    os.write(1, (line + "\n").encode())


@contextlib.contextmanager
def slot():
    """Waits for a free one of SLOTS."""
    while True:
        for n in range(SLOTS):
            with open(os.path.join(BUILD, "tests", f"slot-{n}.lock"), "ab") as f:
                try:
                    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield
                return
        time.sleep(0.02)


def free_port():
    """Outside of the range that the kernel takes ports of connections from, and another for each process."""
    while True:
        port = 10000 + os.getpid() % 220 * 100 + random.randrange(100)
        try:
            socket.create_server(("127.0.0.1", port)).close()
            return port
        except OSError:
            pass


class Frame:
    """A frame of the fake guest (vm/fake/fake.h)."""

    def __init__(self, data, at):
        self.at = at
        self.ours = len(data) >= 58 and data[12:18] == b"\x88\xb5RMFK"
        self.announcement = data[12:14] == b"\x08\x06"
        if self.ours:
            self.kind, self.number, self.seq, self.requests = struct.unpack(">IQQQ", data[18:46])


class Sink(threading.Thread):
    """The network behind a host: receives what the host lets out."""

    MARK = b"up to here"

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path = path
        self.frames = []
        self.marked = threading.Event()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.start()

    def run(self):
        while True:
            try:
                data = self.socket.recv(65536)
            except OSError:
                return
            if not data:
                return
            if data == self.MARK:
                self.marked.set()
            else:
                self.frames.append(Frame(data, time.monotonic()))

    def count(self):
        """Of all that was sent to it so far, though this thread may not have read it yet."""
        self.marked.clear()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(self.MARK, self.path)
        assert self.marked.wait(PATIENCE), "the sink reads nothing"
        return len(self.frames)

    def beacons(self):
        return [f for f in list(self.frames) if f.ours and f.kind == 1]


class Host:
    daemon = None

    def __init__(self, pair, name, program):
        self.pair, self.name, self.program = pair, name, program
        self.dir = os.path.join(pair.dir, name)
        os.mkdir(self.dir)
        self.sink = Sink(os.path.join(self.dir, "lan"))
        self.log_path = os.path.join(pair.dir, name + ".log")

    def write_config(self, listen, **vm):
        keys = {"platform": "fake", "memory": 16, "interval": 10, "fake-rate": 2000, "fake-frames": 400,
                "tap": "unix:" + self.sink.path, "mac": "52:54:00:00:00:01", "timeout": 2000}
        keys.update({k.replace("_", "-"): v for k, v in vm.items()})
        keys.update({k: keys[k] * SLOW for k in ("interval", "timeout")}, **{"fake-rate": keys["fake-rate"] // SLOW})

        def text(v):
            if isinstance(v, bool):
                return "yes" if v else "no"
            return str(v) if isinstance(v, int) else json.dumps(v)
        self.config = os.path.join(self.pair.dir, self.name + ".conf")
        with open(self.config, "w", encoding="ascii") as f:
            f.write(f'run-dir = "{self.dir}"\nlisten = "{listen}"\nvm fake1 {{\n')
            f.writelines(f"    {k} = {text(v)}\n" for k, v in keys.items() if v is not None)
            f.write("}\n")

    def start(self, faults=""):
        env = dict(os.environ, REMUS_FAULT=faults, REMUS_LIBEXEC=os.path.join(BUILD, "vm"),
                   REMUS_TEST_HOST=self.dir)
        program = os.path.join(BUILD, "remusd" if self.program == "remusd" else "backup", self.program)
        with open(self.log_path, "ab") as log:
            self.daemon = subprocess.Popen([program, "-f", "-c", self.config], env=env, stdout=log,
                                           stderr=log, stdin=subprocess.DEVNULL)
        wait_for(f"{self.program} listens", lambda: self.alive() is False or self.try_status() is not None)
        assert self.alive(), f"{self.program} did not start:\n" + self.log()

    def alive(self):
        return self.daemon is not None and self.daemon.poll() is None

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def request(self, verb, **args):
        """The reply as a dictionary."""
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(PATIENCE)
        with s:
            s.connect(os.path.join(self.dir, self.program + ".sock"))
            s.sendall(json.dumps({"format": 1, "verb": verb, "vm": "fake1", "args": args}).encode() + b"\n")
            data = b""
            while not data.endswith(b"\n"):
                more = s.recv(65536)
                if not more:
                    raise OSError("control socket closed")
                data += more
        return json.loads(data)

    def do(self, verb, **args):
        reply = self.request(verb, **args)
        assert reply["ok"], reply
        return reply["result"]

    def try_status(self):
        try:
            reply = self.request("status")
        except OSError:
            return None
        return reply["result"] if reply["ok"] else {"state": reply["code"]}

    def state(self):
        status = self.try_status()
        return status and status["state"]

    def wait_state(self, *states):
        try:
            return wait_for("state", lambda: (s := self.try_status()) and s["state"] in states and s)
        except AssertionError:
            raise AssertionError(f"{self.name} is {self.state()}, not {' or '.join(states)}\n{self.log()}") from None

    def guest_pid(self):
        try:
            with open(os.path.join(self.dir, "fake1.fake.pid"), encoding="ascii") as f:
                pid = int(f.read().split()[0])
            os.kill(pid, 0)
            with open(f"/proc/{pid}/stat", encoding="ascii") as f:
                return None if f.read().rsplit(")", 1)[1].split()[0] == "Z" else pid
        except (OSError, ValueError, IndexError):
            return None

    def kill_daemon(self):
        self.daemon.kill()
        self.daemon.wait()

    def wait_crash(self):
        wait_for(f"{self.name} crashes at its fault\n{self.log()}", lambda: not self.alive())
        assert self.daemon.returncode == -signal.SIGKILL, self.daemon.returncode

    def kill_guest(self):
        pid = self.guest_pid()
        if pid:
            os.kill(pid, signal.SIGKILL)

    def kill_host(self):
        """The daemon first: it must not see its guest die."""
        self.kill_daemon()
        self.kill_guest()

    def stop(self):
        """SIGTERM; the exit status."""
        self.daemon.terminate()
        return self.daemon.wait(PATIENCE)

    def close(self):
        if self.alive():
            self.kill_daemon()
        self.kill_guest()
        self.sink.socket.close()
        mark = f"REMUS_TEST_HOST={self.dir}".encode()
        for pid in filter(str.isdigit, os.listdir("/proc")):  # whom a daemon had just started when it was killed
            try:
                with open(f"/proc/{pid}/environ", "rb") as f:
                    if mark in f.read().split(b"\0"):
                        os.kill(int(pid), signal.SIGKILL)
            except OSError:
                pass


class Proxy(threading.Thread):
    """Between primary and backup.  Every whole record passes through `filter`, which may keep it back:

    filter(direction "P" or "B", type name, epoch, body) -> seconds of delay, or None to drop it.
    `acked` is the last epoch whose ACK has been passed on, `states` maps an epoch to its machine state."""

    def __init__(self, backup_port):
        super().__init__(daemon=True)
        self.backup_port = backup_port
        self.filter = lambda direction, kind, epoch, body: 0
        self.acks = {}     # epoch -> time at which its ACK was passed on
        self.states = {}   # epoch -> octets of STATE
        self.ended = {}    # epoch -> those whose END was passed on; a new remusd counts anew
        self.covered = []  # (beacons that a checkpoint covers, when its ACK was passed on)
        self.counts = {}
        self.connections = []
        self.stalled = threading.Event()  # while set nothing passes in either direction
        self.refuse = False
        self.corrupt_next = False  # one octet of the next record is changed
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self):
        while True:
            try:
                a, _ = self.listener.accept()
            except OSError:
                return
            if self.refuse:
                a.close()
                continue
            try:
                b = socket.create_connection(("127.0.0.1", self.backup_port))
            except OSError:
                a.close()
                continue
            for s in (a, b):
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections = [c for c in self.connections if c.fileno() >= 0] + [a, b]
            ended = []
            threading.Thread(target=self.pump, args=(a, b, "P", ended), daemon=True).start()
            threading.Thread(target=self.pump, args=(b, a, "B", ended), daemon=True).start()

    def pump(self, source, target, direction, ended):
        """What the other direction still carries arrives, though this one may be broken already."""
        data = b""
        try:
            while True:
                more = source.recv(1 << 20)
                if not more:
                    break
                data += more
                while len(data) >= 24:
                    kind, _, length, epoch = struct.unpack(">HHIQ", data[:16])
                    if len(data) < 24 + length:
                        break
                    record, data = data[:24 + length], data[24 + length:]
                    self.record(target, direction, TYPES[kind], epoch, record)
        except OSError:
            pass
        for s, way in ((source, socket.SHUT_RD), (target, socket.SHUT_WR)):
            with contextlib.suppress(OSError):
                s.shutdown(way)
        ended.append(direction)
        if len(ended) == 2:
            source.close()
            target.close()

    def record(self, target, direction, kind, epoch, record):
        delay = self.filter(direction, kind, epoch, record[24:])
        if delay is None:
            return
        if kind == "STATE":
            self.states[epoch] = record[24:]
        if delay:
            time.sleep(delay)
        while self.stalled.is_set():
            time.sleep(0.005)
        if kind == "ACK":
            self.acks[epoch] = time.monotonic()
            if epoch in self.states:
                self.covered.append((beacons_in(self.states[epoch]), self.acks[epoch]))
        if kind == "END" and epoch in self.states:
            self.ended.setdefault(epoch, []).append(self.states[epoch])
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if direction == "P" and self.corrupt_next:
            self.corrupt_next = False
            at = random.randrange(len(record))
            record = record[:at] + bytes([record[at] ^ 1 << random.randrange(8)]) + record[at + 1:]
        target.sendall(record)

    def cut(self):
        """Breaks the connection, as a cable that is pulled and put back."""
        for s in self.connections:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.refuse = True
        if self.listener.fileno() >= 0:
            self.listener.shutdown(socket.SHUT_RDWR)  # or the accept that waits takes one more connection
        self.listener.close()
        self.cut()


def beacons_in(state):
    """Beacons that a guest had sent at this machine state (vm/fake/model.h)."""
    return struct.unpack(">IIQQQQ", state[:40])[5]


class Pair:
    """keys: of the VM's section, on both hosts; primary_keys, backup_keys: on one of them."""

    def __init__(self, primary_keys=None, backup_keys=None, **keys):
        self.dir = tempfile.mkdtemp(prefix="remus-test-")
        port = free_port()
        self.proxy = Proxy(port)
        self.primary = Host(self, "primary", "remusd")
        self.backup = Host(self, "backup", "remus-backupd")
        self.primary.write_config("127.0.0.1:7910", **{
            "backup": f"127.0.0.1:{self.proxy.port}", "protect": True, **keys, **(primary_keys or {})})
        self.backup.write_config(f"127.0.0.1:{port}", **{**keys, **(backup_keys or {})})
        self.port = port

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind:
            for host in (self.primary, self.backup):
                sys.stderr.write(f"--- {host.name}\n{host.log() if os.path.exists(host.log_path) else ''}\n")
        self.proxy.close()
        self.primary.close()
        self.backup.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def protect(self):
        self.backup.start()
        self.primary.start()
        self.primary.wait_state("protected")
        self.backup.wait_state("ready")  # it acknowledges first, then applies

    def wait_epochs(self, count):
        start = self.primary.do("status")["acked_epoch"]
        wait_for(f"{count} more epochs\n{self.primary.log()}",
                 lambda: self.primary.do("status")["acked_epoch"] >= start + count)

    def lose_ends(self):
        """From now on the end of a checkpoint never arrives, and nothing behind it."""
        count, ended = self.proxy.filter, False
        self.synchronising = 0  # records of PAGES

        def no_end(way, kind, epoch, body):
            nonlocal ended
            if way == "P" and kind in ("HELLO", "END"):
                ended = kind == "END"
            self.synchronising += kind == "PAGES" and epoch == 0
            return None if way == "P" and ended and kind != "HEARTBEAT" else count(way, kind, epoch, body)
        self.proxy.filter = no_end

    def resync_without_end(self):
        """remusd dies, comes back, and sends everything anew, but the end of that never arrives.  The
        checkpoint that the backup has meanwhile."""
        self.primary.kill_daemon()
        self.backup.wait_state("suspect")
        kept, before = self.backup.do("status")["epoch"], self.proxy.counts["STATE"]
        self.lose_ends()
        self.primary.start()
        wait_for("a checkpoint but for its end", lambda: self.proxy.counts["STATE"] > before)
        status = self.backup.do("status")
        assert status["state"] == "ready" and status["epoch"] == kept, status
        assert "anew" in status["advice"], status
        return kept

    # --- rules ---

    def check_released(self, restarts=0):
        """R1, R6: what left the primary is covered by an acknowledgement, in order, and without a gap but
        where remusd was killed: what it held is gone with it."""
        covered = list(self.proxy.covered)
        last = None
        for f in self.primary.sink.beacons():
            if last is not None and f.number != last + 1:
                restarts -= 1
                assert f.number > last and restarts >= 0, f"R6: beacon {f.number} after {last}"
            last = f.number
            if f.number <= covered[0][0]:
                continue  # from before the first checkpoint: nothing was held yet
            at = min((a for n, a in covered if n >= f.number), default=float("inf"))
            assert at <= f.at, f"R1: beacon {f.number} left before a checkpoint with it was acknowledged"
        return last

    def check_takeover(self):
        """The replica went on exactly where its checkpoint was, and knows all that clients were told (R1, R2)."""
        epoch = self.backup.wait_state("active")["takeover"]["epoch"]
        first = wait_for("the replica sends", self.backup.sink.beacons)[0].number
        assert first - 1 in [beacons_in(state) for state in self.proxy.ended[epoch]], (first, epoch)
        self.primary.sink.count()
        told = [f.number for f in self.primary.sink.beacons()]
        assert not told or told[-1] < first, "R1: a client knows more than the replica"
        wait_for("the takeover is announced", lambda: any(f.announcement or not f.ours
                                                          for f in list(self.backup.sink.frames)))
        return epoch


def run_test(number):
    return running.run(number)


class Suite:
    """TAP for automake.  Tests are functions; a test's name names the rule that it checks.  SLOTS of
    them run at a time, each in a process of its own: they mostly wait.  SEED=N repeats what is random."""

    def __init__(self):
        self.tests = []
        self.seed = int(os.environ.get("SEED", time.time()))

    def test(self, function, name=None):
        self.tests.append((name or function.__name__, function))
        return function

    def run(self, number):
        """What went wrong: (short, long), or None."""
        random.seed(f"{self.seed} {number}")
        try:
            with slot():
                self.tests[number][1]()
            return None
        except Exception as e:  # pylint: disable=broad-except
            return f"{e!r}"[:300].replace("\n", " "), traceback.format_exc()

    def main(self):
        wanted = sys.argv[1:]
        self.tests = [t for t in self.tests if not wanted or any(w in t[0] for w in wanted)]
        say(f"1..{len(self.tests)}")
        global running  # the processes find it there
        running = self
        failed = 0
        with multiprocessing.get_context("fork").Pool(SLOTS, maxtasksperchild=1) as pool:
            for number, wrong in enumerate(pool.imap(run_test, range(len(self.tests)))):
                name = self.tests[number][0]
                if wrong:
                    failed += 1
                    print(f"SEED={self.seed}\n{wrong[1]}", file=sys.stderr)
                    say(f"not ok {number + 1} - {name}: {wrong[0]}")
                else:
                    say(f"ok {number + 1} - {name}")
        sys.exit(failed > 0)
