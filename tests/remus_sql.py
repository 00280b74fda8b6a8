# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of database parsers against real servers share: the parser, a client's socket, TAP."""

import os
import subprocess

TOP = os.environ.get("top_builddir", "..")
number = 0


def report(ok, name, note=""):
    global number
    number += 1
    print("%sok %d - %s%s" % ("" if ok else "not ", number, name, "" if ok else "\n# " + note), flush=True)


def report_end():
    print("1..%d" % number)


class Parser:
    """tests/parse-stream: is shown messages, tells what they mean to the gate."""

    def __init__(self, protocol):
        self.proc = subprocess.Popen([TOP + "/tests/parse-stream", protocol], stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, text=True)

    def feed(self, data, mark=""):
        self.proc.stdin.write(mark + data.hex() + "\n")
        self.proc.stdin.flush()
        return self.proc.stdout.readline().strip()

    def close(self):
        self.proc.stdin.close()
        self.proc.stdout.close()
        self.proc.wait()


class Client:
    """A socket and the parser that listens.  seen: what it said about each message, over one request."""

    def __init__(self, sock, protocol):
        self.sock = sock
        self.sock.settimeout(20)
        self.parser = Parser(protocol)
        self.seen = self.last = ""

    def exactly(self, n):
        data = b""
        while len(data) < n:
            more = self.sock.recv(n - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def close(self):
        self.sock.close()
        self.parser.close()
