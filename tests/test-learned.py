#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""VMs that remusd.conf does not name: remusctl protect --to, the section others, and what is kept of them."""
import json
import os
import socket
import struct

from remus_hosts import SLOW, Pair, Suite, wait_for
from remus_reader import record

suite = Suite()
MIB = 1 << 20
OTHERS = {"interval": 10 * SLOW, "timeout": 2000 * SLOW, "takeover": "automatic", "fake-rate": 2000 // SLOW}


class Learned(Pair):
    """A fake guest runs on the primary, and no configuration names it.  others: on the backup, None for no such section."""

    def __init__(self, others=()):
        super().__init__({"protect": False}, tap=None, mac=None)
        self.primary.start()
        wait_for("the guest runs", self.primary.guest_pid)
        self.primary.stop()
        self.to = f"127.0.0.1:{self.proxy.port}"
        self.configure(self.primary, OTHERS)
        self.configure(self.backup, None if others is None else {**OTHERS, **dict(others)})

    @staticmethod
    def configure(host, others):
        with open(host.config, encoding="ascii") as f:
            top = "".join(f.readlines()[:2])
        with open(host.config, "w", encoding="ascii") as f:
            f.write(f'{top}state-dir = "{host.dir}/state"\n')
            if others is not None:
                f.write("others {\n" + "".join(f"    {k} = {json.dumps(v)}\n" for k, v in others.items()) + "}\n")

    def start(self):
        self.backup.start()
        self.primary.start()

    def protect(self):
        self.start()
        assert self.primary.state() == "unknown-vm"
        self.primary.do("protect", to=self.to)
        self.primary.wait_state("protected")
        self.backup.wait_state("ready")


def kept(host):
    folder = os.path.join(host.dir, "state")
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def refused(host, verb, *words, **args):
    reply = host.request(verb, **args)
    assert not reply["ok"] and all(w in reply["error"] for w in words), reply
    return reply["code"]


@suite.test
def protected_without_sections_and_taken_over_R2_R7():
    with Learned() as pair:
        pair.protect()
        assert kept(pair.primary) == ["fake1.remusd.conf"] and kept(pair.backup) == ["fake1.remus-backupd.conf"]
        assert pair.backup.do("status")["takeover_policy"] == "automatic"  # of others
        pair.primary.kill_daemon()  # it knows the VM again
        pair.backup.wait_state("suspect", "active")
        pair.primary.kill_host()
        pair.backup.wait_state("active")
        pid = wait_for("the replica runs", pair.backup.guest_pid)
        pair.backup.kill_daemon()
        pair.backup.start()
        pair.backup.wait_state("active")
        assert pair.backup.guest_pid() == pid
        assert refused(pair.backup, "forget", "active") == "refused"
        assert refused(pair.backup, "forget", active=3) == "usage"
        # the host that was lost is back: its remusd knows the VM, and starts no second one
        pair.primary.start()
        wait_for("remusd asks the backup", lambda: "runs on this backup" in (pair.primary.do("status")["last_error"] or ""))
        assert not pair.primary.guest_pid()
        # fail-back: both are told, then the guest is protected where it runs
        pair.primary.do("forget")
        pair.backup.do("forget", active=True)
        assert pair.backup.state() == "unknown-vm" and pair.backup.guest_pid() == pid and not kept(pair.backup)


@suite.test
def forgotten_after_a_switchover_R7():
    with Learned() as pair:
        pair.protect()

        def gone():  # on a busy machine the backup may take over by itself, or the link break for a while
            pair.primary.request("switchover")
            return pair.primary.state() in ("handed-over", "lost")
        wait_for("the guest leaves", gone)
        wait_for("the guest here is ended", lambda: pair.primary.request("forget")["ok"])
        assert pair.primary.state() == "unknown-vm" and not kept(pair.primary) and not pair.primary.guest_pid()
        pair.backup.wait_state("active")
        pair.backup.do("forget", active=True)
        assert pair.backup.guest_pid()


@suite.test
def daemons_that_come_again_know_it_R7():
    with Learned({"takeover": "manual"}) as pair:
        pair.protect()
        for host in (pair.primary, pair.backup):
            host.kill_daemon()
            host.start()
            pair.primary.wait_state("protected")
            pair.backup.wait_state("ready")
        pair.wait_epochs(5)
        # `others' has gone from the configuration: what was taken under it stays known
        pair.backup.kill_daemon()
        pair.configure(pair.backup, None)
        pair.backup.start()
        pair.backup.wait_state("ready")
        pair.primary.wait_state("protected")


@suite.test
def backup_without_others_R10():
    with Learned(None) as pair:
        pair.start()
        pair.primary.do("protect", to=pair.to)
        wait_for("a refusal", lambda: "a section others" in (pair.primary.do("status")["last_error"] or ""))
        assert pair.backup.state() == "unknown-vm" and not kept(pair.backup) and pair.primary.guest_pid()
        pair.primary.do("unprotect")
        pair.primary.wait_state("off", "unprotected")
        pair.primary.do("forget")
        assert pair.primary.state() == "unknown-vm" and not kept(pair.primary) and pair.primary.guest_pid()


@suite.test
def forget_when_nothing_is_held_R1_R7():
    with Learned() as pair:
        pair.protect()
        assert refused(pair.primary, "forget", "unprotect") == "refused"
        assert refused(pair.backup, "forget", "ready") == "refused"
        pair.primary.do("unprotect")
        pair.backup.wait_state("waiting")
        pair.primary.wait_state("off", "unprotected")
        for host in (pair.primary, pair.backup):
            host.do("forget")
            assert host.state() == "unknown-vm" and not kept(host)
        assert pair.primary.guest_pid()
        pair.primary.do("protect", to=pair.to)  # and again
        pair.primary.wait_state("protected")


@suite.test
def addresses_names_and_sections_that_differ_R10():
    with Learned() as pair:
        pair.start()
        for to in ("", ":", "a b", "127.0.0.1:0", "a'\nprotect = no\n'", "x" * 300, "[::1"):
            assert refused(pair.primary, "protect", "HOST", to=to) == "usage", to
        assert pair.primary.request("protect", to=7)["code"] == "usage"
        assert refused(pair.primary, "protect", "--to") == "unknown-vm"
        pair.primary.kill_guest()
        wait_for("the guest is gone", lambda: not pair.primary.guest_pid())
        refused(pair.primary, "protect", "fake1", to=pair.to)
        assert not kept(pair.primary)
    with Learned() as pair:
        pair.protect()
        assert refused(pair.primary, "protect", pair.to, "192.0.2.7:7910", to="192.0.2.7") == "refused"
        pair.primary.do("protect", to=pair.to)  # it is so


@suite.test
def names_from_the_wire_R9_R10():
    def text(s):
        return bytes([len(s)]) + s

    def hello(vm, flags=0, platform=b"fake"):
        return record(1, 0, struct.pack(">QHHQQQQIIII8x", 0x72656d7573640d0a, 1, 1, 0, 0, 77, 4096, 4096, 20, 500, flags) +
                      text(vm) + text(platform) + text(b"fake 1 pages=4096"))

    def answer(data):
        with socket.create_connection(("127.0.0.1", pair.port)) as s:
            s.settimeout(60 * SLOW)
            s.sendall(data)
            got = b""
            while True:
                while len(got) < 24 or len(got) < 24 + struct.unpack(">I", got[4:8])[0]:
                    more = s.recv(65536)
                    if not more:
                        return 0, got
                    got += more
                kind, length = struct.unpack(">HHI", got[:8])[::2]
                if kind != 4:  # HEARTBEAT
                    return kind, got[24:24 + length]
                got = got[24 + length:]

    with Learned() as pair:
        pair.backup.start()
        for bad in (b"../../x", b"", b".x", b"a b", b"a\nb"):
            kind, body = answer(hello(bad))
            assert kind == 3 and not kept(pair.backup), (bad, body)
        assert answer(hello(b"asked", flags=2))[0] == 3 and not kept(pair.backup)  # a question makes nothing
        kind, body = answer(hello(b"x", platform=b"qemu"))
        assert kind == 3 and b"kernel is missing" in body and not kept(pair.backup), body
        for i in range(64):
            kind, body = answer(hello(b"vm%d" % i))
            assert kind == 2, (i, kind, body)
        kind, body = answer(hello(b"onemore"))
        assert kind == 3 and b"remusctl forget" in body and len(kept(pair.backup)) == 64, body


@suite.test
def preflight_writes_nothing_R10():
    with Learned() as pair:
        pair.start()
        assert refused(pair.primary, "preflight", "--to") == "unknown-vm"
        report = pair.primary.do("preflight", to=pair.to)
        assert not [thing for thing in report["lacks"] if thing.get("host") != "link"] and report["link"], report
        assert not kept(pair.primary) and not kept(pair.backup)
        assert pair.primary.state() == pair.backup.state() == "unknown-vm"
        pair.backup.stop()
        pair.configure(pair.backup, None)
        pair.backup.start()
        report = pair.primary.do("preflight", to=pair.to)
        assert any("a section others" in thing["what"] for thing in report["lacks"]), report
        pair.primary.kill_guest()
        wait_for("the guest is gone", lambda: not pair.primary.guest_pid())
        refused(pair.primary, "preflight", "no section", to=pair.to)


@suite.test
def images_made_in_image_dir_R5_R10():
    with Learned() as pair:
        image, folder = os.path.join(pair.primary.dir, "disk.img"), os.path.join(pair.backup.dir, "images")
        os.mkdir(folder)
        with open(image, "wb") as f:
            f.write(os.urandom(MIB))
        pair.primary.kill_guest()
        wait_for("the guest is gone", lambda: not pair.primary.guest_pid())
        pair.primary.write_config("127.0.0.1:7910", backup=pair.to, protect=True, tap=None, mac=None)
        with open(pair.primary.config, encoding="ascii") as f:
            section = f.read().replace("vm fake1 {\n", f'vm fake1 {{\n    disks = {{ "{image}", "{image}2" }}\n')
        with open(pair.primary.config, "w", encoding="ascii") as f:
            f.write(section)
        with open(image + "2", "wb") as f:
            f.write(os.urandom(MIB))
        pair.start()
        says = lambda: pair.primary.do("status")["last_error"] or ""  # noqa: E731
        wait_for("no image-dir", lambda: "image-dir" in says())
        pair.backup.stop()
        pair.configure(pair.backup, {**OTHERS, "image-dir": folder})
        theirs = os.path.join(folder, "fake1:1.img")
        with open(theirs, "wb") as f:
            f.write(b"somebody's")
        pair.backup.start()
        wait_for("an image that is not ours", lambda: theirs in says() and "no copy" in says())
        with open(theirs, "rb") as f:
            assert f.read() == b"somebody's"
        assert not kept(pair.backup)
        os.unlink(theirs)
        pair.primary.wait_state("protected")
        for name, source in (("fake1.img", image), ("fake1:1.img", image + "2")):
            with open(os.path.join(folder, name), "rb") as a, open(source, "rb") as b:
                assert wait_for("the image is written", lambda: a.seek(0) == 0 and a.read() == (b.seek(0), b.read())[1])
        # they are known as ours the next time
        pair.primary.do("unprotect")
        pair.backup.wait_state("waiting")
        pair.backup.do("forget")
        pair.primary.do("protect")
        pair.primary.wait_state("protected")


suite.main()
