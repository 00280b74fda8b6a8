# SPDX-License-Identifier: GPL-2.0-or-later
"""PostgreSQL's protocol 3, simple queries: as much as the tests need."""
import socket
import struct


class Connection:
    """To the guest of scripts/hosts.sh. No answer within `patience` seconds is an error."""

    def __init__(self, patience=60):
        self.sock = socket.create_connection(("10.77.0.2", 5432), patience)
        self.sock.settimeout(patience)
        self.buffer = b""
        body = struct.pack(">I", 3 << 16) + b"user\0postgres\0database\0postgres\0\0"
        self.sock.sendall(struct.pack(">I", len(body) + 4) + body)
        self.answer()

    def send(self, sql):
        body = sql.encode() + b"\0"
        self.sock.sendall(b"Q" + struct.pack(">I", len(body) + 4) + body)

    def take(self, n):
        while len(self.buffer) < n:
            more = self.sock.recv(65536)
            if not more:
                raise EOFError("closed, not reset")
            self.buffer += more
        data, self.buffer = self.buffer[:n], self.buffer[n:]
        return data

    def answer(self):
        """The first columns of the rows, when ReadyForQuery has come."""
        rows = []
        while True:
            kind, length = struct.unpack(">cI", self.take(5))
            body = self.take(length - 4)
            assert kind != b"E", body
            if kind == b"D":
                size, = struct.unpack(">i", body[2:6])
                rows.append(body[6:6 + size].decode())
            if kind == b"Z":
                return rows

    def query(self, sql):
        self.send(sql)
        return self.answer()

    def until_reset(self):
        try:
            while True:
                self.take(1)
        except ConnectionResetError:
            return

    def close(self):
        self.sock.close()
