#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The octets on the wire stay what they are: what the product writes today equals the captures in
tests/golden, the independent reader understands them, and it refuses them with anything changed."""
import io
import os
import subprocess
import sys
import tempfile

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, here)
sys.dont_write_bytecode = True
import remus_reader  # noqa: E402

golden = os.path.join(here, "golden")
names = ["primary", "backup", "primary-again", "backup-again", "backup-refuses"]
failed = False
count = 0


def check(ok, what):
    global failed, count
    count += 1
    print("ok" if ok else "not ok", count, "-", what)
    failed = failed or not ok


def contents(path):
    with open(path, "rb") as f:
        return f.read()


def read(data):
    out = io.StringIO()
    try:
        remus_reader.read(data, out)
    except remus_reader.Bad as e:
        return None, str(e)
    return out.getvalue(), None


def test_xxh3():
    # xxHash 0.8, tests/sanity_test_vectors.h: XXH3_64bits, seed 0, of the first n octets of its buffer
    vectors = {0: 0x2d06800538d394c2, 1: 0xc44bdff4074eecdb, 6: 0x27b56a84cd2d7325,
               12: 0xa713daf0dfbb77e7, 24: 0xa3fe70bf9d3510eb, 48: 0x397da259ecba1f11,
               80: 0xbcdefbbb2c47c90a, 195: 0xcd94217ee362ec3a, 403: 0xcdeb804d65c6dea4,
               512: 0x617e49599013cb6b, 2048: 0xdd59e2c3a5f038e0, 2099: 0xc6b9d9b3fc9ac765,
               2240: 0x6e73a90539cf2948, 2367: 0xcb37aeb9e5d361ed}
    buffer, gen = bytearray(), 2654435761
    for _ in range(max(vectors)):
        buffer.append(gen >> 56)
        gen = gen * 11400714785074694797 & remus_reader.MASK
    wrong = [n for n, h in vectors.items() if remus_reader.xxh3_64(bytes(buffer[:n])) != h]
    check(not wrong, f"XXH3-64 of known vectors {wrong or ''}")


def test_product_writes_the_same(make_records):
    with tempfile.TemporaryDirectory() as d:
        subprocess.run([make_records, "golden", d], check=True)
        for name in names:
            check(contents(f"{d}/{name}.bin") == contents(f"{golden}/{name}.bin"),
                  f"{name}.bin is what the product writes")


def test_reader_understands(name, data):
    text, error = read(data)
    with open(f"{golden}/{name}.txt", encoding="utf-8") as f:
        check(text == f.read(), f"{name}.bin reads as {name}.txt {error or ''}")


def test_reader_refuses(name, data):
    """R10: any octet changed, anything cut off that is no whole record."""
    starts, at = [0], 0
    while at < len(data):
        at += remus_reader.HEADER + int.from_bytes(data[at + 4:at + 8], "big")
        starts.append(at)
    through = [cut for cut in range(len(data)) if cut not in starts and read(data[:cut])[1] is None]
    check(not through, f"{name}.bin cut off {through or ''}")
    through = [i for i in range(len(data))
               if read(data[:i] + bytes([data[i] ^ 0x41]) + data[i + 1:])[1] is None]
    check(not through, f"{name}.bin with any octet changed {through or ''}")


def records(data):
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at + 4:at + 8], "big")
        yield (int.from_bytes(data[at:at + 2], "big"), int.from_bytes(data[at + 8:at + 16], "big"),
               data[at + remus_reader.HEADER:at + remus_reader.HEADER + length])
        at += remus_reader.HEADER + length


def test_reader_refuses_wrong_streams(data):
    """The same with right checksums: what only the specification forbids (R2, R4)."""
    good = list(records(data))
    check(b"".join(remus_reader.record(*r) for r in good) == data, "the test seals records as the product does")
    good = [r for r in good if r[0] != 4]
    end = next(i for i, r in enumerate(good) if r[0] == 8)
    streams = {
        "wrong digest": good[:end] + [(8, 1, good[end][2][:-1] + bytes([good[end][2][-1] ^ 1]))],
        "wrong count": good[:end] + [(8, 1, bytes(24))],
        "state missing": good[:2] + good[3:],
        "checkpoint twice": good[:end + 1] + good[2:],
        "mixed epochs": good[:3] + [(6, 2, b"x")],
        "synchronising after a checkpoint": good[:end + 1] + good[1:2],
        "acknowledgement from a primary": good[:1] + [(9, 1, b"")],
        "second hello": good[:1] + good[:1],
        "handover of what was not sent": good[:end + 1] + [(11, 2, b"")],
        "heartbeat with a body": good[:1] + [(4, 0, b"x")],
        "record after goodbye": good[:1] + [(10, 0, b"\0\0\0"), (4, 0, b"")],
    }
    for what, stream in streams.items():
        text, error = read(b"".join(remus_reader.record(*r) for r in stream))
        check(text is None, f"refuses: {what}: {error}")


def main():
    make_records = os.path.join(os.environ.get("top_builddir", "."), "tests", "make-records")
    test_xxh3()
    if os.access(make_records, os.X_OK):
        test_product_writes_the_same(make_records)
    else:
        check(False, f"{make_records} is not built: run make check")
    for name in names:
        data = contents(f"{golden}/{name}.bin")
        test_reader_understands(name, data)
        test_reader_refuses(name, data)
    test_reader_refuses_wrong_streams(contents(f"{golden}/primary.bin"))
    print(f"1..{count}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
