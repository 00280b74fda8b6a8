#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual against the programs: synopsis, options, verbs, states, configuration keys, completion."""

import os
import re
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
SRC = os.environ.get("top_srcdir", os.path.join(HERE, ".."))
TOP = os.environ.get("top_builddir", os.path.join(HERE, ".."))
PROGRAMS = {"remusd": "remusd", "remus-backupd": "backup", "remusctl": "ctl"}

# For keys without a default: a value, and what else the section then needs.
EXAMPLES = {
    "backup": '"192.0.2.2:7910"', "tap": 'tap0 mac = "52:54:00:12:34:56"',
    "services": '"pgsql:5432" tap = tap0 mac = "52:54:00:12:34:56"',
    "guest-bridge": 'br1 tap = tap0 mac = "52:54:00:12:34:56" platform = xen',
    "vif": 'db1 mac = "52:54:00:12:34:56" platform = xen',
    "image-dir": "/var/lib/remus", "mac": '"52:54:00:12:34:56"', "kernel": "/boot/vmlinuz", "initrd": "/boot/initrd",
    "append": "'console=ttyS0'", "disks": '{"/var/lib/remus/db1.img"}', "qemu-args": '{"-device", "virtio-rng-device"}',
}


def read(*path):
    with open(os.path.join(SRC, *path), encoding="utf-8") as f:
        return f.read()


def pod(name):
    return read("docs", name + ".pod")


def plain(text):
    """POD without its codes."""
    while True:
        text, n = re.subn(r"\b[BICFL]<([^<>]*)>", r"\1", text)
        if not n:
            return text


def section(text, title):
    return re.search(rf"^=head1 {title}\n(.*?)(?=^=head1 |\Z)", text, re.M | re.S).group(1)


def items(text):
    return [plain(line) for line in re.findall(r"^=item (.*)$", text, re.M)]


def run(program, *args):
    path = os.path.join(TOP, PROGRAMS[program], program)
    done = subprocess.run([path, *args], capture_output=True, text=True, timeout=20)
    return done.returncode, done.stdout, done.stderr


def usage_lines(program):
    status, out, err = run(program, "--help")
    assert status == 0 and not err, (status, err)
    shortest = re.sub(r"/\S+/remusd.conf", "/etc/remus/remusd.conf", out)  # wherever it was configured to be
    assert max(map(len, shortest.splitlines())) <= 90, out
    lines = []
    for line in out.splitlines():
        if line.startswith("Usage: ") or (lines and line.startswith("       " + program)):
            lines.append(line[7:])
        elif lines:
            break
    return lines


def same(what, left, right):
    left, right = set(left), set(right)
    assert left == right, (f"{what}: only in the first {sorted(left - right)}, "
                           f"only in the second {sorted(right - left)}")


def config_keys():
    """{key: default} as common/config.c has them."""
    keys = dict(re.findall(r'^    \{"([a-z-]+)", set_\w+, (?:TOP|VM)\(\w+\), (?:"(.*?)"|NULL),',
                           read("common", "config.c"), re.M))
    assert len(keys) > 25, keys
    keys["qemu-args"] = keys["disks"] = ""
    return keys


def documented_keys():
    """{key: default} as the manual has them."""
    keys = {}
    for head, body in re.findall(r"^=item ([^\n]*)\n\n(.*?)(?=^=)", pod("remusd.conf"), re.M | re.S):
        name = re.match(r"B<([a-z-]+)> = ", head)
        if name:
            default = re.match(r"Default: (?:C<(.*?)>|(none))\.", body)
            assert default, f"{name.group(1)}: says no default"
            keys[name.group(1)] = default.group(1) or ""
    return keys


def check_config(text):
    directory = tempfile.mkdtemp(prefix="synopsis-")
    try:
        path = os.path.join(directory, "remusd.conf")
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        status, out, err = run("remusd", "-t", "-c", path)
        assert status == 0 and out == f"{path}: ok\n", f"{text}: {err}"
    finally:
        shutil.rmtree(directory)


def test_synopsis_is_usage():
    for program in PROGRAMS:
        paragraphs = [plain(" ".join(p.split()))
                      for p in section(pod(program), "SYNOPSIS").split("\n\n")]
        same(program, filter(None, paragraphs), usage_lines(program))


def test_options_of_help_are_documented():
    for program in PROGRAMS:
        helped = re.findall(r"^  (-\w), (--[a-z-]+)( [A-Z]+)?", run(program, "--help")[1], re.M)
        documented = [re.match(r"(-\w), (--[a-z-]+)( [A-Z]+)?$", item)
                      for item in items(section(pod(program), "OPTIONS"))]
        assert len(helped) > 3
        same(program, helped, [m.groups("") for m in documented])


def test_names_and_version():
    for program in PROGRAMS:
        assert section(pod(program), "NAME").strip().startswith(program + " - ")
        status, out, _ = run(program, "--version")
        assert status == 0 and re.fullmatch(rf"{program} \d\S*\n", out), out
        assert run(program, "--no-such-option")[0] == 2


def test_summary_is_the_manuals():
    for program in ("remusd", "remus-backupd"):
        summary = section(pod(program), "NAME").strip().split(" - ")[1]
        assert f"\n{summary}\n" in run(program, "--help")[1], summary


def verbs():
    found = re.findall(r"^  ([a-z]+) +(\S.*?|)  +\S", run("remusctl", "--help")[1], re.M)
    assert len(found) > 5, found
    return found


def test_verbs_are_documented():
    same("verbs", [f"{verb} {args}".strip() for verb, args in verbs()],
         items(section(pod("remusctl"), "VERBS")))


def test_completion_knows_verbs_and_options():
    text = read("scripts", "completion", "remusctl")
    same("verbs", re.search(r"local verbs='(.*)'", text).group(1).split(), [v for v, _ in verbs()])
    same("options", re.search(r"local options='(.*)'", text).group(1).split(),
         re.findall(r"(?:(?<=^  )|(?<=^  -\w, ))--?\w[a-z-]*", run("remusctl", "--help")[1], re.M))


def test_completion_works():
    if not shutil.which("bash"):
        return

    def complete(*words):
        script = (f". {SRC}/scripts/completion/remusctl; "
                  "remusctl() { printf 'VM ROLE\\ndb1 primary\\n'; }; "
                  f"COMP_WORDS=(remusctl {' '.join(map(repr, words))}); COMP_CWORD={len(words)}; "
                  "_remusctl; printf '%s\\n' \"${COMPREPLY[@]}\"")
        return subprocess.run(["bash", "-c", script], capture_output=True, text=True,
                              timeout=20).stdout.split()

    assert complete("sw") == ["switchover"]
    assert complete("-R", "/tmp", "status", "d") == ["db1"]
    assert complete("set", "db1", "") == ["interval"]
    assert complete("protect", "--w") == ["--wait"]
    assert complete("protect", "--t") == ["--to"]
    assert complete("forget", "--active", "d") == ["db1"]
    assert complete("protect", "--wait", "") == ["db1"]
    assert complete("list", "") == []


def test_states_are_documented():
    for side, path in (("PRIMARY", ("remusd", "lifecycle.c")),
                       ("BACKUP", ("backup", "detector.c"))):
        states = re.findall(r'\[\w+\] = "([a-z-]+)"', read(*path))
        assert len(states) > 5, states
        text = section(pod("remusctl"), f"STATES ON THE {side} HOST")
        same(side, states, items(text))
        assert text.count("To do:") == len(states)


def test_status_fields_are_documented():
    manual = pod("remusctl")
    for path in (("remusd", "status.c"), ("backup", "status.c")):
        fields = set(re.findall(r'(?<=[ (])"([a-z0-9_]+)",', read(*path)))
        for field in fields - {"p50", "p99", "max", "primary", "backup"}:
            assert f"C<{field}>" in manual, f"{path}: {field} is not in remusctl.pod"


def test_every_key_is_documented_with_its_default():
    known, documented = config_keys(), documented_keys()
    same("keys", known, documented)
    for key, default in known.items():
        assert documented[key] == default, (key, default, documented[key])


def test_every_documented_key_is_accepted():
    for key, default in documented_keys().items():
        value = f'"{default}"' if default else EXAMPLES[key]
        if key in ("run-dir", "state-dir", "listen", "log-level"):
            check_config(f"{key} = {value}\n")
        elif key == "image-dir":
            check_config(f"others {{ {key} = {value} }}\n")
        else:
            needed = "" if key == "kernel" or default == "fake" else "kernel = /k "
            check_config(f"vm a {{ {needed}{key} = {value} }}\n")


def test_examples_of_the_manual_are_accepted():
    text = pod("remusd.conf")
    blocks = re.findall(r"((?:^ .*\n|^\n(?= ))+)", section(text, "SYNOPSIS"), re.M)
    blocks += re.findall(r"((?:^ .*\n|^\n(?= ))+)", section(text, "EXAMPLES"), re.M)
    assert len(blocks) >= 3, blocks
    for block in blocks:
        for config in re.split(r"\n(?= run-dir)", block):
            check_config(config)


def test_man_pages_are_well_formed():
    if not shutil.which("podchecker"):
        return
    for name in os.listdir(os.path.join(SRC, "docs")):
        if name.endswith(".pod"):
            done = subprocess.run(["podchecker", "-warnings", os.path.join(SRC, "docs", name)],
                                  capture_output=True, text=True, timeout=20)
            assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr


def main():
    for program, folder in PROGRAMS.items():
        if not os.access(os.path.join(TOP, folder, program), os.X_OK):
            print(f"1..0 # SKIP {program} is not built")
            sys.exit(77)
    tests = [f for name, f in sorted(globals().items()) if name.startswith("test_")]
    failed = 0
    print(f"1..{len(tests)}")
    for number, test in enumerate(tests, 1):
        try:
            test()
            print(f"ok {number} - {test.__name__}")
        except (AssertionError, AttributeError, subprocess.TimeoutExpired) as e:
            failed += 1
            print(f"not ok {number} - {test.__name__}")
            print("# " + str(e).replace("\n", "\n# "))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
