# SPDX-License-Identifier: GPL-2.0-or-later
"""A small NBD client, so that tests write to a VM's disk as its guest would."""
import socket
import struct

READ, WRITE, DISC, FLUSH, TRIM, ZERO = 0, 1, 2, 3, 4, 6
FUA = 1


class Nbd:
    def __init__(self, path, export="0"):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(path)
        assert self.take(16) == b"NBDMAGICIHAVEOPT"
        self.take(2)
        self.socket.sendall(struct.pack(">I", 3))
        name = export.encode()
        data = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", 7, len(data)) + data)
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            body = self.take(length)
            if kind == 3 and body[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", body[2:12])
            elif kind == 1:
                break
            elif kind >> 31:
                raise OSError(f"NBD option refused: {body!r}")
        self.handle = 0

    def take(self, n):
        data = b""
        while len(data) < n:
            more = self.socket.recv(n - len(data))
            if not more:
                raise EOFError("the disk server closed the connection")
            data += more
        return data

    def request(self, kind, offset, length, data=b"", flags=0):
        self.handle += 1
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, flags, kind, self.handle, offset, length) + data)
        magic, error, handle = struct.unpack(">IIQ", self.take(16))
        assert magic == 0x67446698 and handle == self.handle
        if error:
            raise OSError(error, "NBD error")
        return self.take(length) if kind == READ else b""

    def read(self, offset, length):
        return self.request(READ, offset, length)

    def write(self, offset, data, flags=0):
        self.request(WRITE, offset, len(data), data, flags)

    def zero(self, offset, length):
        self.request(ZERO, offset, length)

    def trim(self, offset, length):
        self.request(TRIM, offset, length)

    def flush(self):
        self.request(FLUSH, 0, 0)

    def close(self):
        self.socket.close()
