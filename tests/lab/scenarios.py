# SPDX-License-Identifier: GPL-2.0-or-later
"""What the lab tries.  A scenario gets two hosts with remusd installed and nothing running; LabError fails it."""

import json
import re
import time

from xenlab import LabError, say, wait_for

PATIENCE = 240  # seconds that anything may take on a busy machine
GUEST = 'g1'


def guest_config(hosts, load='16,300', memory=128):
    for host in hosts:
        host.write(f'/root/{GUEST}.cfg', f'''
name = "{GUEST}"
type = "pvh"
kernel = "/lab/vmlinux"
ramdisk = "/lab/guest.cpio.gz"
memory = {memory}
vcpus = 1
extra = "console=hvc0 quiet lab.load={load}"
on_crash = "destroy"
''')


def remus_config(host, *lines):
    host.write('/etc/remusd.conf', '\n'.join(
        [f'vm {GUEST} {{', 'platform = xen', 'memory = 128', *lines, '}', '']))


def start_guest(host):
    """Until its workload has been at it for a while."""
    host.run(f'xl create /root/{GUEST}.cfg')
    wait_for('the guest to work', PATIENCE, lambda: 'LEDGER ok' in host.console(GUEST), 1)


def start_daemons(hosts, primary=(), backup=('takeover = automatic',)):
    """hosts[0] protects, hosts[1] is its backup; slow heartbeats, since emulated processors are late."""
    remus_config(hosts[0], f'backup = "{hosts[1].address}:7910"', 'interval = 500', 'heartbeat = 100',
                 'timeout = 5000', *primary)
    remus_config(hosts[1], *backup)
    hosts[1].start('remus-backupd -f -c /etc/remusd.conf', '/var/log/remus-backupd.log')
    hosts[0].start('remusd -f -c /etc/remusd.conf', '/var/log/remusd.log')
    for host in hosts:
        wait_for(f'the daemon on host {host.number}', PATIENCE,
                 lambda: host.try_run('remusctl list').returncode == 0, 0.5)


def status(host):
    text = host.try_run(f'remusctl --json status {GUEST}').stdout.decode()
    found = json.loads(text)
    return found['vms'][0] if found.get('vms') else {'state': 'none', 'error': found}


def wait_state(host, *states):
    def probe():
        now = status(host)
        return now if now['state'] in states else None
    try:
        return wait_for(f'{" or ".join(states)} on host {host.number}', PATIENCE, probe, 0.5)
    except LabError as e:
        raise LabError(f'{e}; it is {json.dumps(status(host))}') from None


def protect(hosts):
    hosts[0].run(f'remusctl protect {GUEST}')
    return wait_state(hosts[0], 'protected')


def last_tick(console):
    ticks = re.findall(r'^TICK (\d+) ', console, re.M)
    return int(ticks[-1]) if ticks else 0


def check_ledger(console):
    broken = re.search(r'^LEDGER BROKEN.*', console, re.M)
    if broken:
        raise LabError(f'the guest says: {broken.group()}')


def goes_on(host, ticks):
    """The guest works on `host', its ledger is right, and it has come `ticks' further."""
    first = wait_for('the guest to go on', PATIENCE, lambda: last_tick(host.console(GUEST)), 0.5)

    def further():
        console = host.console(GUEST)
        check_ledger(console)
        return last_tick(console) >= first + ticks and 'LEDGER ok' in console
    wait_for('the guest to work on', PATIENCE, further, 0.5)
    return first


def takeover(hosts):
    """The primary host loses its power; the backup takes over, and the guest's memory is right."""
    guest_config(hosts)
    start_guest(hosts[0])
    start_daemons(hosts)
    protect(hosts)
    before = wait_for('some checkpoints', PATIENCE, lambda: status(hosts[0])['checkpoints'] >= 10 and
                      status(hosts[0]), 0.5)
    seen = last_tick(hosts[0].console(GUEST))
    check_ledger(hosts[0].console(GUEST))
    hosts[0].kill()
    say(f'primary killed at tick {seen}, after {before["checkpoints"]} checkpoints')
    after = wait_state(hosts[1], 'active')
    first = goes_on(hosts[1], 4)
    if first > seen + 60:
        raise LabError(f'the guest was seen at tick {seen} and goes on at {first}')
    if hosts[1].run('xl list').count(GUEST) != 1:
        raise LabError(f'domains left over:\n{hosts[1].run("xl list")}')
    say(f'guest goes on at tick {first}; takeover {json.dumps(after["takeover"])}; '
        f'pause {json.dumps(before["pause_ms"])}')


def self_test(hosts):
    """The lab itself: clock and SIMD registers of dom0 while a guest runs."""
    host = hosts[0]
    guest_config(hosts)
    start_guest(host)
    host.run('for i in 1 2 3; do /lab/simd-check $i 5 & p="$p $!"; done; for p in $p; do wait $p || exit 1; done')
    began, inside = time.monotonic(), float(host.run('date +%s.%N'))
    time.sleep(5)
    inside, outside = float(host.run('date +%s.%N')) - inside, time.monotonic() - began
    if not 0.5 * outside < inside < 1.5 * outside:
        raise LabError(f'{outside:.1f} s outside are {inside:.1f} s in dom0')
    check_ledger(host.console(GUEST))


def clean_up(hosts):
    """Hosts that stay up: ends what an earlier scenario left."""
    for host in hosts:
        if host.alive():
            host.run('kill -9 $(pidof remusd remus-backupd remus-xen-restore) 2>/dev/null; sleep 1; '
                     f'for d in {GUEST} {GUEST}--replica; do xl destroy $d 2>/dev/null; done; '
                     'rm -rf /run/remus /var/log/xen/guest-* /var/log/remus*; :')


def explain(hosts):
    """What a reader needs to see why a scenario failed."""
    for host in hosts:
        if host.alive():
            say(f'host {host.number}:')
            print(host.try_run('xl list; tail -n 20 /var/log/remus*.log; cat /run/remus/*.restore.log; '
                               'tail -n 3 /var/log/xen/guest-*.log; xl dmesg | tail -n 5').stdout.decode(
                                   errors='replace'))


ALL = {'self-test': self_test, 'takeover': takeover}
