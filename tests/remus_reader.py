#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads one direction of a remusd link, as captured, and prints its records.

    remus_reader.py FILE        (- is standard input)

Written from docs/remus-protocol.pod alone, in plain Python, so that it fails when program and
specification part.  Checks every record's checksum, every length and order that the specification
demands, and the digest of each checkpoint whose pages it can read (zero pages in stored blocks; what
else is in a block is the page codec's, compress/pagecodec.h).  Exit status 0: all is well; 1: it is
not, and the last line says where.
"""
import struct
import sys

MASK = (1 << 64) - 1
P32_1, P32_2, P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
P64_1, P64_2, P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P64_4, P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e")


def u32(data, at):
    return int.from_bytes(data[at:at + 4], "little")


def u64(data, at):
    return int.from_bytes(data[at:at + 8], "little")


def swap64(v):
    return int.from_bytes(v.to_bytes(8, "little"), "big")


def rotl64(v, n):
    return (v << n | v >> (64 - n)) & MASK


def fold(a, b):
    p = a * b
    return (p & MASK) ^ (p >> 64)


def avalanche(h):
    h ^= h >> 37
    h = h * 0x165667919E3779F9 & MASK
    return h ^ h >> 32


def avalanche64(h):
    h ^= h >> 33
    h = h * P64_2 & MASK
    h ^= h >> 29
    h = h * P64_3 & MASK
    return h ^ h >> 32


def mix16(data, at, secret):
    return fold(u64(data, at) ^ u64(SECRET, secret), u64(data, at + 8) ^ u64(SECRET, secret + 8))


def short(data):
    """Up to 16 octets."""
    n = len(data)
    if n > 8:
        low = u64(data, 0) ^ u64(SECRET, 24) ^ u64(SECRET, 32)
        high = u64(data, n - 8) ^ u64(SECRET, 40) ^ u64(SECRET, 48)
        return avalanche((n + swap64(low) + high + fold(low, high)) & MASK)
    if n >= 4:
        h = u32(data, n - 4) + (u32(data, 0) << 32) ^ u64(SECRET, 8) ^ u64(SECRET, 16)
        h ^= rotl64(h, 49) ^ rotl64(h, 24)
        h = h * 0x9FB21C651E98DF25 & MASK
        h ^= (h >> 35) + n
        h = h * 0x9FB21C651E98DF25 & MASK
        return h ^ h >> 28
    if n:
        combined = data[0] << 16 | data[n >> 1] << 24 | data[n - 1] | n << 8
        return avalanche64(combined ^ u32(SECRET, 0) ^ u32(SECRET, 4))
    return avalanche64(u64(SECRET, 56) ^ u64(SECRET, 64))


def middle(data):
    """17 to 240 octets."""
    n = len(data)
    h = n * P64_1
    if n <= 128:
        for i in range((n - 1) // 32, -1, -1):
            h += mix16(data, 16 * i, 32 * i) + mix16(data, n - 16 * (i + 1), 32 * i + 16)
        return avalanche(h & MASK)
    for i in range(8):
        h += mix16(data, 16 * i, 16 * i)
    h = avalanche(h & MASK)
    for i in range(8, n // 16):
        h += mix16(data, 16 * i, 16 * (i - 8) + 3)
    return avalanche((h + mix16(data, n - 16, 136 - 17)) & MASK)


def long(data):
    acc = [P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1]

    def stripe(at, secret):
        words = struct.unpack_from("<8Q", data, at)
        keys = struct.unpack_from("<8Q", SECRET, secret)
        for i in range(8):
            k = words[i] ^ keys[i]
            acc[i ^ 1] += words[i]
            acc[i] += (k & 0xFFFFFFFF) * (k >> 32)
        for i in range(8):
            acc[i] &= MASK

    per_block = (len(SECRET) - 64) // 8
    blocks = (len(data) - 1) // (64 * per_block)
    scramble = struct.unpack_from("<8Q", SECRET, len(SECRET) - 64)
    for b in range(blocks):
        for s in range(per_block):
            stripe((b * per_block + s) * 64, s * 8)
        for i in range(8):
            acc[i] = ((acc[i] ^ acc[i] >> 47) ^ scramble[i]) * P32_1 & MASK
    done = blocks * per_block
    for s in range((len(data) - 1) // 64 - done):
        stripe((done + s) * 64, s * 8)
    stripe(len(data) - 64, len(SECRET) - 64 - 7)
    h = len(data) * P64_1
    for i in range(4):
        h += fold(acc[2 * i] ^ u64(SECRET, 11 + 16 * i), acc[2 * i + 1] ^ u64(SECRET, 19 + 16 * i))
    return avalanche(h & MASK)


def xxh3_64(data):
    """XXH3, 64 bits, seed 0, the default secret (xxHash's doc/xxhash_spec.md)."""
    return short(data) if len(data) <= 16 else middle(data) if len(data) <= 240 else long(data)


# --- the protocol ---

MAGIC = b"remusd\r\n"
HEADER = 24
PAGE = 4096
NAMES = {1: "HELLO", 2: "WELCOME", 3: "REFUSE", 4: "HEARTBEAT", 5: "PAGES", 6: "STATE", 7: "NET",
         8: "END", 9: "ACK", 10: "GOODBYE", 11: "HANDOVER", 12: "ACTIVATED",
         13: "DISK", 14: "DISK_END", 15: "DISKS", 16: "COMPARED", 17: "MACHINE",
         18: "BLOCKS", 19: "PROBE", 20: "LACK"}
LARGE = {"PAGES", "STATE", "NET", "DISK", "MACHINE", "BLOCKS"}
SENT_BY = {"primary": {"HELLO", "REFUSE", "HEARTBEAT", "PAGES", "STATE", "NET", "END", "GOODBYE",
                       "HANDOVER", "DISK", "DISK_END", "MACHINE", "BLOCKS", "PROBE"},
           "backup": {"DISKS", "COMPARED", "WELCOME", "REFUSE", "HEARTBEAT", "ACK", "GOODBYE", "ACTIVATED", "PROBE",
                      "LACK"}}
REFUSALS = {1: "protocol", 2: "version", 3: "feature", 4: "unknown VM", 5: "busy", 6: "resources",
            7: "profile", 8: "active", 9: "later", 10: "corrupt"}
CODINGS = {0: "stored", 1: "lz4", 2: "zstd"}
STATE_MAX, NET_MAX = 64 << 20, 1 << 20


class Bad(Exception):
    pass


class Cursor:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        if len(self.data) - self.at < n:
            raise Bad(f"body of {len(self.data)} octets ends too early")
        self.at += n
        return self.data[self.at - n:self.at]

    def uint(self, n):
        return int.from_bytes(self.take(n), "big")

    def string(self, most=255):
        raw = self.take(self.uint(1))
        if len(raw) > most or 0 in raw:
            raise Bad("string too long or with a NUL")
        return raw.decode("utf-8", "replace")

    def end(self):
        if self.at != len(self.data):
            raise Bad(f"body has {len(self.data) - self.at} octets too many")


def check(kind, length, epoch):
    """What guards a header."""
    return xxh3_64(struct.pack(">HHIQ", kind, 0, length, epoch)) & 0xffff


def record(kind, epoch=0, body=b""):
    """A record as it should be sent, for tests that talk to a daemon."""
    head = struct.pack(">HHIQ", kind, check(kind, len(body), epoch), len(body), epoch)
    return head + struct.pack(">Q", xxh3_64(head + body)) + body


class Reader:
    """One direction.  `who` is found out by the first record."""

    def __init__(self):
        self.who = None
        self.first = True
        self.over = None       # the record after which nothing may follow
        self.session_pages = None
        self.described = False  # MACHINE is to come
        self.disks = []        # sizes
        self.changes = self.changes_digest = 0  # since the last DISK_END
        self.epoch = 0         # of the checkpoint that is coming; 0: none
        self.last = 0          # the last whole one
        self.begin()

    def begin(self):
        self.epoch = 0
        self.pages = 0
        self.state, self.net = bytearray(), bytearray()
        self.content = bytearray()  # what the digest covers; None when it cannot be known
        self.next_pfn = 0
        self.disk_ended = False

    def record(self, name, epoch, body, checksum):
        if self.over:
            raise Bad(f"{name} after {self.over}")
        if self.first:
            self.who = "primary" if name == "HELLO" else "backup"
        elif name in ("HELLO", "WELCOME"):
            raise Bad(f"a second {name}" if self.who else name)
        if name not in SENT_BY[self.who]:
            raise Bad(f"{name} from a {self.who}")
        if name == "DISK":
            self.changes += len(body)
            self.changes_digest = xxh3_64(struct.pack(">QQ", self.changes_digest, checksum))
        lines = getattr(self, "on_" + name.lower())(epoch, body)
        if name not in ("HEARTBEAT", "DISKS", "LACK"):  # a backup may say that it lives before it says WELCOME
            self.first = False
        return lines

    def empty(self, body):
        if body:
            raise Bad("must have no body")
        return []

    def on_hello(self, epoch, body):
        c = Cursor(body)
        if c.take(8) != MAGIC:
            raise Bad("no magic number")
        low, high = c.uint(2), c.uint(2)
        features, required, session = c.uint(8), c.uint(8), c.uint(8)
        pages, size, beat, timeout, flags = c.uint(8), c.uint(4), c.uint(4), c.uint(4), c.uint(4)
        c.take(8)
        vm, platform, profile = c.string(63), c.string(31), c.string()
        if not flags & 2 and (not session or not pages or size != PAGE or not 1 <= beat <= 10000
                              or not beat < timeout <= 600000):
            raise Bad("values that make no sense")
        self.session_pages = pages
        self.described = bool(features & 4) and not flags & 2
        if features & 16:
            self.disks = [(c.uint(8), c.uint(8)) for _ in range(c.uint(1))]
            if len(self.disks) > 8 or any(0 in d for d in self.disks):
                raise Bad("disks that make no sense")
        more = []
        if flags & 8:
            more = [", ".join(f"{key} '{value}'" for key, value in zip(
                ("mac", "guest-bridge", "vif", "netbuf"), (c.string(17), c.string(15), c.string(15), c.string(15))))]
        words = [w for bit, w in ((1, "resync"), (2, "query"), (8, "preflight")) if flags & bit] or ["none"]
        return [f"versions {low} to {high}, features {features:#x}, required {required:#x}",
                f"session {session:016x}, flags {' '.join(words)}",
                f"{pages} pages of {size}, heartbeat {beat} ms, timeout {timeout} ms",
                f"vm '{vm}', platform '{platform}', profile '{profile}'"] + more

    def on_probe(self, epoch, body):
        if self.who == "primary":
            return [f"{len(body)} octets"]
        c = Cursor(body)
        received, sent = c.uint(8), c.uint(8)
        c.end()
        return [f"received at {received}, sent at {sent}"]

    def on_lack(self, epoch, body):
        c = Cursor(body)
        texts = ["".join(ch if " " <= ch <= "~" else "?" for ch in c.string()) for _ in range(2)]
        c.end()
        return texts

    def on_welcome(self, epoch, body):
        c = Cursor(body)
        version, _, features, committed = c.uint(2), c.uint(2), c.uint(8), c.uint(8)
        c.end()
        self.last = committed
        return [f"version {version}, features {features:#x}, committed {committed}"]

    def notice(self, body):
        c = Cursor(body)
        code, text = c.uint(2), c.string()
        c.end()
        return code, "".join(ch if ch >= " " and ch != "\x7f" else "?" for ch in text)

    def on_refuse(self, epoch, body):
        self.over = "REFUSE"
        code, text = self.notice(body)
        return [f"{REFUSALS.get(code, f'code {code}')}: {text}"]

    def on_goodbye(self, epoch, body):
        self.over = "GOODBYE"
        return [self.notice(body)[1]]

    def on_heartbeat(self, epoch, body):
        return self.empty(body)

    def on_handover(self, epoch, body):
        if epoch == 0 or epoch > self.last:
            raise Bad(f"handover of checkpoint {epoch}, but {self.last} was the last")
        return self.empty(body)

    def on_ack(self, epoch, body):
        if epoch <= self.last:
            raise Bad(f"acknowledges {epoch} after {self.last}")
        self.last = epoch
        return self.empty(body)

    def on_activated(self, epoch, body):
        return self.empty(body)

    def checkpoint(self, epoch):
        if not self.epoch:
            if epoch <= self.last:
                raise Bad(f"checkpoint {epoch} after {self.last}")
            self.epoch = epoch
        if epoch != self.epoch:
            raise Bad(f"checkpoint {epoch} inside {self.epoch}")

    def piece(self, whole, most, epoch, body):
        self.checkpoint(epoch)
        whole += body
        if len(whole) > most:
            raise Bad(f"more than {most} octets in one checkpoint")
        return []

    def on_state(self, epoch, body):
        return self.piece(self.state, STATE_MAX, epoch, body)

    def on_net(self, epoch, body):
        return self.piece(self.net, NET_MAX, epoch, body)

    def zero_pages(self, count, stream):
        """Numbers and content of a stored block's pages, when all are zero pages."""
        c = Cursor(stream)
        for _ in range(count):
            entry = c.uint(1)
            gap = entry >> 4
            if entry & 15:
                return False
            if gap == 15:
                shift = 0
                while True:
                    octet = c.uint(1)
                    gap += (octet & 127) << shift
                    shift += 7
                    if octet < 128:
                        break
            pfn = self.next_pfn + gap
            if pfn >= self.session_pages:
                raise Bad(f"page {pfn} of a guest of {self.session_pages}")
            self.content += pfn.to_bytes(8, "big") + bytes(PAGE)
            self.next_pfn = pfn + 1
        c.end()
        return True

    def on_pages(self, epoch, body):
        c = Cursor(body)
        version, coding, count = c.uint(1), c.uint(1), c.uint(2)
        generation, sequence, plain, coded = c.uint(4), c.uint(4), c.uint(4), c.uint(4)
        if coded != len(body) - c.at or not count:
            raise Bad("page block whose length or count is wrong")
        if epoch == 0:
            if self.epoch or self.last:
                raise Bad("pages of no checkpoint after synchronising has ended")
            self.next_pfn = 0
        else:
            self.checkpoint(epoch)
        self.pages += count
        known = self.content is not None and coding == 0 and plain == coded
        if not known or not self.zero_pages(count, c.take(coded)):
            self.content = None
        if epoch == 0:
            self.next_pfn = 0
        return [f"page block version {version}, {CODINGS.get(coding, coding)}, {count} pages,"
                f" block {generation}.{sequence}, {plain} octets in {coded}"]

    def on_blocks(self, epoch, body):
        self.checkpoint(epoch)
        c, lines = Cursor(body), []
        while c.at < len(body):
            pfn, generation, disk, block, content = c.uint(8), c.uint(8), c.uint(4), c.uint(4), c.uint(8)
            if pfn >= self.session_pages or disk >= len(self.disks) or (block + 1) * PAGE > self.disks[disk][0]:
                raise Bad(f"page {pfn} is block {block} of disk {disk}")
            lines.append(f"page {pfn}: block {block} of disk {disk}, generation {generation}, {content:016x}")
            self.pages += 1
            self.content = None
        return lines

    def on_disks(self, epoch, body):
        c = Cursor(body)
        bases = [c.uint(8) for _ in range(len(body) // 8)]
        c.end()
        return [f"has generations {' '.join(map(str, bases))}"]

    def on_compared(self, epoch, body):
        c = Cursor(body)
        lines = [f"compared {c.uint(8)} octets"]
        while c.at < len(body):
            disk, length, offset = c.uint(4), c.uint(4), c.uint(8)
            if not length or offset % 65536:
                raise Bad(f"{length} octets at {offset} of disk {disk} are not whole blocks")
            lines.append(f"disk {disk}: {length} differ at {offset}")
        return lines

    def on_disk(self, epoch, body):
        if epoch or self.epoch or self.last:
            self.checkpoint(epoch)
        if self.disk_ended or not body:
            raise Bad("disk changes out of order, or none")
        c, lines = Cursor(body), []
        while c.at < len(body):
            kind, disk, _, length, offset = c.uint(1), c.uint(1), c.uint(2), c.uint(4), c.uint(8)
            if kind not in (1, 2, 3, 4) or disk >= len(self.disks) or not length or kind == 1 and length > 1 << 18 \
                    or offset + length > self.disks[disk][0]:
                raise Bad(f"disk {disk}: kind {kind}, {length} octets at {offset}")
            if kind == 1:
                c.take(length)
                if any(c.take(-length % 16)):
                    raise Bad("padding that is not zero")
            if kind == 4 and (any(c.take(16)[8:]) or offset % 65536 or length > 65536):
                raise Bad("a check that is not of one block")
            lines.append(f"disk {disk}: {('write', 'zero', 'trim', 'check')[kind - 1]} {length} at {offset}")
        return lines

    def on_machine(self, epoch, body):
        if not self.described or self.session_pages is None:
            raise Bad("MACHINE that HELLO did not announce, or a second one")
        self.described = False
        return [f"description of {len(body)} octets"]

    def on_disk_end(self, epoch, body):
        self.checkpoint(epoch)
        c = Cursor(body)
        generation, length, digest = c.uint(8), c.uint(8), c.uint(8)
        c.end()
        if self.disk_ended or not generation or (length, digest) != (self.changes, self.changes_digest):
            raise Bad(f"the disk changes of checkpoint {epoch} are not whole")
        self.changes = self.changes_digest = 0
        self.disk_ended = True
        return [f"generation {generation}, {length} octets, digest {digest:016x}, right"]

    def on_end(self, epoch, body):
        if self.disks and not self.disk_ended:
            raise Bad(f"checkpoint {epoch} without DISK_END")
        self.checkpoint(epoch)
        c = Cursor(body)
        pages, state, net, digest = c.uint(8), c.uint(4), c.uint(4), c.uint(8)
        c.end()
        if (pages, state, net) != (self.pages, len(self.state), len(self.net)):
            raise Bad(f"checkpoint {epoch} says {pages} pages, {state} and {net} octets; there came"
                      f" {self.pages}, {len(self.state)} and {len(self.net)}")
        verdict = "not checked: not all its pages are readable here"
        if self.content is not None:
            if xxh3_64(bytes(self.content + self.state + self.net)) != digest:
                raise Bad(f"checkpoint {epoch}: digest {digest:016x} is wrong")
            verdict = "right"
        self.begin()
        self.last = epoch
        return [f"{pages} pages, {state} octets of state, {net} of network state",
                f"digest {digest:016x}, {verdict}"]


def read(data, out):
    reader, at = Reader(), 0
    while at < len(data):
        head = data[at:at + HEADER]
        if len(head) < HEADER:
            raise Bad(f"octet {at}: cut off inside a header")
        kind, guard, length, epoch, checksum = struct.unpack(">HHIQQ", head)
        name = NAMES.get(kind)
        if not name:
            raise Bad(f"octet {at}: unknown type {kind}")
        if length > (2 << 20 if name in LARGE else 1 << 16 if name == "PROBE" else 1024):
            raise Bad(f"octet {at}: {name} of {length} octets is too long")
        if check(kind, length, epoch) != guard:
            raise Bad(f"octet {at}: {name}: header check {guard:04x} is wrong")
        body = data[at + HEADER:at + HEADER + length]
        if len(body) < length:
            raise Bad(f"octet {at}: cut off inside {name}")
        if xxh3_64(head[:16] + body) != checksum:
            raise Bad(f"octet {at}: {name}: checksum {checksum:016x} is wrong")
        try:
            lines = reader.record(name, epoch, body, checksum)
        except Bad as e:
            raise Bad(f"octet {at}: {name}: {e}") from None
        print(f"{at:8} {name} epoch {epoch}, {length} octets", file=out)
        for line in lines:
            print(f"         {line}", file=out)
        at += HEADER + length


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("--"):
        print(__doc__)
        return 2
    with sys.stdin.buffer if sys.argv[1] == "-" else open(sys.argv[1], "rb") as f:
        data = f.read()
    try:
        read(data, sys.stdout)
    except Bad as e:
        print(f"{sys.argv[1]}: {e}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
