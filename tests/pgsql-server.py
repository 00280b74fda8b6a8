#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""R3 against a real PostgreSQL: each reply is shown to the parser, and a second connection looks whether anything
has been committed meanwhile.  If so, the parser must have called it an end; inside a transaction it must not.
TAP; needs PostgreSQL's server programs."""

import glob
import os
import pwd
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile

from remus_sql import Client, report, report_end


def message(kind, body=b""):
    return kind + struct.pack(">I", len(body) + 4) + body


def query(text):
    return message(b"Q", text.encode() + b"\0")


def pipeline(*texts):
    out = b""
    for text in texts:
        out += message(b"P", b"\0" + text.encode() + b"\0\0\0") + message(b"B", b"\0\0\0\0\0\0\0\0")
        out += message(b"D", b"P\0") + message(b"E", b"\0\0\0\0\0")
    return out + message(b"S")


class Connection(Client):
    def __init__(self, port, ssl_request=False, **options):
        super().__init__(socket.create_connection(("127.0.0.1", port)), "pgsql")
        if ssl_request:
            self.sock.sendall(struct.pack(">II", 8, 80877103))
            self.parser.feed(self.exactly(1))
        options.update(user="postgres", database="postgres")
        body = struct.pack(">I", 196608)
        for key, value in options.items():
            body += key.encode() + b"\0" + value.encode() + b"\0"
        body += b"\0"
        self.sock.sendall(struct.pack(">I", len(body) + 4) + body)
        self.until(b"Z")

    def until(self, kinds):
        """Reads messages up to one of the types in `kinds`; their types and bodies."""
        out = []
        self.seen = ""
        while not out or out[-1][0] not in kinds:
            try:
                head = self.exactly(5)
                body = self.exactly(struct.unpack(">I", head[1:])[0] - 4)
            except EOFError:
                break
            self.last = self.parser.feed(head + body)
            self.seen += self.last
            out.append((head[:1], body))
        return out

    def run(self, request, kinds=b"Z"):
        self.sock.sendall(request)
        return self.until(kinds)


FINGERPRINT = query("SELECT (SELECT count(*) FROM t), (SELECT coalesce(sum(v), 0) FROM t), (SELECT count(*) FROM "
                    "pg_prepared_xacts), (SELECT count(*) FROM pg_largeobject_metadata), (SELECT count(*) FROM "
                    "pg_class)")

SETUP = """CREATE TABLE t (v int);
CREATE TABLE u (v int UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ BEGIN
 INSERT INTO t VALUES (1); COMMIT; RAISE NOTICE 'committed'; INSERT INTO t VALUES (2); COMMIT; END $$;"""

COPY = message(b"d", b"5\n") + message(b"d", b"6\n") + message(b"c")
LO_CREAT = message(b"F", struct.pack(">IHHHiIH", 957, 1, 1, 1, 4, 0x20000, 1))

# name, request, flags behind the reply: B inside a transaction; I: inside of one all the time, nothing may be an end
STEPS = [
    ("INSERT", query("INSERT INTO t VALUES (1)"), ""),
    ("SELECT", query("SELECT * FROM t"), ""),
    ("nothing", query(""), ""),
    ("an error", query("SELECT 1/0"), ""),
    ("BEGIN", query("BEGIN"), "B"),
    ("INSERT in a block", query("INSERT INTO t VALUES (2)"), "I"),
    ("SELECT in a block", query("SELECT * FROM t, generate_series(1, 500)"), "I"),
    ("pipeline in a block", pipeline("INSERT INTO t VALUES (3)", "SELECT * FROM t", "UPDATE t SET v = 4"), "I"),
    ("SAVEPOINT", query("SAVEPOINT s"), "I"),
    ("an error in a block", query("SELECT 1/0"), "I"),
    ("a statement after it", query("SELECT 1"), "I"),
    ("ROLLBACK TO", query("ROLLBACK TO s"), "B"),
    ("COPY in a block", query("COPY t FROM STDIN") + COPY, "I"),
    ("COPY out in a block", query("COPY t TO STDOUT"), "I"),
    ("SET with a report", query("SET application_name = 'x'"), "I"),
    ("a notice", query("DO $$ BEGIN RAISE NOTICE 'x'; END $$"), "I"),
    ("DECLARE, FETCH", query("DECLARE c CURSOR FOR SELECT * FROM t; FETCH 2 FROM c; CLOSE c"), "I"),
    ("COMMIT AND CHAIN", query("COMMIT AND CHAIN"), "B"),
    ("INSERT in the chain", query("INSERT INTO t VALUES (7)"), "I"),
    ("ROLLBACK AND CHAIN", query("ROLLBACK AND CHAIN"), "B"),
    ("INSERT, COMMIT", query("INSERT INTO t VALUES (8); COMMIT"), ""),
    ("query string with its own transaction", query("BEGIN; INSERT INTO t VALUES (9); COMMIT; BEGIN"), "B"),
    ("query string that goes on", query("INSERT INTO t VALUES (10); COMMIT; INSERT INTO t VALUES (11)"), ""),
    ("implicit transaction of a query string", query("INSERT INTO t VALUES (1); INSERT INTO t VALUES (1)"), ""),
    ("pipeline with BEGIN and COMMIT", pipeline("BEGIN", "INSERT INTO t VALUES (12)", "COMMIT"), ""),
    ("BEGIN", query("START TRANSACTION ISOLATION LEVEL SERIALIZABLE"), "B"),
    ("pipeline over a COMMIT", pipeline("INSERT INTO t VALUES (1)", "COMMIT", "INSERT INTO t VALUES (2)"), ""),
    ("pipeline of single statements", pipeline("INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2)"), ""),
    ("BEGIN, INSERT", query("BEGIN; INSERT INTO t VALUES (13)"), "B"),
    ("PREPARE TRANSACTION", query("PREPARE TRANSACTION 'a'"), ""),
    ("COMMIT PREPARED", query("COMMIT PREPARED 'a'"), ""),
    ("BEGIN, INSERT", query("BEGIN; INSERT INTO t VALUES (14)"), "B"),
    ("PREPARE TRANSACTION", query("PREPARE TRANSACTION 'b'"), ""),
    ("ROLLBACK PREPARED", query("ROLLBACK PREPARED 'b'"), ""),
    ("CALL that commits", query("CALL p()"), ""),
    ("CALL in a pipeline", pipeline("CALL p()"), ""),
    ("DO that commits", query("DO $$ BEGIN INSERT INTO t VALUES (1); COMMIT; END $$"), ""),
    ("COMMIT that fails", query("BEGIN; INSERT INTO u VALUES (1), (1)"), "B"),
    ("its end", query("COMMIT"), ""),
    ("function call", LO_CREAT, ""),
    ("COPY", query("COPY t FROM STDIN") + COPY, ""),
    ("CREATE DATABASE", query("CREATE DATABASE d"), ""),
    ("VACUUM", query("VACUUM t"), ""),
    ("DDL", query("CREATE TABLE w (v int)"), ""),
    ("LISTEN", query("LISTEN x"), ""),
    ("NOTIFY", query("NOTIFY x"), ""),
    ("BEGIN", query("BEGIN"), "B"),
    ("NOTIFY in a block", query("NOTIFY x"), "I"),
    ("COMMIT with a notification", query("COMMIT"), ""),
]


def run_steps(port):
    client, other = Connection(port, ssl_request=True), Connection(port)
    before = other.run(FINGERPRINT)
    for name, request, want in STEPS:
        client.run(request)
        after = other.run(FINGERPRINT)
        ok = "L" not in client.seen and ("B" in client.last) == (want != "")
        if after != before:
            ok = ok and "E" in client.seen
        if want == "I":
            ok = ok and "E" not in client.seen
        report(ok, name, "parser said %r, %s" % (client.seen, "committed" if after != before else "nothing new"))
        before = after
    client.run(query("BEGIN"))
    pid = client.run(query("SELECT pg_backend_pid()"))[1][1][6:].decode()
    other.run(query("SELECT pg_terminate_backend(%s)" % pid))
    client.until(b"")
    report("E" in client.seen, "a fatal error is an end", client.seen)
    client.close()
    other.close()


def run_early_words(port):
    """What is sent between a commit and the end of its statement, or outside of any."""
    client, other = Connection(port), Connection(port)
    pid = client.run(query("SELECT pg_backend_pid()"))[1][1][6:].decode()
    for name, before, request, meanwhile in (
            ("a notice of a block of code that has committed", "SELECT",
             "DO $$ BEGIN INSERT INTO t VALUES (1); COMMIT; RAISE NOTICE 'x'; PERFORM pg_sleep(60); END $$", "SELECT"),
            ("a warning that the commit is done, but not replicated", "BEGIN; SET LOCAL synchronous_commit = on; "
             "INSERT INTO t VALUES (1)", "COMMIT", "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = %s AND "
             "wait_event = 'SyncRep'" % pid)):
        client.run(query(before))
        fingerprint = other.run(FINGERPRINT)
        client.sock.sendall(query(request))
        while not select.select([client.sock], [], [], 0.05)[0]:
            other.run(query(meanwhile))
        client.until(b"N")
        seen = client.seen
        other.run(query("SELECT pg_cancel_backend(%s)" % pid))
        client.until(b"Z")
        report("E" in seen and other.run(FINGERPRINT) != fingerprint, name, "parser said %r" % seen)
    other.run(query("ALTER SYSTEM SET TimeZone = 'Asia/Tokyo'"))
    other.run(query("SELECT pg_reload_conf()"))
    while client.run(message(b"S"), b"SZ")[-1][0] != b"S":  # not reloaded yet
        pass
    report("E" in client.seen, "a parameter after a reload", "parser said %r" % client.seen)
    client.close()
    other.close()


def run_walsender(port):
    client = Connection(port, replication="true")
    client.run(query("START_REPLICATION PHYSICAL 0/1000000"), b"W")
    report("L" in client.seen, "a walsender is strict", client.seen)
    client.close()


def main():
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    if not found:
        print("1..0 # SKIP no PostgreSQL server here (Debian: postgresql)")
        return
    bin_dir = os.path.dirname(found[-1])
    with tempfile.TemporaryDirectory(prefix="pgsql-server-") as tmp:
        as_user = []
        if os.getuid() == 0:
            try:
                user = pwd.getpwnam("postgres")
            except KeyError:
                print("1..0 # SKIP root cannot run PostgreSQL, and there is no user postgres")
                return
            os.chown(tmp, user.pw_uid, user.pw_gid)
            as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        subprocess.run(as_user + [bin_dir + "/initdb", "-D", tmp + "/db", "-U", "postgres", "-A", "trust", "-N"],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp)
        control = as_user + [bin_dir + "/pg_ctl", "-D", tmp + "/db", "-w", "-s"]
        subprocess.run(control + ["-l", tmp + "/log", "-o", "-p %d -k %s -c fsync=off -c max_prepared_transactions=5 "
                                  "-c listen_addresses=127.0.0.1 -c synchronous_standby_names=none "
                                  "-c synchronous_commit=local" % (port, tmp), "start"], check=True, cwd=tmp)
        try:
            setup = Connection(port)
            for statement in SETUP.split(";\n"):
                setup.run(query(statement))
            setup.close()
            run_steps(port)
            run_early_words(port)
            run_walsender(port)
        finally:
            subprocess.run(control + ["-m", "immediate", "stop"], cwd=tmp)
    report_end()


if __name__ == "__main__":
    sys.exit(main())
