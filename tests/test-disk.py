#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that fail over with the memory: two daemons, a fake guest, and a client that writes to the guest's disks as
the guest would, while hosts, daemons and links are lost."""
import functools
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time

import remus_reader
from remus_hosts import BUILD, PATIENCE, TYPES, Pair, Suite, free_port, wait_for
from remus_nbd import FUA, Nbd

suite = Suite()
# make check-root runs all of them, make check the short ones.
slow = suite.test if os.environ.get("REMUS_TESTS") == "all" else lambda function, name=None: function
MIB = 1 << 20
SIZE = 16 * MIB
BLOCK = 4096


def server_pid(host):
    """The disk server's, as it says in its write queue (disk/queue.c)."""
    try:
        with open(os.path.join(host.dir, "fake1.disk-queue"), "rb") as f:
            pid = struct.unpack("i", f.read(60)[56:60])[0]
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return pid if b"remus-disk" in f.read() else None
    except (OSError, struct.error):
        return None


def kill_server(host):
    pid = server_pid(host)
    if pid:
        os.kill(pid, signal.SIGKILL)
        wait_for("the disk server is gone", lambda: not server_pid(host))


class Disks(Pair):
    """A pair whose VM has disks; the primary's hold random data when the test begins."""

    def __init__(self, count=1, size=SIZE, **keys):
        # The memory is there too, but not what this is about; and a busy machine is not a lost one.
        keys = {"fake_rate": 300, "timeout": 5000, **keys}
        super().__init__(**keys)
        self.size, self.keys = size, keys
        self.images = {}
        for host in (self.primary, self.backup):
            self.images[host] = [os.path.join(host.dir, f"disk{i}.img") for i in range(count)]
            self.add_disks(host)
        for path in self.images[self.primary]:
            with open(path, "wb") as f:
                f.truncate(size)
                for _ in range(32):
                    f.seek(random.randrange(size // BLOCK) * BLOCK)
                    f.write(random.randbytes(BLOCK))
        self.start_content = [open(p, "rb").read() for p in self.images[self.primary]]
        self.disk_octets = 0
        self.proxy.filter = self.count

    def add_disks(self, host):
        names = ", ".join(f'"{p}"' for p in self.images[host])
        with open(host.config, encoding="ascii") as f:
            text = f.read()
        with open(host.config, "w", encoding="ascii") as f:
            f.write(text.replace("vm fake1 {\n", f"vm fake1 {{\n    disks = {{ {names} }}\n"))

    def swap(self):
        """The hosts change their roles: what an operator does with `backup' in the two configurations."""
        self.primary, self.backup = self.backup, self.primary
        self.primary.program, self.backup.program = "remusd", "remus-backupd"
        self.proxy.backup_port = free_port()
        self.primary.write_config("127.0.0.1:7910", backup=f"127.0.0.1:{self.proxy.port}", protect=True, **self.keys)
        self.backup.write_config(f"127.0.0.1:{self.proxy.backup_port}", **self.keys)
        for host in (self.primary, self.backup):
            self.add_disks(host)

    def verify(self, *options):
        """Exit status and text of remusctl."""
        done = subprocess.run([os.path.join(BUILD, "ctl", "remusctl"), "-R", self.primary.dir, "verify", *options,
                               "fake1"], capture_output=True, text=True, timeout=PATIENCE)
        return done.returncode, done.stdout + done.stderr

    def count(self, direction, kind, epoch, body):
        if kind == "DISK":
            self.disk_octets += len(body)
        return 0

    def nbd(self, host, export=0):
        return Nbd(os.path.join(host.dir, "fake1.nbd"), str(export))

    def kill_primary(self):
        self.primary.kill_host()
        kill_server(self.primary)

    def content(self, host, disk=0):
        with open(self.images[host][disk], "rb") as f:
            return f.read()

    def __exit__(self, kind, value, trace):
        if kind:
            for host in (self.primary, self.backup):
                try:
                    with open(os.path.join(host.dir, "fake1.nbdkit.log"), encoding="utf-8") as f:
                        sys.stderr.write(f"--- {host.name} nbdkit\n{f.read()}\n")
                except OSError:
                    pass
        for host in (self.primary, self.backup):
            if host.alive():
                host.kill_daemon()
            kill_server(host)
        return super().__exit__(kind, value, trace)


class Writer(threading.Thread):
    """Writes, zeroes and trims at random, one after the other, on all disks; keeps what it did, and when each was done."""

    def __init__(self, pair, host, pause=0.0005):
        super().__init__(daemon=True)
        self.pair, self.pause = pair, pause
        self.disks = [pair.nbd(host, i) for i in range(len(pair.images[host]))]
        self.log, self.done = [], []
        self.stopping = False
        self.start()

    def run(self):
        try:
            while not self.stopping:
                disk = random.randrange(len(self.disks))
                offset = random.randrange(self.pair.size // BLOCK - 8) * BLOCK
                length = random.randrange(1, 9) * BLOCK
                kind = random.choice(("write", "write", "write", "zero", "trim"))
                data = bytes(length) if kind != "write" else struct.pack(">Q", len(self.log) + 1) * (length // 8)
                self.log.append((disk, offset, data))
                if kind == "write":
                    self.disks[disk].write(offset, data, random.choice((0, 0, 0, FUA)))
                else:
                    getattr(self.disks[disk], kind)(offset, length)
                self.done.append(time.monotonic())
                time.sleep(self.pause)
        except (OSError, EOFError):
            pass  # the host died

    def stop(self):
        self.stopping = True
        self.join()


def find_prefix(start, log, images):
    """How many of the writes are in the images, so that exactly these are: not one of a later one.  The most of them: a zero
    on a zero leaves no trace."""
    state = [bytearray(s) for s in start]
    now = [bytearray(i) for i in images]
    different = [sum(state[d][o:o + BLOCK] != now[d][o:o + BLOCK] for o in range(0, len(state[d]), BLOCK))
                 for d in range(len(state))]
    found = None if any(different) else 0
    for n, (disk, offset, data) in enumerate(log, 1):
        for o in range(offset, offset + len(data), BLOCK):
            different[disk] -= state[disk][o:o + BLOCK] != now[disk][o:o + BLOCK]
            state[disk][o:o + BLOCK] = data[o - offset:o - offset + BLOCK]
            different[disk] += state[disk][o:o + BLOCK] != now[disk][o:o + BLOCK]
        if not any(different):
            found = n
    if found is not None:
        return found
    raise AssertionError(f"R4, R5: the images are at no point of {len(log)} writes, at best {different} blocks off")


def check_takeover(pair, writer):
    """The backup's images are what the guest had written at the checkpoint that was activated (R2, R4, R5)."""
    epoch = pair.check_takeover()
    images = [pair.content(pair.backup, i) for i in range(len(pair.images[pair.backup]))]
    found = find_prefix(pair.start_content, writer.log, images)
    # When checkpoint E was taken, E-2 had been acknowledged: at most two are in flight.
    acked = pair.proxy.acks.get(epoch - 2)
    if acked:
        known = sum(t < acked for t in writer.done)
        assert found >= known, f"R2: {found} writes on the disk, {known} were done before checkpoint {epoch}"
    return found


@suite.test
def host_lost_under_writes_R4_R5():
    with Disks(2, takeover="automatic") as pair:
        pair.backup.start()
        pair.primary.start()
        wait_for("the disk server", lambda: server_pid(pair.primary))
        writer = Writer(pair, pair.primary)  # also while it synchronises
        pair.primary.wait_state("protected")
        pair.wait_epochs(30)
        pair.kill_primary()
        writer.join()
        assert check_takeover(pair, writer) > 0


@suite.test
def host_lost_while_everything_is_sent_anew_R4_R5():
    with Disks(2, takeover="manual") as pair:
        pair.protect()
        writer = Writer(pair, pair.primary)
        pair.wait_epochs(30)
        kept = pair.resync_without_end()
        assert pair.backup.do("status")["disks"]["in_step"]
        pair.kill_primary()
        writer.join()
        pair.backup.wait_state("suspect")
        pair.backup.do("takeover")
        assert check_takeover(pair, writer) > 0 and pair.backup.do("status")["takeover"]["epoch"] == kept


def tool(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout} {done.stderr}"
    return done.stdout


def usual_tools_R4_R5():
    """What others wrote to try NBD servers, against a disk under protection; what they left is what the backup has."""
    with Disks(2, takeover="manual") as pair:
        pair.protect()
        guest = pair.nbd(pair.primary)  # the server ends with its last client
        uri = "nbd+unix:///{}?socket=" + os.path.join(pair.primary.dir, "fake1.nbd")
        for export in range(2):
            said = json.loads(tool("nbdinfo", "--json", uri.format(export)))["exports"][0]
            assert said["export-size"] == SIZE and not said["is_read_only"], said
            assert all(said[f"can_{what}"] for what in ("flush", "fua", "trim", "zero")), said
        start, back = (os.path.join(pair.dir, name) for name in ("start", "back"))
        with open(start, "wb") as f:
            f.write(random.randbytes(SIZE // 4) + bytes(SIZE // 4) + random.randbytes(SIZE // 4) + bytes(SIZE // 4))
        tool("nbdcopy", "--flush", start, uri.format(0))
        tool("nbdcopy", uri.format(0), back)
        tool("cmp", start, back)
        tool("fio", "--name=random", "--ioengine=nbd", "--uri=" + uri.format(1), "--rw=randwrite", "--bsrange=4k-96k",
             f"--size={SIZE}", "--iodepth=16", "--fsync=32", "--verify=crc32c", "--verify_fatal=1", "--aux-path=" + pair.dir)
        guest.flush()
        pair.wait_epochs(5)
        pair.kill_primary()
        pair.backup.wait_state("suspect")
        pair.backup.do("takeover")
        pair.check_takeover()
        for disk in range(2):
            assert pair.content(pair.backup, disk) == pair.content(pair.primary, disk), f"R5: disk {disk} differs"


if all(map(shutil.which, ("nbdinfo", "nbdcopy", "fio"))):
    slow(usual_tools_R4_R5)


class Memory:
    """The fake guest's memory from outside; what is written there counts as written by the guest."""

    def __init__(self, pid):
        self.pid = pid
        self.ram = os.open(f"/proc/{pid}/fd/3", os.O_RDONLY)
        self.size = os.fstat(self.ram).st_size
        self.mem = os.open(f"/proc/{pid}/mem", os.O_RDWR)
        with open(f"/proc/{pid}/maps", encoding="utf-8") as f:
            areas = [[int(a, 16) for a in line.split()[0].split("-")] for line in f if "memfd:" in line]
        self.address = next(a for a, b in areas if b - a == self.size)

    def page(self, n):
        return os.pread(self.ram, BLOCK, n * BLOCK)

    def touch(self, pages):
        """Writes what is there already, for those of {number: content} that are still that."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            wait_for("the guest stands still", self.stopped)
            for n, content in pages.items():
                if self.page(n) == content:
                    os.pwrite(self.mem, content, self.address + n * BLOCK)
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def stopped(self):
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as f:
            return f.read().rsplit(")", 1)[1].split()[0] == "T"

    def close(self):
        os.close(self.ram)
        os.close(self.mem)


def guest_reads(pair, disk, memory, at, count=16):
    """Some of the guest's pages are what it reads from its disk."""
    pages = {}
    while len(pages) < count:
        n = random.randrange(1, memory.size // BLOCK)
        if any(content := memory.page(n)):
            pages[n] = content
    disk.write(at, b"".join(pages.values()))
    pair.wait_epochs(4)
    disk.read(at, count * BLOCK)
    memory.touch(pages)
    return list(pages.values())


def with_guest_memory(test):
    @functools.wraps(test)
    def run():
        with Disks(takeover="manual", fake_rate=500) as pair:
            pair.protect()
            if pair.primary.do("status")["tracker"] == "compare":
                return  # sees no write of what is there
            try:
                memory = Memory(pair.primary.guest_pid())
            except PermissionError:
                return  # only root may look into the guest here
            wait_for("the guest has written", lambda: sum(any(memory.page(n)) for n in range(1, 500)) > 40)
            try:
                test(pair, pair.nbd(pair.primary), memory)
            finally:
                memory.close()
    return run


def by_reference(pair):
    return pair.primary.do("status")["disks"]["pages_by_reference"]


@suite.test
@with_guest_memory
def what_was_read_travels_as_blocks_R2_R5(pair, disk, memory):
    """Each block is read, written over at once, read again, while the guest goes on: never a wrong one, and nothing refused."""
    connections = pair.proxy.counts["HELLO"]

    for i in range(12):
        at = i % 3 * 16 * BLOCK
        blocks = guest_reads(pair, disk, memory, at)
        if i % 2:  # the same again, elsewhere, and something else over it before the checkpoint is sent
            disk.write(at, b"".join(reversed(blocks)))
            disk.read(at, 16 * BLOCK)
            disk.zero(at + 4 * BLOCK, BLOCK)
    assert wait_for("pages that travel as blocks", lambda: by_reference(pair) > 40 and by_reference(pair))
    assert pair.proxy.counts["BLOCKS"] > 3
    assert pair.proxy.counts["HELLO"] == connections, pair.backup.log()
    pair.wait_epochs(3)
    pair.kill_primary()
    pair.backup.wait_state("suspect")
    pair.backup.do("takeover")
    pair.check_takeover()


@slow
@with_guest_memory
def hosts_lost_with_references_in_flight_R2_R5(pair, disk, memory):
    """The backup five times, at last the primary, each while a checkpoint with references is on its way."""
    count, blocks = pair.proxy.filter, threading.Event()

    def watch(way, kind, epoch, body):
        if kind == "BLOCKS":
            blocks.set()
        return count(way, kind, epoch, body)

    def send_references(at):
        blocks.clear()
        guest_reads(pair, disk, memory, at)
        assert blocks.wait(PATIENCE), "no page travels as a block"
        time.sleep(random.uniform(0, 0.02))

    pair.proxy.filter = watch
    for turn in range(5):
        send_references(turn * 16 * BLOCK)
        pair.backup.kill_daemon()
        pair.backup.kill_guest()
        pair.backup.start()
        pair.primary.wait_state("protected")
        pair.backup.wait_state("ready")
    send_references(0)
    pair.kill_primary()
    pair.backup.wait_state("suspect")
    pair.backup.do("takeover")
    pair.check_takeover()
    assert pair.content(pair.backup) == pair.content(pair.primary), "R5: the disk differs"


@suite.test
@with_guest_memory
def wrong_block_on_the_backup_is_refused_R2_R10(pair, disk, memory):
    guest_reads(pair, disk, memory, 0)
    wait_for("pages that travel as blocks", lambda: by_reference(pair))
    pages = {}
    while len(pages) < 4:
        n = random.randrange(1, memory.size // BLOCK)
        if any(content := memory.page(n)):
            pages[n] = content
    disk.write(0, b"".join(pages.values()))
    pair.wait_epochs(4)
    with open(pair.images[pair.backup][0], "r+b") as f:  # nobody may do that
        f.write(b"wrong" * 3000)
    disk.read(0, 4 * BLOCK)
    held = pair.backup.do("status")["epoch"]
    while not pair.backup.do("status")["last_error"]:
        memory.touch({n: memory.page(n) for n in pages})
        disk.read(0, 4 * BLOCK)
        pages = {n: c for n, c in pages.items() if memory.page(n) == c}
        if not pages:
            return  # the guest was faster
    assert "does not hold" in pair.backup.do("status")["last_error"], pair.backup.log()
    assert pair.backup.do("status")["epoch"] >= held


@suite.test
def replica_refuses_writes_until_activated_R5():
    with Disks(takeover="automatic") as pair:
        pair.protect()
        primary = pair.nbd(pair.primary)
        primary.write(0, b"x" * BLOCK)
        disk = pair.nbd(pair.backup)
        for change in (lambda: disk.write(0, b"y" * BLOCK), lambda: disk.zero(0, BLOCK), lambda: disk.trim(0, BLOCK)):
            try:
                change()
                raise AssertionError("R5: a replica that is not activated was written to")
            except OSError:
                pass
        pair.wait_epochs(5)
        pair.kill_primary()
        pair.backup.wait_state("active")
        assert disk.read(0, BLOCK) == b"x" * BLOCK
        disk.write(0, b"z" * BLOCK)
        disk.flush()
        assert pair.content(pair.backup)[:BLOCK] == b"z" * BLOCK


@slow
def stale_and_valid_images_are_refused_R5():
    with Disks() as pair:
        pair.protect()
        disk = pair.nbd(pair.primary)
        disk.write(BLOCK, b"s" * BLOCK)
        pair.primary.do("switchover")
        pair.backup.wait_state("active")
        pair.primary.wait_state("handed-over")
        wait_for("the disk server of the old primary ends", lambda: not server_pid(pair.primary))
        assert pair.content(pair.backup)[BLOCK:2 * BLOCK] == b"s" * BLOCK
        pair.primary.stop()
        pair.backup.kill_daemon()
        pair.backup.kill_guest()
        pair.primary.start()
        error = wait_for("an error", lambda: (pair.primary.try_status() or {}).get("last_error"))
        assert "stale" in error, error
        # The other way round: nobody may write a replica over the image that is valid now.
        pair.primary.kill_daemon()
        os.unlink(pair.images[pair.primary][0] + ".remus")
        os.unlink(os.path.join(pair.backup.dir, "fake1.active"))
        kill_server(pair.backup)
        before = pair.content(pair.backup)
        pair.backup.start()
        pair.primary.start()
        error = wait_for("a refusal", lambda: "valid image" in ((pair.primary.try_status() or {}).get("last_error") or ""))
        assert pair.content(pair.backup) == before


def backup_crashes(fault):
    """The images are at a checkpoint, the primary protects again, and a takeover loses nothing."""
    with Disks(2, takeover="automatic") as pair:
        pair.backup.start(faults=fault)
        pair.primary.start()
        wait_for("the disk server", lambda: server_pid(pair.primary))
        writer = Writer(pair, pair.primary)
        pair.backup.wait_crash()
        pair.backup.kill_guest()
        pair.backup.start()
        pair.primary.wait_state("protected")
        pair.wait_epochs(10)
        pair.kill_primary()
        writer.join()
        check_takeover(pair, writer)


def backup_crashes_in_takeover(fault):
    """The replica is lost with it; its disks must be what the guest wrote up to a checkpoint all the same."""
    with Disks(2, takeover="automatic") as pair:
        pair.backup.start(faults=fault)
        pair.primary.start()
        wait_for("the disk server", lambda: server_pid(pair.primary))
        writer = Writer(pair, pair.primary)
        pair.primary.wait_state("protected", "holding")
        if "activate" in fault:
            pair.wait_epochs(20)
            pair.kill_primary()
        pair.backup.wait_crash()
        pair.kill_primary()
        writer.join()
        pair.backup.kill_guest()
        kill_server(pair.backup)
        pair.backup.start()
        wait_for("the journal is applied", lambda: "from their journal" in pair.backup.log())
        images = [pair.content(pair.backup, i) for i in range(2)]
        found = find_prefix(pair.start_content, writer.log, images)
        acked = pair.proxy.acks.get(max(pair.proxy.acks) - 2, 0)
        known = sum(t < acked for t in writer.done)
        assert found >= known, f"R2: {found} writes on the disk, {known} were acknowledged"
        roles = [open(p + ".remus", "rb").read(10)[9] for p in pair.images[pair.backup]]
        assert roles == ([1, 1] if fault == "disk-amid-activate" else [2, 2]), roles


CRASHES = ("disk-amid-apply@25", "disk-amid-write@25", "disk-before-commit@25", "disk-after-commit@25",
           "backup-amid-apply@25", "disk-before-free", "disk-after-free")
CRASHES_IN_TAKEOVER = ("disk-amid-activate", "disk-before-activate", "disk-amid-apply@30")
for run, faults in ((backup_crashes, CRASHES), (backup_crashes_in_takeover, CRASHES_IN_TAKEOVER)):
    for name in faults:
        (suite.test if name == faults[0] else slow)(functools.partial(run, name), f"{run.__name__}_at_{name}_R4_R5")


def limit_files(pid, size):
    """Writes of this process behind the first `size' octets of a file fail: its disk is full."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def check_tells_once(pair, what):
    """Both hosts say what is wrong and what to do; however often the primary comes back, their logs say it once."""
    before = pair.hellos
    for host in (pair.primary, pair.backup):
        wait_for(f"it shows {what}", lambda host=host: what in (host.do("status")["last_error"] or ""))
        error = host.do("status")["last_error"]
        assert "File too large (make room on the backup: the primary tries again by itself)" in error, error
    wait_for("the primary comes back", lambda: pair.hellos >= before + 4)
    for host in (pair.primary, pair.backup):
        lines = [line.split(" ", 1)[1] for line in host.log().splitlines()]
        repeated = [line for line in lines if lines.count(line) > 1]
        assert not repeated, "\n".join(repeated)


@slow
def full_disk_on_the_backup_ends_the_replica_clearly_R2_R9():
    with Disks(size=24 * MIB, takeover="manual", disk_journal=16, disk_queue=4, degrade_after=600000) as pair:
        pair.hellos = 0

        def hellos(way, kind, epoch, body):
            pair.hellos += kind == "HELLO"
            return pair.count(way, kind, epoch, body)
        pair.proxy.filter = hellos
        with open(pair.images[pair.backup][0], "wb") as f:
            f.truncate(24 * MIB)
        with open(pair.images[pair.primary][0], "r+b") as f:
            f.seek(23 * MIB)
            f.write(b"at the end")
        pair.backup.start()
        limit_files(pair.backup.daemon.pid, 8 * MIB)
        pair.primary.start()
        check_tells_once(pair, "disk0.img.remus-journal: journal of 16 MiB: ")
        limit_files(pair.backup.daemon.pid, 20 * MIB)
        check_tells_once(pair, "disk0.img\": ")
        limit_files(pair.backup.daemon.pid, resource.RLIM_INFINITY)
        pair.primary.wait_state("protected")
        disk = pair.nbd(pair.primary)
        disk.write(2 * MIB, random.randbytes(MIB))
        pair.wait_epochs(5)
        limit_files(pair.backup.daemon.pid, 20 * MIB)
        disk.write(4 * MIB, b"before" * 1000)
        disk.write(20 * MIB - BLOCK, random.randbytes(2 * BLOCK))  # half of it fits
        status = wait_for("the primary knows", lambda: (s := pair.primary.do("status"))["state"] == "holding" and s)
        assert not status["disks"]["in_step"] and "disk0.img" in status["last_error"] and "too large" in status["last_error"]
        backup = wait_for("no replica", lambda: (s := pair.backup.do("status"))["state"] == "waiting" and s)
        assert "too large" in backup["last_error"]
        disk.write(6 * MIB, b"while it is full")  # the guest's disk goes on
        time.sleep(0.5)
        assert pair.primary.state() == "holding"  # R1, R2: no acknowledgement of what is not held
        before = pair.disk_octets
        limit_files(pair.backup.daemon.pid, resource.RLIM_INFINITY)
        pair.primary.wait_state("protected")
        pair.wait_epochs(5)
        wait_for("the backup's image is the primary's", lambda: pair.content(pair.backup) == pair.content(pair.primary))
        assert pair.disk_octets - before < 4 * MIB, pair.disk_octets - before


@suite.test
def failed_write_on_the_primary_is_told_and_does_not_part_the_images_R5():
    with Disks(size=24 * MIB, takeover="manual") as pair:
        pair.protect()
        disk = pair.nbd(pair.primary)
        disk.write(20 * MIB - BLOCK, b"o" * 2 * BLOCK)
        limit_files(server_pid(pair.primary), 20 * MIB)
        try:
            disk.write(20 * MIB - BLOCK, b"n" * 2 * BLOCK)
            raise AssertionError("the guest was not told")
        except OSError:
            pass
        disk.write(BLOCK, b"y" * BLOCK)
        status = pair.primary.do("status")
        assert status["disks"]["errors"] == 1 and status["state"] == "protected", status
        pair.wait_epochs(5)
        assert pair.content(pair.primary)[20 * MIB - BLOCK:20 * MIB + BLOCK] == b"n" * BLOCK + b"o" * BLOCK
        assert pair.verify()[0] == 0, "R5: the images differ"


@slow
def link_cut_under_load_R4_R5():
    with Disks(2, takeover="manual", degrade_after=600000) as pair:
        pair.protect()
        writer = Writer(pair, pair.primary)
        for _ in range(5):
            pair.wait_epochs(8)
            pair.proxy.cut()
        pair.wait_epochs(8)  # more than were in flight: over the new link
        assert pair.verify()[0] == 0, "R5: the images differ"
        pair.kill_primary()
        writer.join()
        pair.backup.wait_state("suspect")
        pair.backup.do("takeover")
        check_takeover(pair, writer)


@suite.test
def primary_daemon_crashes_and_finds_its_disks_R5():
    with Disks(takeover="manual") as pair:
        pair.protect()
        writer = Writer(pair, pair.primary)
        pair.wait_epochs(10)
        pair.primary.kill_daemon()
        time.sleep(0.3)  # the guest writes on, nobody listens
        before = len(writer.done)
        time.sleep(0.3)
        assert len(writer.done) > before, "the guest's writes wait for a daemon that is gone"
        pair.primary.start()
        pair.primary.wait_state("protected")
        pair.wait_epochs(10)
        pair.kill_primary()
        writer.join()
        pair.backup.wait_state("suspect")
        pair.backup.do("takeover")
        check_takeover(pair, writer)


@suite.test
def short_link_loss_sends_only_what_changed_R5():
    with Disks(size=64 * MIB, takeover="manual") as pair:
        pair.protect()
        disk = pair.nbd(pair.primary)
        disk.write(0, b"a" * BLOCK)
        pair.wait_epochs(5)
        for lose in ("link", "backup", "both"):
            pair.proxy.refuse = True
            if lose == "link":
                pair.proxy.cut()
            else:
                pair.backup.kill_daemon()
                pair.backup.kill_guest()
                if lose == "both":
                    pair.primary.kill_daemon()
                pair.backup.start()
            disk.write(20 * MIB, lose.encode() * 1000)
            disk.write(40 * MIB, random.randbytes(MIB))
            pair.proxy.refuse = False
            before = pair.disk_octets
            if lose == "both":
                pair.primary.start()
            pair.primary.wait_state("protected")
            pair.wait_epochs(5)
            assert MIB <= pair.disk_octets - before < 3 * MIB, (lose, pair.disk_octets - before)
            wait_for("the backup's image is the primary's",
                     lambda: pair.content(pair.backup) == pair.content(pair.primary))


@suite.test
def server_starts_again_after_idle_epochs_R5():
    """Its numbers of epochs go on behind those that the backup has heard of, though the guest wrote in none of them."""
    with Disks(takeover="manual") as pair:
        pair.protect()
        disk = pair.nbd(pair.primary)
        disk.write(0, b"a" * BLOCK)
        pair.wait_epochs(20)
        pair.proxy.refuse = True
        pair.kill_primary()
        pair.primary.start()
        wait_for("the disk server", lambda: server_pid(pair.primary))
        disk = pair.nbd(pair.primary)
        disk.write(5 * MIB, b"b" * BLOCK)
        pair.backup.wait_state("suspect")
        pair.backup.do("discard")
        pair.proxy.refuse = False
        pair.primary.wait_state("protected")
        pair.wait_epochs(5)
        assert pair.verify()[0] == 0, "R5: the images differ"


@slow
def slow_link_slows_writes_down_R9():
    with Disks(takeover="manual", disk_queue=1, timeout=20000, interval=20) as pair:
        pair.protect()
        disk = pair.nbd(pair.primary)
        pair.proxy.stalled.set()
        threading.Timer(1.0, pair.proxy.stalled.clear).start()
        for _ in range(32):
            for at in range(0, SIZE, MIB):
                disk.write(at, random.randbytes(MIB))
            if not pair.proxy.stalled.is_set():
                break
        assert pair.primary.do("status")["disks"]["full_ms"] > 0
        pair.wait_epochs(5)
        wait_for("the backup's image is the primary's",
                 lambda: pair.content(pair.backup) == pair.content(pair.primary))


@suite.test
def verify_under_load_finds_exactly_what_differs_R5():
    with Disks(2, takeover="manual") as pair:
        pair.protect()
        disk = pair.nbd(pair.primary, 1)
        writer = Writer(pair, pair.primary, pause=0)
        for _ in range(3):  # R5: not one block differs while the guest writes to all of them
            status, text = pair.verify()
            assert status == 0 and "equal, 32 MiB compared" in text, text
        writer.stop()
        assert len(writer.done) > 50
        wait_for("the backup's image is the primary's", lambda: pair.content(pair.backup, 1) == pair.content(pair.primary, 1))
        with open(pair.images[pair.backup][1], "r+b") as f:
            f.seek(3 * MIB + 5)
            octet = f.read(1)[0]
            f.seek(3 * MIB + 5)
            f.write(bytes([octet ^ 1]))
        for options in ((), ("--repair",)):
            status, text = pair.verify(*options)
            assert status == 8 and f"disk 1: 65536 octets at {3 * MIB}\n" in text and text.count("octets at") == 1, text
        assert "disk 1 differs" in pair.backup.do("status")["last_error"]
        assert pair.verify()[0] == 0
        disk.write(0, b"v" * BLOCK)
        wait_for("the backup's image is the primary's", lambda: pair.content(pair.backup, 1) == pair.content(pair.primary, 1))


@suite.test
def fail_back_and_forth_sends_only_the_difference_R5_R7():
    with Disks(size=64 * MIB, takeover="manual") as pair:
        pair.protect()
        disk = pair.nbd(pair.primary)
        for at in range(0, 64 * MIB, 4 * MIB):
            disk.write(at, random.randbytes(MIB))
        for word in (b"new ", b"more"):
            pair.wait_epochs(5)
            pair.proxy.refuse = True  # what the old primary writes now is lost with it
            pair.proxy.cut()
            disk.write(3 * MIB, b"lost" * 1024)
            pair.kill_primary()
            pair.backup.wait_state("suspect")
            pair.backup.do("takeover")
            pair.backup.wait_state("active")
            disk = pair.nbd(pair.backup)
            disk.write(9 * MIB, word * 1024)
            pair.proxy.refuse = False
            pair.primary.start()  # the old primary is back: it sees that its disk is out of date
            wait_for("the old primary refuses", lambda: (pair.primary.try_status() or {}).get("last_error"))
            pair.primary.stop()
            guest = pair.backup.guest_pid()
            pair.backup.stop()
            pair.swap()
            before = pair.disk_octets
            pair.protect()
            pair.wait_epochs(5)
            assert pair.primary.guest_pid() == guest, "R7: the guest was ended"
            assert pair.content(pair.primary)[9 * MIB:9 * MIB + 4096] == word * 1024
            wait_for("the backup's image is the primary's",
                     lambda: pair.content(pair.backup) == pair.content(pair.primary))
            assert pair.disk_octets - before < MIB, pair.disk_octets - before
            assert pair.verify()[0] == 0


@suite.test
def second_reader_follows_the_stream_R10():
    stream = {"P": b"", "B": b""}

    def keep(direction, kind, epoch, body):
        if kind in ("HELLO", "DISKS"):  # the first HELLO is a query on a connection of its own
            stream[direction] = b""
        stream[direction] += remus_reader.record(TYPES.index(kind), epoch, body)
        return 0

    with Disks(2, size=MIB, takeover="manual", interval=200, fake_rate=10) as pair:
        pair.proxy.filter = keep
        pair.protect()
        disks = [pair.nbd(pair.primary, i) for i in range(2)]
        disks[0].write(1000, b"r" * 5000)
        disks[1].zero(BLOCK, BLOCK)
        disks[1].trim(2 * BLOCK, 3 * BLOCK)
        pair.wait_epochs(3)
        assert pair.verify()[0] == 0
        pair.proxy.refuse = True
        pair.proxy.cut()
        out = io.StringIO()
        for direction in "PB":
            remus_reader.read(stream[direction], out)
        for line in ("disk 0: write 5000 at 1000", "disk 1: trim 4096 at 4096", "disk 1: trim 12288 at 8192",
                     "disk 1: check 65536 at 983040", "has generations 0 0", "compared"):
            assert line in out.getvalue(), (line, out.getvalue()[-3000:])


@suite.test
def epoch_larger_than_the_journal_is_refused_and_synchronised_anew_R9():
    with Disks(size=64 * MIB, takeover="manual", disk_journal=16, interval=3000) as pair:
        pair.protect()
        disk = pair.nbd(pair.primary)
        for at in range(0, 40 * MIB, MIB):
            disk.write(at, random.randbytes(MIB))
        wait_for("a clear error", lambda: "disk-journal" in pair.backup.log())
        pair.primary.wait_state("protected")
        wait_for("the backup's image is the primary's",
                 lambda: pair.content(pair.backup) == pair.content(pair.primary))


def available():
    return shutil.which("nbdkit") and os.path.exists(os.path.join(BUILD, "vm", "remus-disk.so"))


if __name__ == "__main__":
    if not available():
        print("1..0 # SKIP no nbdkit, or built without its plugin header")
        sys.exit(0)
    suite.main()
