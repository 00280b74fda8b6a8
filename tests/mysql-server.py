#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""R3 against a real MariaDB: each packet of both sides is shown to the parser, and a second connection looks whether
anything has been committed meanwhile.  If so, the parser must have called it an end; inside a transaction it must not.
All of it once for each form that the protocol can have.  TAP; needs MariaDB's server programs."""

import os
import pwd
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time

from remus_sql import Client, report, report_end

LONGEST = 0xffffff

LONG, CONNECT_DB, COMPRESS, LOCAL_FILES, P41, TRANSACTIONS = 1, 8, 32, 128, 512, 1 << 13
SECURE, MULTI_STATEMENTS, MULTI_RESULTS, PS_MULTI, PLUGIN = 1 << 15, 1 << 16, 1 << 17, 1 << 18, 1 << 19
DEPRECATE_EOF = 1 << 24
BASE = CONNECT_DB | P41 | TRANSACTIONS | SECURE | MULTI_STATEMENTS | MULTI_RESULTS | PS_MULTI | PLUGIN
PROGRESS, CACHE_METADATA = 1, 16  # MariaDB's own
MORE_RESULTS, CURSOR_EXISTS, LAST_ROW = 8, 64, 128


def lenenc(body, at):
    first = body[at]
    size = {0xfc: 2, 0xfd: 3, 0xfe: 8}.get(first)
    if size is None:
        return first, at + 1
    return int.from_bytes(body[at + 1:at + 1 + size], "little"), at + 1 + size


def ok_status(body):
    _, at = lenenc(body, 1)
    _, at = lenenc(body, at)
    return struct.unpack_from("<H", body, at)[0]


class Connection(Client):
    def __init__(self, path, flags=BASE, mariadb=0):
        self.flags, self.mariadb = flags, mariadb
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        super().__init__(sock, "mysql")
        self.statement = 0
        self.packet()
        self.send(struct.pack("<IIB19xI", flags, 1 << 24, 33, mariadb) + b"root\0\0d\0mysql_native_password\0", 1)
        if not flags & COMPRESS:
            self.until_ok()

    def send(self, body, seq=0):
        data = struct.pack("<I", len(body))[:3] + bytes([seq]) + body
        self.seen += self.parser.feed(data, ">")
        self.sock.sendall(data)

    def packet(self):
        head = self.exactly(4)
        body = self.exactly(int.from_bytes(head[:3], "little"))
        self.number = head[3]
        self.last = self.parser.feed(head + body)
        self.seen += self.last
        return body if len(body) < LONGEST else body + self.packet()

    def until_ok(self):
        while True:
            body = self.packet()
            if body[0] in (0, 0xff):
                assert body[0] == 0, body
                return
            self.send(b"", self.number + 1)

    def is_eof(self, body):
        return body[0] == 0xfe and len(body) < (LONGEST if self.flags & DEPRECATE_EOF else 9)

    def eof_status(self, body):
        return ok_status(body) if self.flags & DEPRECATE_EOF else struct.unpack_from("<H", body, 3)[0]

    def rows(self):
        """(status, rows)"""
        rows = []
        while True:
            body = self.packet()
            if body[0] == 0xff:
                return 0, rows
            if self.is_eof(body):
                return self.eof_status(body), rows
            rows.append(body)

    def results(self):
        """All rows of all results."""
        rows = []
        while True:
            body = self.packet()
            if body[0] == 0xff and body[1:3] == b"\xff\xff":
                continue
            if body[0] == 0xff:
                self.error = body[9:].decode(errors="replace")
                return rows
            if body[0] == 0:
                status = ok_status(body)
            elif self.is_eof(body):
                status = self.eof_status(body)
            else:
                count, at = lenenc(body, 0)
                if not self.mariadb & CACHE_METADATA or body[at]:
                    for _ in range(count):
                        self.packet()
                status = 0
                if not self.flags & DEPRECATE_EOF:
                    status = struct.unpack_from("<H", self.packet(), 3)[0]
                if not status & CURSOR_EXISTS:
                    status, more = self.rows()
                    rows += more
            if not status & MORE_RESULTS:
                return rows

    def query(self, text):
        self.seen = ""
        self.send(b"\3" + text.encode())
        return self.results()

    def prepare(self, text):
        self.send(b"\x16" + text.encode())
        body = self.packet()
        assert body[0] == 0, body
        self.statement, columns, params = struct.unpack_from("<IHH", body, 1)
        for count in (params, columns):
            for _ in range(count + (1 if count and not self.flags & DEPRECATE_EOF else 0)):
                self.packet()

    def execute(self, value=None, cursor=0):
        bound = b"" if value is None else b"\0\1\3\0" + struct.pack("<i", value)
        self.send(b"\x17" + struct.pack("<IBI", self.statement, cursor, 1) + bound)
        return self.results()


def query(text):
    return lambda c: c.query(text)


def plain_command(code, body=b""):
    def run(c):
        c.send(bytes([code]) + body)
        c.results()
    return run


def prepare(text):
    return lambda c: c.prepare(text)


def execute(value=None):
    return lambda c: c.execute(value)


def fetch_by_cursor(c):
    c.prepare("SELECT * FROM t")
    c.execute(cursor=1)
    status = 0
    while not status & LAST_ROW:
        c.send(b"\x1c" + struct.pack("<II", c.statement, 2))
        status, _ = c.rows()
    c.send(b"\x1a" + struct.pack("<I", c.statement))
    c.results()
    c.send(b"\x19" + struct.pack("<I", c.statement))


def bulk(c):
    c.prepare("INSERT INTO t VALUES (?)")
    c.send(b"\xfa" + struct.pack("<IH", c.statement, 128) + b"\3\0" + b"".join(b"\0" + struct.pack("<i", i) for i in (1, 2)))
    c.results()


def long_data(c):
    c.prepare("SELECT ?")
    c.send(b"\x18" + struct.pack("<IH", c.statement, 0) + b"x" * 70000)
    c.send(b"\x17" + struct.pack("<IBI", c.statement, 0, 1) + b"\0\1\xfd\0")
    c.results()


def change_user(c):
    c.send(b"\x11root\0\0d\0\x21\0mysql_native_password\0")
    c.until_ok()


def field_list(c):
    c.send(b"\4t\0")
    c.rows()


def statistics(c):
    c.send(b"\x09")
    c.packet()


def pipeline(*texts):
    def run(c):
        for text in texts:
            c.send(b"\3" + text.encode())
        for _ in texts:
            c.results()
    return run


SETUP = ["CREATE DATABASE IF NOT EXISTS d", "DROP TABLE IF EXISTS d.t, d.l, d.w", "CREATE TABLE d.t (v int) ENGINE=InnoDB",
         "CREATE TABLE d.l (v int PRIMARY KEY) ENGINE=InnoDB", "INSERT INTO d.l VALUES (1), (2)", "DROP PROCEDURE IF EXISTS d.p",
         "CREATE PROCEDURE d.p() BEGIN INSERT INTO t VALUES (1); COMMIT; START TRANSACTION; SELECT * FROM t; "
         "INSERT INTO t VALUES (2); END", "DROP FUNCTION IF EXISTS d.f",
         "CREATE FUNCTION d.f() RETURNS int MODIFIES SQL DATA BEGIN INSERT INTO t VALUES (3); RETURN 1; END"]

# name, request, flags behind the reply: B inside a transaction; I: inside of one all the time, nothing may be an end;
# None: either
STEPS = [
    ("INSERT", query("INSERT INTO t VALUES (1)"), ""),
    ("SELECT", query("SELECT * FROM t"), ""),
    ("an error", query("SELECT nonsense"), ""),
    ("BEGIN after an error", query("BEGIN"), "B"),
    ("INSERT in a block", query("INSERT INTO t VALUES (2)"), "I"),
    ("SELECT in a block", query("SELECT * FROM t, seq_1_to_500"), "I"),
    ("its first word in another way", query(" \n\tselect* from t"), "I"),
    ("UPDATE", query("UPDATE t SET v = v + 1"), "I"),
    ("DELETE", query("DELETE FROM t WHERE v = 77"), "I"),
    ("WITH", query("WITH x AS (SELECT 1) SELECT * FROM x"), "I"),
    ("SELECT INTO", query("SELECT 1 INTO @x"), "I"),
    ("a function that writes", query("SELECT f()"), "I"),
    ("SAVEPOINT", query("SAVEPOINT s"), "I"),
    ("ROLLBACK TO", query("ROLLBACK TO s"), "I"),
    ("RELEASE SAVEPOINT", query("RELEASE SAVEPOINT s"), "I"),
    ("INSERT RETURNING", query("INSERT INTO t VALUES (4) RETURNING v"), "I"),
    ("an error in a block", query("SELECT nonsense"), ""),
    ("a statement after it", query("INSERT INTO t VALUES (1)"), "B"),
    ("SET", query("SET @y = 1"), "B"),
    ("COMMIT", query("COMMIT"), ""),
    ("BEGIN", query("BEGIN"), "I"),
    ("INSERT", query("INSERT INTO t VALUES (1)"), "I"),
    ("COMMIT AND CHAIN", query("COMMIT AND CHAIN"), "B"),
    ("INSERT in the chain", query("INSERT INTO t VALUES (1)"), "I"),
    ("ROLLBACK AND CHAIN", query("ROLLBACK AND CHAIN"), "B"),
    ("INSERT in the chain", query("INSERT INTO t VALUES (1)"), "I"),
    ("BEGIN in a block", query("BEGIN"), "B"),
    ("INSERT", query("INSERT INTO t VALUES (1)"), "I"),
    ("START TRANSACTION in a block", query("START TRANSACTION WITH CONSISTENT SNAPSHOT"), "B"),
    ("INSERT", query("INSERT INTO t VALUES (1)"), "I"),
    ("COMMIT as a comment", query("/*!50000 COMMIT AND CHAIN */"), "B"),
    ("INSERT", query("INSERT INTO t VALUES (1)"), "I"),
    ("DDL in a block", query("CREATE TABLE w (v int)"), ""),
    ("START TRANSACTION", query("START TRANSACTION"), "I"),
    ("INSERT", query("INSERT INTO t VALUES (1)"), "I"),
    ("DDL that fails", query("CREATE TABLE w (v int)"), ""),
    ("BEGIN WORK behind an error", query("BEGIN WORK"), "B"),
    ("INSERT", query("INSERT INTO t VALUES (1)"), "I"),
    ("CALL that commits and begins", query("CALL p()"), "B"),
    ("ROLLBACK", query("ROLLBACK"), ""),
    ("CALL outside of a block", query("CALL p()"), "B"),
    ("COMMIT", query("COMMIT"), ""),
    ("block of statements", query("BEGIN NOT ATOMIC INSERT INTO t VALUES (1); COMMIT; START TRANSACTION; END"), "B"),
    ("COMMIT", query("COMMIT"), ""),
    ("statements in one query", query("SELECT 1; SELECT 2"), ""),
    ("BEGIN and more in one query", query("BEGIN; INSERT INTO t VALUES (1); COMMIT; START TRANSACTION"), "B"),
    ("COMMIT AND CHAIN among others", query("INSERT INTO t VALUES (1); COMMIT AND CHAIN; SELECT * FROM t"), "B"),
    ("its rollback", query("ROLLBACK"), ""),
    ("SET autocommit = 0", query("SET autocommit = 0"), ""),
    ("INSERT begins a transaction", query("INSERT INTO t VALUES (1)"), "I"),
    ("COMMIT", query("COMMIT"), ""),
    ("SELECT begins a transaction", query("SELECT * FROM t"), "B"),
    ("INSERT", query("INSERT INTO t VALUES (1)"), "I"),
    ("SET autocommit = 1", query("SET autocommit = 1"), ""),
    ("prepared outside of a block", prepare("INSERT INTO t VALUES (?)"), ""),
    ("its execution", execute(1), ""),
    ("BEGIN", query("BEGIN"), "I"),
    ("prepared in a block", prepare("INSERT INTO t VALUES (?)"), "I"),
    ("its execution", execute(2), "I"),
    ("again", execute(3), "I"),
    ("prepared SELECT", prepare("SELECT * FROM t WHERE v > ?"), "I"),
    ("its execution", execute(0), "I"),
    ("a cursor", fetch_by_cursor, "I"),
    ("long data", long_data, "I"),
    ("prepared COMMIT", prepare("COMMIT AND CHAIN"), "I"),
    ("its execution", execute(), "B"),
    ("INSERT", query("INSERT INTO t VALUES (1)"), "I"),
    ("PREPARE in SQL", query("PREPARE s FROM 'COMMIT AND CHAIN'"), "B"),
    ("EXECUTE in SQL", query("EXECUTE s"), "B"),
    ("INSERT", query("INSERT INTO t VALUES (1)"), "I"),
    ("EXECUTE IMMEDIATE", query("EXECUTE IMMEDIATE 'COMMIT AND CHAIN'"), "B"),
    ("prepared DDL", prepare("CREATE TABLE d.never (v int)"), "I"),
    ("pipeline", pipeline("INSERT INTO t VALUES (1)", "SELECT * FROM t"), "I"),
    ("pipeline over a COMMIT", pipeline("INSERT INTO t VALUES (1)", "COMMIT", "BEGIN", "SELECT * FROM t"), "B"),
    ("ping", plain_command(14), "B"),
    ("USE", plain_command(2, b"d"), "B"),
    ("list of columns", field_list, "B"),
    ("statistics", statistics, ""),
    ("INSERT", query("INSERT INTO t VALUES (1)"), "B"),
    ("COMMIT", query("COMMIT"), ""),
    ("LOCK TABLES", query("LOCK TABLES t READ"), ""),
    ("UNLOCK TABLES", query("UNLOCK TABLES"), ""),
    ("XA START", query("XA START 'a'"), None),
    ("INSERT in it", query("INSERT INTO t VALUES (1)"), None),
    ("XA END", query("XA END 'a'"), None),
    ("XA PREPARE", query("XA PREPARE 'a'"), None),
    ("XA COMMIT", query("XA COMMIT 'a'"), None),
    ("XA START", query("XA START 'b'"), None),
    ("INSERT in it", query("INSERT INTO t VALUES (1)"), None),
    ("XA END", query("XA END 'b'"), None),
    ("XA COMMIT in one", query("XA COMMIT 'b' ONE PHASE"), None),
    ("SELECT", query("SELECT 1"), ""),
    ("BEGIN", query("BEGIN"), "I"),
    ("INSERT", query("INSERT INTO t VALUES (1)"), "I"),
    ("a lock that times out and rolls back", query("UPDATE l SET v = 7 WHERE v = 1"), ""),
    ("INSERT outside of a block then", query("INSERT INTO t VALUES (1)"), ""),
    ("BEGIN, INSERT", pipeline("BEGIN", "INSERT INTO t VALUES (1)"), "I"),
    ("reset of the connection", plain_command(31), ""),
    ("BEGIN, INSERT", pipeline("BEGIN", "INSERT INTO t VALUES (1)"), "I"),
    ("change of the user", change_user, ""),
    ("SELECT after it", query("SELECT * FROM t"), ""),
    ("BEGIN", query("BEGIN"), "I"),
    ("a long statement", query("INSERT INTO t VALUES " + ", ".join(["(1)"] * 20000)), "I"),
    ("INSERT SELECT", query("INSERT INTO t SELECT * FROM t LIMIT 5"), "I"),
    ("a long row", query("SELECT repeat('x', 17000000), 1"), "I"),
    ("COMMIT", query("COMMIT"), ""),
]


def run_steps(path, form, flags, mariadb):
    setup = Connection(path)
    for statement in SETUP:
        setup.query(statement)
    client, other, locker = Connection(path, flags, mariadb), Connection(path), setup
    locker.query("USE d")
    locker.query("BEGIN")
    locker.query("UPDATE l SET v = 3 WHERE v = 1")

    def fingerprint():
        return (other.query("SELECT (SELECT count(*) FROM t), (SELECT coalesce(sum(v), 0) FROM t), (SELECT count(*) FROM "
                            "information_schema.tables WHERE table_schema = 'd')"), other.query("XA RECOVER"))

    steps = STEPS
    if mariadb:
        steps = STEPS[:4] + [("bulk", bulk, "I")] + STEPS[4:]
    before = fingerprint()
    for name, request, want in steps:
        client.seen = ""
        request(client)
        after = fingerprint()
        ok = "L" not in client.seen and (want is None or ("B" in client.last) == (want != ""))
        if after != before:
            ok = ok and "E" in client.seen
        if want == "I":
            ok = ok and "E" not in client.seen
        report(ok, "%s: %s" % (form, name), "parser said %r, %s" % (client.seen[-200:], "committed" if after != before else
                                                                   "nothing new"))
        before = after
    for connection in (client, other, locker):
        connection.close()


def run_beyond(path):
    client = Connection(path)
    client.send(b"\x15" + b"\0" * 18)
    report("L" in client.seen, "a replica is strict", client.seen)
    client.close()
    client = Connection(path, BASE | COMPRESS)
    report("L" in client.seen, "compression is strict", client.seen)
    client.close()
    client = Connection(path, BASE | LOCAL_FILES)
    client.seen = ""
    client.send(b"\3LOAD DATA LOCAL INFILE 'x' INTO TABLE t")
    client.packet()
    report("L" in client.seen, "a local file is strict", client.seen)
    client.close()


def main():
    server = shutil.which("mariadbd", path=os.environ["PATH"] + ":/usr/sbin")
    install = shutil.which("mariadb-install-db")
    if not server or not install:
        print("1..0 # SKIP no MariaDB server here (Debian: mariadb-server-core)")
        return
    with tempfile.TemporaryDirectory(prefix="mysql-server-") as tmp:
        as_user, user_option = [], []
        if os.getuid() == 0:
            user = pwd.getpwnam("nobody")
            os.chown(tmp, user.pw_uid, user.pw_gid)
            user_option = ["--user=nobody"]
            as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        made = subprocess.run([install, "--no-defaults", "--datadir=" + tmp + "/db", "--skip-test-db",
                               "--auth-root-authentication-method=normal"] + user_option, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, cwd=tmp)
        if made.returncode:
            print("Bail out! mariadb-install-db: " + made.stdout)
            return
        path = tmp + "/socket"
        daemon = subprocess.Popen(as_user + [server, "--no-defaults", "--datadir=" + tmp + "/db", "--socket=" + path,
                                             "--skip-networking", "--innodb-rollback-on-timeout", "--local-infile",
                                             "--innodb-lock-wait-timeout=1", "--innodb-flush-log-at-trx-commit=0",
                                             "--innodb-buffer-pool-size=8M", "--max-allowed-packet=64M"], cwd=tmp,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while True:
                try:
                    socket.socket(socket.AF_UNIX).connect(path)
                    break
                except OSError:
                    if daemon.poll() is not None:
                        raise RuntimeError("mariadbd ended")
                    time.sleep(0.05)
            setup = Connection(path, BASE & ~CONNECT_DB)
            setup.query(SETUP[0])
            setup.close()
            run_steps(path, "MySQL's", BASE | LONG, 0)
            run_steps(path, "without EOF", BASE | LONG | DEPRECATE_EOF, 0)
            run_steps(path, "MariaDB's", BASE | DEPRECATE_EOF, PROGRESS | 4 | 8 | CACHE_METADATA)
            run_steps(path, "MariaDB's with EOF", BASE, 4 | CACHE_METADATA)
            run_beyond(path)
        finally:
            daemon.kill()
            daemon.wait()
    report_end()


if __name__ == "__main__":
    sys.exit(main())
