#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""remusctl against daemons played by this script: what it asks, what it shows, how it exits.

R10: it trusts no answer.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

TOP = os.environ.get("top_builddir", os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
REMUSCTL = os.path.join(TOP, "ctl", "remusctl")

PRIMARY = {
    "vm": "db1", "role": "primary", "state": "protected", "since_s": 7980.5, "platform": "qemu",
    "accelerator": "kvm", "tracker": "uffd", "peer": "10.78.0.2:7910", "interval_ms": 25.0,
    "memory_bytes": 134217728, "epoch": 48215, "acked_epoch": 48213, "in_flight": 2,
    "checkpoints": 48213, "waited": 7, "early": 3, "sync": None,
    "pause_ms": {"total": {"p50": 1.2, "p99": 2.31, "max": 71.0}},
    "dirty_pages": {"p50": 124, "p99": 877}, "bytes_raw": 18870000000, "bytes_sent": 1290000000,
    "ratio": 14.9, "ack_lag_ms": {"p50": 18.2, "p99": 30.5}, "cpu_share": 0.03,
    "cache_hit_rate": 0.905,
    "net": {"held_frames": 3, "held_bytes": 4200, "held_max": 120, "frames_out": 48112,
            "frames_in": 33111, "dropped_in": 0, "dropped_out": 0, "port": "frames", "full_ms": 0,
            "hold_ms": {"p50": 27.0, "p99": 40.1}, "passed": {"open": 7123, "unprotected": 0},
            "held": {"other": 800, "untracked": 0, "strict": 0, "outside": 91, "begun": 17, "behind": 0},
            "flows": {"open": 4, "held": 5, "strict": 1, "untracked": 0,
                      "lost": {"gap": 0, "packet": 0, "encrypted": 1, "replication": 0, "protocol": 0}}},
    "staging": {"used_bytes": 3250000, "max_bytes": 67108864, "stretched": 0},
    "disks": {"count": 2, "in_step": True, "behind_bytes": 40960, "written_bytes": 5 << 30,
              "queue_bytes": 8192, "queue_max_bytes": 32 << 20, "full_ms": 0.0, "errors": 0,
              "pages_by_reference": 120034,
              "sync": None},
    "last_error": None, "advice": None,
}
BACKUP = {
    "vm": "db2", "role": "backup", "state": "ready", "since_s": 12, "primary": "10.78.0.9",
    "platform": "fake", "epoch": 17, "checkpoints": 17, "bytes_received": 1048576,
    "memory_bytes": 268435456, "last_heard_ms": 3, "takeover": None, "arbiter": "none",
    "takeover_policy": "manual", "last_error": None, "advice": None,
    "disks": {"in_step": True, "committed_epoch": 17, "applied_epoch": 16, "journal_bytes": 3 << 20,
              "journal_max_bytes": 256 << 20, "full_ms": 0.0},
}


class Daemon:
    """Answers each request line with what `answer(request)` returns: a dict, or raw bytes."""

    def __init__(self, path, answer):
        self.path, self.answer, self.requests = path, answer, []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client, client.makefile("rb") as lines:
                for line in lines:
                    request = json.loads(line)
                    self.requests.append(request)
                    reply = self.answer(request)
                    if isinstance(reply, dict):
                        reply = json.dumps(reply).encode() + b"\n"
                    client.sendall(reply)

    def close(self, leave_socket=False):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        if not leave_socket:
            os.unlink(self.path)


def ok(result):
    return {"format": 1, "ok": True, "result": result}


def error(code, text="because"):
    return {"format": 1, "ok": False, "code": code, "error": text}


def knows(*vms):
    """A daemon that knows these VMs."""

    def answer(request):
        if "vm" not in request:
            return ok(list(vms))
        found = [vm for vm in vms if vm["vm"] == request["vm"]]
        return ok(found[0]) if found else error("unknown-vm", "no VM " + request["vm"])

    return answer


def remusctl(*args, timeout=20):
    done = subprocess.run([REMUSCTL, "-R", DIR, *args], capture_output=True, text=True,
                          timeout=timeout)
    return done.returncode, done.stdout, done.stderr


def expect(got, status, *texts):
    """Exit status, and texts that must be in what was printed."""
    assert got[0] == status, f"exit status {got[0]}, not {status}: {got}"
    for text in texts:
        assert text in got[1] + got[2], f"no {text!r} in {got}"
    return got


def with_daemons(primary=None, backup=None):
    daemons = []
    for name, answer in (("remusd", primary), ("remus-backupd", backup)):
        daemons.append(answer and Daemon(f"{DIR}/{name}.sock", answer))
    return daemons


def test_no_daemon_is_7():
    expect(remusctl("list"), 7, "neither remusd nor remus-backupd", DIR)
    expect(remusctl("protect", "db1"), 7, "remusd is not running")
    expect(remusctl("takeover", "db1"), 7, "remus-backupd is not running", "if this is the backup host")


def test_daemon_that_died_is_7():
    Daemon(f"{DIR}/remusd.sock", knows()).close(leave_socket=True)
    expect(remusctl("status"), 7, "not running any more")


def test_death_of_one_is_a_warning_when_the_other_answers():
    Daemon(f"{DIR}/remusd.sock", knows()).close(leave_socket=True)
    with_daemons(backup=knows(BACKUP))
    _, _, err = expect(remusctl("status"), 0, "READY")
    assert "warning: remusd is not running any more" in err, err


def test_usage_is_2():
    for args in ([], ["frobnicate"], ["protect"], ["protect", "--now", "db1"], ["status", "a", "b"],
                 ["status", "a/b"], ["status", "--json", "db1"], ["list", "-j"], ["forget", "--force", "db1"], ["set", "db1", "interval"], ["set", "db1", "interval", "4"],
                 ["set", "db1", "interval", "25x"], ["set", "db1", "speed", "9"], ["--frob"]):
        got = expect(remusctl(*args), 2)
        assert got[2], args


def test_usage_names_what_is_wrong():
    expect(remusctl("status", "--json", "db1"), 2, '"--json"', "before the verb")
    expect(remusctl("forget", "--force", "db1"), 2, '"--force"')


def test_socket_without_a_daemon():
    got = expect(remusctl("-s", DIR + "/none.sock", "list"), 7, "there is no " + DIR + "/none.sock")
    assert "systemctl" not in got[2], got  # which daemon it would start nobody knows


def test_unknown_vm_may_be_the_other_daemons():
    with_daemons(backup=knows(BACKUP))
    expect(remusctl("status", "db1"), 6, "db1", "remusd does not run here")


def test_status_of_a_protected_vm():
    with_daemons(knows(PRIMARY))
    _, out, _ = expect(remusctl("status", "db1"), 0)
    lines = out.splitlines()
    assert lines[0] == ("db1: PROTECTED  checkpoint 48213 acknowledged after 18 ms, "
                        "backup 10.78.0.2:7910"), lines[0]
    for text in ("2 h 13 min", "128 MiB", "uffd", "1.20", "2.31", "71.0", "ratio 14.9", "90 %",
                 "3 frames held", "network        frames: "):
        assert text in out, (text, out)


def test_status_tells_at_a_glance_whether_disks_are_in_step():
    def with_disks(state, **keys):
        return dict(PRIMARY, vm=state, state=state, sync=None, disks=dict(PRIMARY["disks"], **keys))

    progress = {"percent": 42.4, "rate_mib_s": 310.2, "eta_s": 12.1}
    with_daemons(knows(PRIMARY, with_disks("syncing", in_step=False, behind_bytes=None, sync=progress),
                       with_disks("holding", in_step=False, behind_bytes=9 << 20),
                       with_disks("connecting", in_step=False, behind_bytes=None), dict(PRIMARY, vm="none", disks=None)),
                 knows(BACKUP, dict(BACKUP, vm="db4", disks=dict(BACKUP["disks"], in_step=False))))
    for vm, status, *texts in (
            ("db1", 0, "2, in step with the memory at checkpoint 48213; 40 KiB on their way", "5 GiB written"),
            ("syncing", 3, "disks 42 % copied, 310 MiB/s, about 12 s left", "SYNCHRONISING: 42 % at 310 MiB/s"),
            ("holding", 3, "the backup is 9 MiB BEHIND"), ("connecting", 3, "the backup has no whole copy"),
            ("db2", 0, "disks          in step with the memory at checkpoint 17, images at 16; journal 3 MiB of 256 MiB"),
            ("db4", 0, "NOT IN STEP")):
        expect(remusctl("status", vm), status, *texts)
    assert "disks" not in expect(remusctl("status", "none"), 0)[1]


def test_what_an_operator_must_not_miss():
    verify = {"running": False, "repair": False, "percent": 100.0, "differing_bytes": 131072}
    no_guest = dict(PRIMARY, vm="db5", state="off", accelerator=None, last_error="no kernel", last_error_s=1.0)
    with_daemons(knows(dict(PRIMARY, disks=dict(PRIMARY["disks"], verify=verify)), no_guest),
                 knows(dict(BACKUP, vm="db3", state="active"), dict(BACKUP, vm="db4", state="suspect", last_heard_ms=7.5e6)))
    expect(remusctl("status", "db1"), 0, "remusctl verify: 100 % compared, 128 KiB DIFFER")
    expect(remusctl("status", "db3"), 3, "ACTIVE  the guest runs on this host, since before remus-backupd was started")
    expect(remusctl("status", "db4"), 3, "is silent for 2 h 5 min;")
    expect(remusctl("status", "db5"), 3, "OFF  not protected; remusd has no guest here", "what is wrong  no kernel (1 s ago)")


def test_status_merges_both_daemons_and_3_means_not_protected():
    off = dict(PRIMARY, vm="db3", state="off", last_error="qemu: no such file", last_error_s=200.0,
               advice="mend it, then remusctl protect")
    with_daemons(knows(PRIMARY, off), knows(BACKUP))
    _, out, _ = expect(remusctl("status"), 3, "db1: PROTECTED", "db2: READY", "db3: OFF")
    assert "what to do     mend it" in out and "last error     qemu: no such file (3 min 20 s ago)" in out, out
    expect(remusctl("status", "db2"), 0, "READY  holds checkpoint 17 of 10.78.0.9")
    expect(remusctl("status", "db3"), 3)
    expect(remusctl("list"), 0, "db1", "db2", "db3")


def test_a_vm_that_both_know_is_judged_by_the_better_one():
    with_daemons(knows(PRIMARY), knows(dict(BACKUP, vm="db1", state="waiting")))
    expect(remusctl("status", "db1"), 0, "PROTECTED", "WAITING")


def test_unknown_vm_is_6():
    with_daemons(knows(PRIMARY), knows(BACKUP))
    expect(remusctl("status", "nope"), 6, "nope")
    with_json = expect(remusctl("--json", "status", "nope"), 6)
    assert json.loads(with_json[1])["code"] == "unknown-vm"


def test_every_state_has_words_and_nulls_are_dashes():
    states = {"primary": "off connecting syncing protected holding asking unprotected handed-over "
                         "lost stopped shut-down",
              "backup": "waiting syncing ready suspect asking taking-over active failed"}
    vms = [{"vm": f"{role}-{state}", "role": role, "state": state}
           for role in states for state in states[role].split()]
    with_daemons(knows(*vms))
    _, out, _ = expect(remusctl("status"), 3)
    assert "nan" not in out and "null" not in out and "does not know" not in out, out
    for vm in vms:
        assert f"{vm['vm']}: {vm['state'].replace('-', ' ').upper()}  " in out, vm


def test_json_has_a_format_version():
    with_daemons(knows(PRIMARY), knows(BACKUP))
    _, out, _ = expect(remusctl("--json", "status"), 0)
    got = json.loads(out)
    assert got["format"] == 1 and got["vms"] == [PRIMARY, BACKUP], got
    assert out.count("\n") == 1


def test_r10_no_control_character_reaches_the_terminal():
    evil = dict(PRIMARY, last_error="\x1b[2J\x07\u009b31m\nfake line", peer="\r\x01x", vm="d\x1bb")
    with_daemons(knows(evil))
    _, out, _ = expect(remusctl("status"), 0)
    for c in out.replace("\n", ""):
        assert ord(c) >= 32 and not 127 <= ord(c) < 160, repr(out)
    assert "\nfake" not in out


def test_r10_nonsense_from_the_daemon_is_an_error():
    for reply in (b"\n", b"{}\n", b"[1]\n", b"\xff\xfe\n", b"[" * 70000 + b"\n",
                  {"format": 2, "ok": True, "result": []}, ok(5), ok([5]), ok(None)):
        daemons = with_daemons(lambda request, reply=reply: reply)
        expect(remusctl("status"), 4)
        daemons[0].close()


def test_requests_and_error_codes():
    for code, status in (("unknown-vm", 6), ("usage", 2), ("refused", 1), ("busy", 1),
                         ("failed", 1)):
        daemon, _ = with_daemons(lambda request, code=code: error(code, "this is why"))
        expect(remusctl("unprotect", "db1"), status, "this is why")
        assert daemon.requests == [{"format": 1, "verb": "unprotect", "vm": "db1"}]
        daemon.close()
    daemon, backupd = with_daemons(lambda request: ok(None), lambda request: ok(None))
    expect(remusctl("set", "db1", "interval", "50"), 0, "50 ms")
    assert daemon.requests[-1] == {"format": 1, "verb": "set", "vm": "db1",
                                   "args": {"interval": 50}}
    expect(remusctl("protect", "db1"), 0, "remusctl status db1")
    assert daemon.requests[-1] == {"format": 1, "verb": "protect", "vm": "db1"}
    assert backupd.requests == []
    expect(remusctl("discard", "db1"), 0, "thrown away")
    assert backupd.requests == [{"format": 1, "verb": "discard", "vm": "db1"}]


def test_preflight_shows_everything_that_is_missing():
    thing = {"what": "there is no bridge br9", "remedy": "ip link add br9 type bridge"}
    knows_it = {"vm": "db1", "role": "backup", "platform": "xen", "lacks": [thing, thing]}
    _, daemon = with_daemons(None, knows(knows_it))
    got = expect(remusctl("preflight", "db1"), 1, "there is no bridge br9", "to do: ip link add br9")
    assert got[1].count("to do") == 2 and got[2] == "", got
    assert daemon.requests == [{"format": 1, "verb": "preflight", "vm": "db1"}]
    assert json.loads(expect(remusctl("--json", "preflight", "db1"), 1)[1])["vms"] == [knows_it]
    knows_it["lacks"] = []
    expect(remusctl("preflight", "db1"), 0, "nothing is missing on this host")


def test_preflight_over_the_link():
    both = {"vm": "db1", "role": "primary", "platform": "xen", "backup": "b2:7910", "lacks": [
        {"host": "backup", "what": "there is no bridge br9", "remedy": "ip link add"},
        {"host": "link", "what": "the clock is wrong", "remedy": "chrony"}],
            "link": {"round_trip_ms": 0.25, "clock_ahead_ms": -300.0, "mib_s": 99.5}}
    daemon, backupd = with_daemons(lambda request: ok(both), lambda request: error("unknown-vm", "no"))
    expect(remusctl("preflight", "db1", "--to", "b2"), 1, "db1 (backup): there is no bridge br9", "db1 (link): the clock",
           "0.25 ms", "99.5 MiB/s", "300.0 ms behind")
    assert daemon.requests == [{"format": 1, "verb": "preflight", "vm": "db1", "args": {"to": "b2"}}]
    assert backupd.requests == []
    both["lacks"] = []
    expect(remusctl("preflight", "db1"), 0, "nothing is missing on either host")
    for words in (("db1", "--to"), ("db1", "b2"), ("db1", "--for", "b2"), ("--to", "b2")):
        assert remusctl("preflight", *words)[0] == 2, words
    daemon.close()
    with_daemons(lambda request: ok(5))
    expect(remusctl("preflight", "db1", "--to", "b2"), 4)


def script(verb, before, after, then=None):
    """A daemon whose VM is `before`, and from the verb on goes through the states of `after`."""
    pending = [before]

    def answer(request):
        if request["verb"] == verb:
            pending[:] = list(after)
            return ok(None)
        return ok(pending.pop(0) if len(pending) > 1 else pending[0])

    return answer


def test_protect_wait_shows_the_way():
    off = dict(PRIMARY, state="off")
    sync = dict(PRIMARY, state="syncing",
                sync={"percent": 42.4, "rate_mib_s": 310.2, "eta_s": 12.1, "round": 2})
    with_daemons(script("protect", off, [off, dict(PRIMARY, state="connecting"), sync, PRIMARY]))
    _, out, _ = expect(remusctl("protect", "--wait", "db1"), 0)
    lines = out.splitlines()
    assert "42 % copied, round 2, 310 MiB/s, about 12 s left" in out, out
    assert lines[-1].startswith("db1: PROTECTED"), out


def test_protect_wait_says_what_it_waits_for():
    wrong = {"state": "connecting", "last_error": "connection refused", "last_error_s": 0.2}
    stale = {"state": "connecting", "last_error": "long ago", "last_error_s": 99}
    for vm, shown in (wrong, True), (stale, False):
        vm = dict(PRIMARY, **vm)
        daemon, _ = with_daemons(script("protect", vm, [vm, PRIMARY]))
        _, out, _ = expect(remusctl("protect", "--wait", "db1"), 0, "CONNECTING")
        assert (vm["last_error"] in out) == shown, out
        daemon.close()


def test_protect_wait_waits_for_a_guest_that_starts():
    opening = dict(PRIMARY, state="off", accelerator=None)
    for error, status in ({"last_error": "from before", "last_error_s": 99.0}, 0), ({"last_error": "no kernel", "last_error_s": 0.1}, 1):
        vm, began = dict(opening, **error), time.monotonic()
        daemon, _ = with_daemons(lambda request, vm=vm, began=began:
                                 ok(None if request["verb"] == "protect" else PRIMARY if time.monotonic() > began + 2.5 else vm))
        expect(remusctl("protect", "--wait", "db1"), status)
        daemon.close()


def test_protect_wait_fails_when_protection_ends():
    off = dict(PRIMARY, state="off")
    gone = dict(PRIMARY, state="shut-down", last_error="the guest shut down", advice="restart it")
    with_daemons(script("protect", off, [dict(PRIMARY, state="syncing"), gone]))
    expect(remusctl("protect", "--wait", "db1"), 1, "the guest shut down", "restart it")


def test_switchover_reaches_and_misses():
    with_daemons(script("switchover", PRIMARY, [PRIMARY, dict(PRIMARY, state="handed-over")]))
    expect(remusctl("switchover", "db1"), 0, "HANDED OVER")


def test_switchover_that_was_undone_has_failed():
    back = dict(PRIMARY, last_error="the backup closed the connection")
    with_daemons(script("switchover", PRIMARY, [dict(PRIMARY, state="holding"), back]))
    expect(remusctl("switchover", "db1"), 1, "the backup closed the connection", "has failed")


def test_takeover_goes_to_the_backup():
    suspect = dict(BACKUP, state="suspect")
    active = dict(BACKUP, state="active",
                  takeover={"reason": "silent for 200 ms", "detected_ms": 201, "activate_ms": 41,
                            "total_ms": 260, "epoch": 17})
    daemons = with_daemons(lambda request: ok(None),
                           script("takeover", suspect, [dict(BACKUP, state="taking-over"), active]))
    _, out, _ = expect(remusctl("--json", "takeover", "db2"), 0)
    assert json.loads(out)["vms"][0]["state"] == "active", out
    assert daemons[0].requests == []


def test_takeover_that_fails():
    broken = dict(BACKUP, state="failed", last_error="no memory")
    with_daemons(backup=script("takeover", dict(BACKUP, state="suspect"), [broken]))
    expect(remusctl("takeover", "db2"), 1, "no memory")
    got = expect(remusctl("--json", "takeover", "db2"), 1)
    assert json.loads(got[1])["vms"][0]["last_error"] == "no memory", got


def test_interrupt_leaves_the_operation_going():
    running = {"running": True, "percent": 1.0, "rate_mib_s": 1.0, "eta_s": 1.0, "differing_bytes": 0}
    busy = dict(PRIMARY, state="syncing", disks=dict(PRIMARY["disks"], verify=running))
    for words in ("protect", "--wait"), ("verify",):
        daemon, _ = with_daemons(script(words[0], busy, [busy]))
        process = subprocess.Popen([REMUSCTL, "-R", DIR, *words, "db1"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        expect((process.returncode, out, err), 4, "goes on", "remusctl status db1")
        daemon.close()


def main():
    global DIR
    if not os.access(REMUSCTL, os.X_OK):
        print(f"1..0 # SKIP {REMUSCTL} is not built")
        sys.exit(77)
    tests = [f for name, f in sorted(globals().items()) if name.startswith("test_")]
    failed = 0
    print(f"1..{len(tests)}")
    for number, test in enumerate(tests, 1):
        DIR = tempfile.mkdtemp(prefix="remusctl-")
        try:
            test()
            print(f"ok {number} - {test.__name__}")
        except (AssertionError, subprocess.TimeoutExpired) as e:
            failed += 1
            print(f"not ok {number} - {test.__name__}")
            print("# " + str(e).replace("\n", "\n# "))
        finally:
            shutil.rmtree(DIR)
        sys.stdout.flush()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
