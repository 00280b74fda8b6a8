#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""R10: everything from outside is hostile.  One clear error each; the guest is untouched and runs, nothing is lost."""
import json
import os
import random
import socket
import struct
import subprocess
import time

from remus_hosts import BUILD, PATIENCE, Pair, Suite, wait_for
from remus_reader import record

suite = Suite()
HELLO, WELCOME, REFUSE, HEARTBEAT, PAGES, END, MACHINE = 1, 2, 3, 4, 5, 8, 17


def text(s):
    return bytes([len(s)]) + s.encode()


def hello(vm="fake1", version=(1, 1), session=77, pages=4096, flags=0, platform="fake", required=0, features=0,
          heartbeat=20, timeout=500, profile=None):
    return record(HELLO, 0, struct.pack(">QHHQQQQIIII8x", 0x72656d7573640d0a, *version, features, required, session, pages,
                                     4096, heartbeat, timeout, flags)
                  + text(vm) + text(platform) + text(f"fake 1 pages={pages}" if profile is None else profile))


def talk(port, data):
    """Sends data to the backup; the records that it answers until it closes or is silent for a second."""
    s = socket.create_connection(("127.0.0.1", port))
    s.settimeout(1)
    got = b""
    with s:
        try:
            s.sendall(data)
            while True:
                more = s.recv(65536)
                if not more:
                    break
                got += more
        except OSError:
            pass
    records = []
    while len(got) >= 24:
        kind, _, length, epoch = struct.unpack(">HHIQ", got[:16])
        records.append((kind, epoch, got[24:24 + length]))
        got = got[24 + length:]
    return records


def refusal(port, data):
    kinds = [r for r in talk(port, data) if r[0] == REFUSE]
    assert kinds, "the backup did not refuse"
    body = kinds[0][2]
    return struct.unpack(">H", body[:2])[0], body[3:].decode()


def primary_says(pair, *words):
    wait_for(f"the primary says {words}", lambda: (e := pair.primary.do("status")["last_error"]) and
             all(w in e for w in words))
    assert pair.primary.guest_pid(), "the guest must go on"


@suite.test
def unknown_vm_R10():
    with Pair() as pair:
        with open(pair.backup.config, encoding="ascii") as f:
            conf = f.read()
        with open(pair.backup.config, "w", encoding="ascii") as f:
            f.write(conf.replace("vm fake1", "vm other"))
        pair.backup.request = lambda *_, **__: {"ok": True, "result": {"state": "waiting"}}
        pair.backup.start()
        pair.primary.start()
        primary_says(pair, "knows no VM", "fake1", "remusd.conf")
        assert pair.primary.state() == "connecting"
        told = len(pair.primary.sink.frames)
        wait_for("the guest talks on", lambda: len(pair.primary.sink.frames) > told + 20)


@suite.test
def different_memory_R10():
    with Pair(backup_keys={"memory": 32}) as pair:
        pair.backup.start()
        pair.primary.start()
        primary_says(pair, "16 MiB", "32 MiB")


@suite.test
def not_enough_memory_R10():
    huge = 1 << 20  # MiB: 1 TiB
    with Pair(memory=huge) as pair:
        pair.backup.start()
        code, why = refusal(pair.port, hello(pages=huge << 8))
        assert code == 6 and "MiB" in why, (code, why)
        assert pair.backup.state() == "waiting"


@suite.test
def wrong_version_R10():
    with Pair() as pair:
        pair.backup.start()
        code, why = refusal(pair.port, hello(version=(7, 9)))
        assert code == 2 and "7 to 9" in why, (code, why)


@suite.test
def required_feature_R10():
    with Pair() as pair:
        pair.backup.start()
        code, why = refusal(pair.port, hello(required=1 << 40))
        assert code == 3 and "feature" in why, (code, why)


@suite.test
def machine_without_description_R10():
    with Pair() as pair:
        pair.backup.start()
        for behind in (record(END, 1, b"\0" * 24), record(MACHINE, 0, b"\0" * ((1 << 20) + 1))):
            code, why = refusal(pair.port, hello(features=4) + behind)
            assert code == 1 and "MACHINE" in why, (code, why)


@suite.test
def different_machine_R10():
    with Pair() as pair:
        pair.backup.start()
        code, why = refusal(pair.port, hello(profile="fake 0 pages=4096"))
        assert code == 6 and "fake 0" in why, (code, why)


@suite.test
def senseless_hello_R10():
    with Pair() as pair:
        pair.backup.start()
        for bad in ({"heartbeat": 0}, {"timeout": 10}, {"pages": 0}, {"pages": 1 << 62}, {"session": 0},
                    {"platform": "vmware"}):
            code, why = refusal(pair.port, hello(**bad))
            assert code in (1, 7) and why, (bad, code, why)
        assert pair.backup.state() == "waiting"


@suite.test
def backup_that_holds_what_it_cannot_R2_R10():
    """Fewer checkpoints than it has acknowledged, more than were taken, any when all is to be sent anew."""
    with Pair(takeover="manual") as pair:
        claims = [5, 5]  # the first answers whether a guest may be started here
        forward = pair.proxy.record

        def lie(target, way, kind, epoch, data):
            if kind == "WELCOME" and claims:
                body = bytearray(data[24:])
                body[12:20] = struct.pack(">Q", claims.pop())
                data = record(WELCOME, 0, bytes(body))
            forward(target, way, kind, epoch, data)
        pair.proxy.record = lie
        pair.protect()
        assert "holds checkpoint 5, which cannot be" in pair.primary.log(), pair.primary.log()
        for claim in (1, 1 << 40):
            pair.wait_epochs(10)
            claims.append(claim)
            pair.proxy.cut()
            primary_says(pair, f"holds checkpoint {claim}, which cannot be")
            pair.primary.wait_state("protected")
        pair.wait_epochs(5)
        pair.proxy.cut()  # what it does hold is gone on from
        wait_for("a new link", lambda: "sending what changed since" in pair.primary.log())
        pair.wait_epochs(5)
        pair.check_released()
        pair.primary.kill_host()
        pair.backup.wait_state("suspect")
        pair.backup.do("takeover")
        pair.check_takeover()


@suite.test
def port_in_use_R10():
    with Pair() as pair, socket.create_server(("127.0.0.1", pair.port)):
        run = subprocess.run([os.path.join(BUILD, "backup", "remus-backupd"), "-c", pair.backup.config],
                             capture_output=True, timeout=PATIENCE, check=False)
        assert run.returncode == 1 and b"in use" in run.stderr and str(pair.port).encode() in run.stderr, run


@suite.test
def primary_that_dies_behind_its_hello_is_suspect_R2_R7():
    """Whatever becomes of the new link, the checkpoint that was acknowledged is there."""
    with Pair(takeover="manual") as pair:
        session = []

        def listen(_way, kind, _epoch, body):
            if kind == "HELLO":
                session[:] = struct.unpack(">Q", body[28:36])
            return 0
        pair.proxy.filter = listen
        pair.protect()
        pair.wait_epochs(10)
        pair.proxy.refuse = True
        pair.primary.kill_host()
        pair.backup.wait_state("suspect")
        for n in range(20):
            s = socket.create_connection(("127.0.0.1", pair.port))
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            s.sendall(hello(session=session[0], features=4 * (n % 2)))
            if n % 4 > 1:
                time.sleep(0.01)
            s.close()
        time.sleep(0.2)
        pair.backup.wait_state("suspect")
        pair.backup.do("takeover")
        pair.check_takeover()


@suite.test
def second_primary_R10():
    with Pair() as pair:
        pair.protect()
        code, why = refusal(pair.port, hello(session=4711))
        assert code == 5 and "127.0.0.1" in why, (code, why)
        pair.wait_epochs(5)  # the first one does not even notice
        assert pair.primary.state() == "protected"


@suite.test
def strangers_on_the_port_R10():
    with Pair() as pair:
        pair.protect()
        rng = random.Random(3)
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, b"\xff" * 5000, rng.randbytes(3000), hello()[:30],
                     struct.pack(">HHIQQ", HELLO, 0, 0xffffffff, 0, 0), record(PAGES, 3, b"x" * 100),
                     record(HELLO, 0, b"short")):
            talk(pair.port, data)
        quiet = [socket.create_connection(("127.0.0.1", pair.port)) for _ in range(40)]
        pair.wait_epochs(5)
        for s in quiet:
            s.close()
        assert pair.primary.state() == "protected" and pair.backup.state() == "ready"


@suite.test
def stream_corrupt_at_any_octet_R2_R4_R10():
    """An octet of the stream is changed in flight; the replica stays at its checkpoint, the protection goes on."""
    with Pair(degrade_after=60000) as pair:
        target = {}

        def corrupt(way, kind, epoch, body):
            if way == "P" and epoch and target.get("at") == kind:
                target.clear()
                pair.proxy.corrupt_next = True
            return 0
        pair.proxy.filter = corrupt
        pair.protect()
        for kind in ("PAGES", "STATE", "END", "PAGES", "STATE", "END"):
            before = pair.backup.do("status")["last_error"]
            pair.wait_epochs(3)
            target["at"] = kind
            wait_for(f"a changed {kind} is found", lambda: not target)
            wait_for("it is said", lambda b=before: pair.backup.do("status")["last_error"] != b or
                     pair.backup.state() == "ready")
            pair.primary.wait_state("protected")
        assert pair.backup.do("status")["last_error"]
        pair.check_released()
        pair.primary.kill_host()
        pair.backup.wait_state("suspect")
        pair.backup.do("takeover")
        pair.check_takeover()


@suite.test
def page_outside_the_guest_R10():
    with Pair() as pair:
        pair.backup.start()
        code, why = refusal(pair.port, hello() + record(PAGES, 0, b"\xff" * 200))
        assert code == 1 and why, (code, why)
        assert pair.backup.state() in ("waiting", "syncing")


@suite.test
def stream_that_ends_anywhere_R4():
    with Pair() as pair:
        pair.backup.start()
        whole = hello() + record(HEARTBEAT) + record(END, 1, b"\0" * 24)
        for cut in range(1, len(whole), 13):
            s = socket.create_connection(("127.0.0.1", pair.port))
            s.sendall(whole[:cut])
            s.close()
        wait_for("the backup waits again", lambda: pair.backup.state() == "waiting")
        pair.primary.start()
        pair.primary.wait_state("protected")


@suite.test
def control_requests_with_nonsense_R10():
    with Pair() as pair:
        pair.protect()
        path = os.path.join(pair.primary.dir, "remusd.sock")
        for line in (b"\0\xff\n", b"{}\n", b"[" * 5000 + b"\n", b'{"format":1,"verb":"reboot"}\n',
                     b'{"format":1,"verb":"set","vm":"fake1","args":{"interval":"x"}}\n',
                     b'{"format":1,"verb":"status","vm":"../../etc"}\n', b"x" * 200000 + b"\n"):
            s = socket.socket(socket.AF_UNIX)
            s.settimeout(PATIENCE)
            with s:
                s.connect(path)
                try:
                    s.sendall(line)
                    reply = s.makefile("rb").readline()
                except OSError:
                    reply = b""
            if reply:
                assert json.loads(reply)["ok"] is False, reply
        pair.wait_epochs(5)


@suite.test
def guest_that_floods_the_network_R9():
    """A guest that sends faster than epochs release is held up, never dropped from."""
    with Pair(interval=1000, fake_frames=100000, net_queue=1, timeout=2000) as pair:
        pair.protect()
        wait_for("the queue is full", lambda: pair.primary.do("status")["net"]["full_ms"] > 0)
        status = pair.primary.do("status")
        assert status["net"]["held_bytes"] <= 1 << 20
        numbers = [f.number for f in pair.primary.sink.beacons()]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "a frame was lost"


suite.main()
