#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""remusctl preflight over the link: both hosts and the way between them, in one list, and nothing is touched by it."""
import contextlib
import os
import socket
import struct
import threading
import time

from remus_hosts import SLOW, Pair, Suite, wait_for
from remus_reader import record

suite = Suite()
HELLO, WELCOME, REFUSE, HEARTBEAT, PAGES, MACHINE, PROBE, LACK = 1, 2, 3, 4, 5, 17, 19, 20
PREFLIGHT, FEATURE = 8, 32


def text(s):
    return bytes([len(s)]) + (s if isinstance(s, bytes) else s.encode())


def hello(flags=PREFLIGHT, features=FEATURE, names=4, session=77, vm="fake1"):
    return record(HELLO, 0, struct.pack(">QHHQQQQIIII8x", 0x72656d7573640d0a, 1, 1, features, features, session, 4096, 4096,
                                        20, 500, flags)
                  + text(vm) + text("fake") + text("fake 1 pages=4096") + text("52:54:00:00:00:01") + b"\0" * (names - 2)
                  + (text("auto") if names == 4 else b""))


WELCOME_RECORD = record(WELCOME, 0, struct.pack(">HxxQQ", 1, FEATURE, 0))


def lack(what, remedy="mend it"):
    return record(LACK, 0, text(what) + text(remedy))


def whats(report, *hosts):
    return [thing["what"] for thing in report["lacks"] if not hosts or thing["host"] in hosts]


def expect(found, *things):
    """As many as there are things, each in its place."""
    assert len(found) == len(things) and all(t in f for f, t in zip(found, things)), (found, things)


def add_disks(host, *paths):
    with open(host.config, encoding="ascii") as f:
        section = f.read()
    with open(host.config, "w", encoding="ascii") as f:
        f.write(section.replace("}\n", '    disks = {"' + '", "'.join(paths) + '"}\n}\n'))


class FakeBackup(threading.Thread):
    """Takes one connection, reads the HELLO, and does what `talk` does with the socket."""

    def __init__(self, talk):
        super().__init__(daemon=True)
        self.talk = talk
        self.asked = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self):
        s, _ = self.listener.accept()
        with s:
            try:
                s.recv(65536)
                self.asked.set()
                self.talk(s)
            except OSError:
                pass


def say(*records):
    def talk(s):
        s.sendall(b"".join(records))
        while s.recv(65536):
            pass
    return talk


def answers(ahead=0, body=None):
    """Welcomes, and answers each PROBE with a clock that is ahead by so many seconds."""
    def talk(s):
        s.sendall(WELCOME_RECORD)
        data = b""
        while more := s.recv(65536):
            data += more
            while len(data) >= 24 and len(data) >= 24 + (length := struct.unpack(">I", data[4:8])[0]):
                data = data[24 + length:]
                now = time.time_ns() + int(ahead * 1e9)
                s.sendall(record(PROBE, 0, struct.pack(">QQ", now, now) if body is None else body))
    return talk


def asked_of(talk, **keys):
    """What the primary reports of a backup that behaves like this."""
    with Pair(primary_keys={"protect": False}, **keys) as pair:
        pair.primary.start()
        report = pair.primary.do("preflight", to=f"127.0.0.1:{FakeBackup(talk).port}")
        wait_for("the guest runs all the same", pair.primary.guest_pid)
        return report


@suite.test
def nothing_is_missing_and_a_protected_vm_stays_protected_R4_R7():
    with Pair(interval=500) as pair:  # whatever a busy machine makes of a round trip
        pair.protect()
        before = {host: host.do("status") for host in (pair.primary, pair.backup)}
        links = list(pair.proxy.connections)
        report = pair.primary.do("preflight")
        assert report["role"] == "primary" and report["lacks"] == [], report
        assert report["link"]["round_trip_ms"] > 0 and report["link"]["mib_s"] > 0, report
        assert abs(report["link"]["clock_ahead_ms"]) <= report["link"]["round_trip_ms"] * 10, report
        for host, states in (pair.primary, "protected"), (pair.backup, "ready"):
            status = host.do("status")
            assert status["state"] == states and status["since_s"] >= before[host]["since_s"], status
            assert status["last_error"] == before[host]["last_error"], status
        assert all(s.fileno() >= 0 for s in links), "the protection's connection was replaced"
        pair.wait_epochs(5)
        assert pair.backup.do("preflight")["lacks"] == []
        pair.primary.kill_host()  # and it still takes over
        pair.backup.wait_state("suspect")
        pair.backup.do("takeover")
        pair.check_takeover()


@suite.test
def nothing_comes_into_being_on_the_backup_R7():
    with Pair(primary_keys={"protect": False}) as pair:
        add_disks(pair.backup, os.path.join(pair.backup.dir, "disk.img"))
        pair.backup.start()
        pair.primary.start()
        files = sorted(os.listdir(pair.backup.dir))
        report = pair.primary.do("preflight")
        expect(whats(report, "backup"), "the primary has 0 disks, the backup's section names 1")
        status = pair.backup.do("status")
        assert status["state"] == "waiting" and status["memory_bytes"] == 0, status
        assert sorted(os.listdir(pair.backup.dir)) == files


@suite.test
def everything_that_differs_is_listed():
    with Pair(primary_keys={"protect": False, "mac": "52:54:00:00:00:02", "arbiter": "exec /bin/true yes"},
              backup_keys={"memory": 32, "tap": "nosuchtap1", "arbiter": "exec /nonexistent/arbiter 1"}) as pair:
        add_disks(pair.primary, "/nonexistent/0.img")
        pair.backup.start()
        pair.primary.start()
        report = pair.primary.do("preflight")
        expect(whats(report, "primary"), "/nonexistent/0.img: No such file")
        expect(whats(report, "backup"), "the arbiter /nonexistent/arbiter: No such file", "no interface nosuchtap1", "16 MiB, the backup's section says fake and 32",
               "mac is 52:54:00:00:00:02 on the primary, 52:54:00:00:00:01 on the backup", "the primary has 1 disks")
        assert all(thing["remedy"] for thing in report["lacks"]), report


@suite.test
def too_little_memory_on_the_backup():
    with Pair(primary_keys={"protect": False}, memory=1 << 20) as pair:
        pair.backup.start()
        pair.primary.start()
        expect(whats(pair.primary.do("preflight"), "backup"), "the replica needs 1048576 MiB")


@suite.test
def disks_that_differ():
    with Pair(primary_keys={"protect": False}) as pair:
        for host, sizes in (pair.primary, (1 << 20, 1 << 20, 1 << 43)), (pair.backup, (1 << 21, 1 << 20)):
            paths = [os.path.join(host.dir, f"{n}.img") for n in range(3)]
            for path, size in zip(paths, sizes):
                with open(path, "wb") as f:
                    f.truncate(size)
            add_disks(host, *paths)
        pair.backup.start()
        pair.primary.start()
        report = pair.primary.do("preflight")
        expect(whats(report, "backup"), "0.img\" has 2097152 octets, the primary's has 1048576", "images and journal may take 8388864 MiB")
        assert not os.path.exists(os.path.join(pair.backup.dir, "2.img"))


@suite.test
def another_primary_has_it_or_a_checkpoint_waits_R7():
    with Pair(takeover="manual") as pair:
        pair.protect()
        pair.wait_epochs(3)
        pair.primary.kill_daemon()
        pair.backup.wait_state("suspect")
        pair.proxy.close()  # or the daemon that comes back protects its guest again
        pair.primary.start()
        expect(whats(pair.primary.do("preflight", to=f"127.0.0.1:{pair.port}"), "backup"), "waits on the backup: its guest has vanished")
        pair.primary.kill_host()
        pair.backup.wait_state("suspect")
        pair.backup.do("takeover")
        pair.backup.wait_state("active")


@suite.test
def a_backup_that_is_not_there_is_one_thing_of_the_list():
    with Pair(primary_keys={"protect": False}) as pair:
        add_disks(pair.primary, "/nonexistent/0.img")
        pair.primary.start()
        pair.proxy.close()
        report = pair.primary.do("preflight")
        assert report["link"] is None
        expect(whats(report), "/nonexistent/0.img: No such file", f"backup 127.0.0.1:{pair.proxy.port}")
        pair.backup.start()  # at another address
        assert pair.primary.do("preflight", to=f"127.0.0.1:{pair.port}")["link"]
        for bad in "", "a b", "h:0", "h:70000", "x" * 400, "[::1":
            reply = pair.primary.request("preflight", to=bad)
            assert not reply["ok"] and reply["code"] == "usage", (bad, reply)


@suite.test
def a_long_and_slow_way_is_found():
    with Pair(primary_keys={"protect": False}, heartbeat=20, timeout=50) as pair:
        pair.proxy.filter = lambda way, kind, *_: 0.1 if way == "P" and kind == "PROBE" else 0
        pair.backup.start()
        pair.primary.start()
        report = pair.primary.do("preflight")
        expect(whats(report, "link"), "one lost segment looks like a lost host", "they cannot follow each other", "the link carries")
        assert report["link"]["round_trip_ms"] >= 100, report
        assert [h for h in (t["host"] for t in report["lacks"]) if h != "link"] == []


@suite.test
def clocks_that_differ():
    for ahead, word in (5, "ahead of"), (-5, "behind"):
        said = whats(asked_of(answers(ahead=ahead), interval=500), "link")
        expect(said, f"{word} the primary's")
    report = asked_of(answers(body=b"\xff" * 16))  # as far as numbers go
    assert len(whats(report, "link")) >= 1, report


@suite.test
def lacks_of_the_backup_cannot_do_anything_to_a_terminal_R10():
    report = asked_of(say(lack(b"a\x1b[2J\n\x7f\xc3\xa4\xff", b"\r\x9b"), record(REFUSE, 0, b"\0\6" + text("no\x1b"))))
    things = [t for t in report["lacks"] if t["host"] == "backup"]
    assert things[0]["what"] == "a?[2J?????" and things[0]["remedy"] == "??", things
    assert "it refuses: no?" in things[1]["what"] and len(things) == 2, things


@suite.test
def hostile_backups_R10():
    many = [lack(f"thing {n}") for n in range(32)]
    for talk, *what in (
            (say(b"\xff" * 100), "unknown type"),
            (say(record(LACK, 0, b"\0" * 1025)), "longer than allowed"),
            (say(lack("x")[:-1] + b"!"), "checksum"),
            (say(record(LACK, 0, b"\xffabc")), "LACK of 4 octets is malformed"),
            (say(*many, lack("one more")), *[f"thing {n}" for n in range(32)], "more than 32 things"),
            (say(record(PAGES, 1, b"")), "answered with PAGES"),
            (say(record(WELCOME, 0, b"\0\1")), "WELCOME of 2 octets"),
            (say(record(WELCOME, 0, struct.pack(">HxxQQ", 9, 0, 0))), "version 9"),
            (say(record(REFUSE, 0, b"\0\3" + text("feature"))), "install the same version"),
            (say(WELCOME_RECORD, lack("late")), "answered a PROBE with LACK"),
            (answers(body=b"\0" * 17), "PROBE of 17 octets"),
            (lambda s: None, "closed the connection")):
        report = asked_of(talk)
        expect(whats(report, "backup"), *what)
        assert report["link"] is None, report


@suite.test
def silent_backups_end_in_one_line_R10():
    """One that says nothing, one that only lives, one that never reads what is sent: the daemon answers others meanwhile."""
    def lives(s):
        while True:
            s.sendall(record(HEARTBEAT, 0, b""))
            time.sleep(0.01)

    def reads_not(s):
        s.sendall(WELCOME_RECORD)
        time.sleep(60)
    with Pair(primary_keys={"protect": False}) as pair:
        pair.primary.start()
        reports = []

        def ask(fake):
            reports.append(pair.primary.do("preflight", to=f"127.0.0.1:{fake.port}"))
        fakes = [FakeBackup(talk) for talk in (say(), lives, reads_not, say())]
        threads = [threading.Thread(target=ask, args=(fake,)) for fake in fakes]
        for thread in threads:
            thread.start()
        for fake in fakes:
            assert fake.asked.wait(60)
        fifth = pair.primary.request("preflight")
        assert not fifth["ok"] and fifth["code"] == "busy", fifth
        assert not reports and pair.primary.do("status")["state"] == "off"
        for thread in threads:
            thread.join()
        for report in reports:
            expect(whats(report), "it does not answer; is that a remus-backupd?")


@suite.test
def remusd_stops_while_a_preflight_is_under_way():
    with Pair(primary_keys={"protect": False}) as pair:
        pair.primary.start()
        fake = FakeBackup(say())
        s = socket.socket(socket.AF_UNIX)
        s.connect(os.path.join(pair.primary.dir, "remusd.sock"))
        s.sendall(b'{"format":1,"verb":"preflight","vm":"fake1","args":{"to":"127.0.0.1:%d"}}\n' % fake.port)
        assert fake.asked.wait(60)
        s.close()  # and the client is gone
        assert pair.primary.do("status")
        assert pair.primary.stop() == 0


@suite.test
def hostile_primaries_R10():
    """A backup that is asked keeps nothing of it, whatever comes behind the question, and welcomes a real primary."""
    with Pair() as pair:
        pair.backup.start()

        def ask(*data):
            s = socket.create_connection(("127.0.0.1", pair.port))
            s.settimeout(60 * SLOW)
            kinds, got = [], b""
            with s:
                with contextlib.suppress(OSError):
                    s.sendall(b"".join(data))
                    s.shutdown(socket.SHUT_WR)  # it closes then, or has reset the connection
                with contextlib.suppress(OSError):
                    while more := s.recv(65536):
                        got += more
            while len(got) >= 24:
                kind, _, length, _ = struct.unpack(">HHIQ", got[:16])
                kinds.append(kind)
                got = got[24 + length:]
            return kinds
        assert WELCOME in ask(hello())
        assert REFUSE in ask(hello(names=2))                              # ends too early
        assert REFUSE in ask(hello(session=0))
        assert REFUSE in ask(hello(features=FEATURE | 1 << 40))
        assert REFUSE in ask(hello(vm="other"))
        assert REFUSE in ask(hello(features=FEATURE | 4), record(MACHINE, 0, b"\0" * ((1 << 20) + 1)))
        assert ask(hello(), record(PROBE, 0, b"x" * 65536), record(PROBE, 0, b"")).count(PROBE) == 2
        assert ask(hello(), record(PROBE, 0, b"x" * 65537)).count(PROBE) == 0
        assert ask(hello(), record(PAGES, 1, b"")).count(WELCOME) == 1    # and closes
        assert ask(hello(), b"\xff" * 1000).count(WELCOME) == 1
        assert pair.backup.state() == "waiting"
        pair.primary.start()
        pair.primary.wait_state("protected")


suite.main()
