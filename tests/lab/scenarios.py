# SPDX-License-Identifier: GPL-2.0-or-later
"""What the lab tries.  A scenario gets two hosts with remusd installed and nothing running; LabError fails it."""

import concurrent.futures
import json
import os
import random
import re
import statistics
import time

from xenlab import CPU, LabError, say, wait_for

PATIENCE = int(os.environ.get('LAB_PATIENCE', '400'))  # seconds that anything may take on a busy machine
GUEST = 'g1'
MAC, ADDRESS = '00:16:3e:00:00:51', '10.9.0.51'
GATE = ('tap = rx0', f'mac = "{MAC}"', 'guest-bridge = rx0-guest')
KERNEL_GATE = ('vif = rx0', f'mac = "{MAC}"', 'guest-bridge = xenbr0')
IMAGE = f'/root/{GUEST}.img'


def guest_config(hosts, extra='lab.load=16,300', memory=128, network=False, ramdisk='guest.cpio.gz', disk=False, stock=False, kind='pvh', vcpus=1):
    """stock: as xl's manual has it, without anything of remusd."""
    vif = f"vif = ['mac={MAC},bridge={'xenbr0' if stock else 'rx0-guest,script=vif-remus'}']" if network else ''
    if disk:
        vif += f"\ndisk = ['vdev=xvda,format=raw,{f'target={IMAGE}' if stock else f'script=block-remus,target={GUEST}'}']"
    for host in hosts:
        host.write(f'/root/{GUEST}.cfg', f'''
name = "{GUEST}"
type = "{kind}"
kernel = "/lab/vmlinux"
ramdisk = "/lab/{ramdisk}"
memory = {memory}
vcpus = {vcpus}
extra = "console=hvc0 quiet {extra}{f' lab.ip={ADDRESS}/24 remus.ip={ADDRESS}/24' if network else ''}"
on_crash = "destroy"
{vif}
''')


def set_up_network(hosts):
    """The guest's own bridge, and remusd's way out of it into the bridge that both hosts share."""
    for host in hosts:
        host.run('modprobe tun; ip link add rx0-guest type bridge 2>/dev/null; ip link set rx0-guest up; '
                 'ip tuntap add dev rx0 mode tap 2>/dev/null; ip link set rx0 master xenbr0; ip link set rx0 up')


# Asks the guest for its count, forever; a line for each answer, and one more when it was not more than the last.
CLIENT = """
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(0.2)
s.connect(("%s", 7000))
last = 0
while True:
    try:
        s.send(b"?")
        n = int(s.recv(100))
        print(n, time.monotonic(), flush=True)
        if n <= last:
            print("BACKWARDS", last, n, flush=True)
        last = n
        time.sleep(0.05)
    except OSError:
        time.sleep(0.05)
""" % ADDRESS


def remus_config(host, *lines):
    host.write('/etc/remusd.conf', '\n'.join([f'vm {GUEST} {{', 'platform = xen', *lines, '}', '']))


def start_guest(host, sign='LEDGER ok'):
    """Until its workload has been at it for a while."""
    host.run(f'xl create /root/{GUEST}.cfg')
    wait_for('the guest to work', PATIENCE, lambda: sign in host.console(GUEST), 1)


def start_daemons(hosts, both=(), memory=128, watched=False, interval=500, services=()):
    """hosts[0] protects, hosts[1] is its backup; slow heartbeats, since emulated processors are late."""
    watch = f'{WATCHED} ' if watched else ''
    both = (*([f'memory = {memory}'] if memory else []), *both)
    remus_config(hosts[0], f'backup = "{hosts[1].address}:7910"', f'interval = {interval}', 'heartbeat = 100',
                 'timeout = 5000', *services, *both)
    remus_config(hosts[1], 'takeover = automatic', *both)
    launch_daemons(hosts, watch)


def launch_daemons(hosts, watch=''):
    hosts[1].start('remus-backupd -f -c /etc/remusd.conf', '/var/log/remus-backupd.log')
    hosts[0].start(f'{watch}remusd -f -c /etc/remusd.conf', '/var/log/remusd.log')
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


def takeover(hosts, kind='pvh'):
    """The primary host loses its power; the backup takes over, and the guest's memory is right."""
    guest_config(hosts, kind=kind)
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
    say(f'guest goes on at tick {first}; pause {json.dumps(before["pause_ms"])}')
    steps(hosts[1], after['takeover'], 'no devices')


def pv(hosts):
    """The same with a PV domain, on a Xen whose log-dirty mode works for it (R4)."""
    takeover(hosts, 'pv')
    if '"type": "pv"' not in hosts[1].run(f'xl list -l {GUEST}'):
        raise LabError(f'what runs on the backup is no PV domain:\n{hosts[1].run(f"xl list -l {GUEST}")}')


def restart_guest(hosts):
    """A new domain of the same name, protected again: its past is not held against it."""
    hosts[0].run(f'xl destroy {GUEST} 2>/dev/null; rm -f /var/log/xen/guest-{GUEST}*; true')
    start_guest(hosts[0])
    hosts[0].run('kill $(pidof remusd); while pidof remusd; do sleep 0.1; done >/dev/null')
    hosts[0].start('remusd -f -c /etc/remusd.conf', '/var/log/remusd.log')
    wait_for('remusd to be back', PATIENCE, lambda: hosts[0].try_run('remusctl list').returncode == 0, 0.5)
    protect(hosts)


def steps(host, takeover, devices, answers=(), **more):
    """Where the time of a takeover went, from the decision on: a JSON line, milliseconds of each step."""
    at = {}
    for line in host.run(f'cat /run/remus/{GUEST}.restore.log').splitlines():
        when, _, what = line.partition(' ')
        if when.replace('.', '').isdigit():
            at[what] = float(when) * 1000
    before, parts = at['told'] - takeover['activate_ms'], {}
    for what in ('begun', 'restored', 'renamed', 'unpaused', 'told'):
        parts[what], before = round(at[what] - before, 1), at[what]
    first = [t * 1000 - at['unpaused'] for t in answers if t * 1000 > at['unpaused']]
    if first:
        parts['answers'] = round(first[0], 1)
    print(json.dumps({**more, 'takeover': devices, 'takeover_ms': takeover['activate_ms'], 'detected_ms': takeover['detected_ms'],
                      'steps_ms': parts}), flush=True)


def epoch_of(host):
    return status(host)['acked_epoch']


def no_takeover(hosts, what):
    """The backup has let go of the guest and runs nothing."""
    wait_state(hosts[1], 'waiting')
    wait_for('the replica to go', PATIENCE, lambda: GUEST not in hosts[1].run('xl list'), 0.5)
    say(f'{what}: no takeover')


def operator(hosts):
    """xl pause, unprotect and xl destroy of a protected domain: no failure (R7)."""
    guest_config(hosts)
    start_guest(hosts[0])
    start_daemons(hosts)
    protect(hosts)

    hosts[0].run(f'xl pause {GUEST}')
    time.sleep(8)  # longer than the backup's patience
    if status(hosts[1])['state'] != 'ready':
        raise LabError(f'a paused guest is taken for a lost one: {status(hosts[1])}')
    held = epoch_of(hosts[0])
    hosts[0].run(f'xl unpause {GUEST}')
    wait_for('checkpoints after unpause', PATIENCE, lambda: epoch_of(hosts[0]) > held + 2, 0.5)
    say('pause: protection goes on after unpause')

    hosts[0].run(f'remusctl unprotect {GUEST}')
    no_takeover(hosts, 'unprotect')
    goes_on(hosts[0], 2)

    protect(hosts)
    hosts[0].run(f'xl destroy {GUEST}')
    no_takeover(hosts, 'destroy')


def shutdown(hosts):
    """xl shutdown is no failure (R7); a new guest of that name can be protected, and switched over."""
    guest_config(hosts)
    start_guest(hosts[0])
    start_daemons(hosts)
    protect(hosts)
    hosts[0].run(f'xl shutdown {GUEST}')
    no_takeover(hosts, 'shutdown')

    restart_guest(hosts)
    seen = last_tick(hosts[0].console(GUEST))
    hosts[0].run(f'remusctl switchover {GUEST}')
    wait_state(hosts[1], 'active')
    first = goes_on(hosts[1], 4)
    wait_for('the domain on the primary to go', PATIENCE, lambda: GUEST not in hosts[0].run('xl list'), 0.5)
    if first < seen:
        raise LabError(f'tick {first} after the switchover, {seen} before')
    say('switchover: nothing lost, one guest')


def network(hosts):
    """Output commit on a vif: no client sees the guest's count go down when the primary dies (R1)."""
    guest_config(hosts, 'lab.load=4,50', network=True)
    set_up_network(hosts)
    start_daemons(hosts, GATE)  # first: the domain, made later, is found, and its frames carried
    lose_server(hosts)


def network_kernel(hosts):
    """The same, with the vif on the bridge to the network and its packets held by the kernel (R1)."""
    guest_config(hosts, 'lab.load=4,50', network=True)
    for host in hosts:
        host.run(f'sed -i "s/bridge=rx0-guest/vifname=rx0,bridge=xenbr0/" /root/{GUEST}.cfg')
    lose_server(hosts, (*KERNEL_GATE, 'netbuf = nfqueue'))


def network_learned(hosts):
    """The same again, and neither xl.cfg nor remusd.conf says anything of it but on which bridge the vif is (R1)."""
    guest_config(hosts, 'lab.load=4,50', network=True, stock=True)
    lose_server(hosts, (), memory=None)


OTHERS = 'others {\ninterval = 500\nheartbeat = 100\ntimeout = 5000\ntakeover = automatic\n}\n'


def learned(hosts):
    """No section for the domain on either host, a stock vif: protect --to, remusd and backupd anew, power lost; and back (R1, R7)."""
    guest_config(hosts, 'lab.load=4,50', network=True, stock=True)
    for host in hosts:
        host.write('/etc/remusd.conf', OTHERS)
    launch_daemons(hosts)
    start_guest(hosts[0])
    if hosts[0].try_run(f'remusctl protect {GUEST}').returncode == 0:
        raise LabError('a domain that remusd does not know was protected without --to')
    hosts[0].run(f'remusctl protect {GUEST} --to {hosts[1].address}')
    wait_state(hosts[0], 'protected')
    for host, daemon in ((hosts[0], 'remusd'), (hosts[1], 'remus-backupd')):
        # the backup has lost its replica with the daemon: the primary holds, and sends it all again
        host.run(f'kill $(pidof {daemon}); while pidof {daemon}; do sleep 0.1; done >/dev/null')
        host.start(f'{daemon} -f -c /etc/remusd.conf', f'/var/log/{daemon}.log')
        wait_for(f'{daemon} to know {GUEST} again', PATIENCE, lambda h=host: GUEST in h.try_run('remusctl list').stdout.decode(), 0.5)
        wait_state(hosts[0], 'protected')
        wait_state(hosts[1], 'ready')
    lose_protected_server(hosts)
    first, second = hosts
    if second.try_run(f'remusctl forget {GUEST}').returncode == 0:
        raise LabError('a domain that runs here was forgotten')

    first.boot()
    first.wait_booted()
    first.install(first.tree)
    first.write('/etc/remusd.conf', OTHERS)
    second.run(f'remusctl forget --active {GUEST}')
    launch_daemons([second, first])
    second.run(f'remusctl protect {GUEST} --to {first.address}')
    lose_protected_server([second, first])


def network_plug(hosts):
    """The same with a plug queue, which waits for the vif and has it before the guest runs (R1)."""
    guest_config(hosts, 'lab.load=4,50', network=True)
    for host in hosts:
        host.run(f'sed -i "s/bridge=rx0-guest/vifname=rx0,bridge=xenbr0/" /root/{GUEST}.cfg')
    start_daemons(hosts, (*KERNEL_GATE, 'netbuf = plug'))
    hosts[0].try_run(f'remusctl protect {GUEST}')
    lose_server(hosts)


def lose_server(hosts, gate=None, **daemons):
    start_guest(hosts[0])
    if gate is not None:
        start_daemons(hosts, gate, **daemons)
    lose_protected_server(hosts)


def lose_protected_server(hosts):
    hosts[1].write('/root/client.py', CLIENT)
    hosts[1].start('python3 /root/client.py', '/var/log/client.log')

    def answers():
        log = hosts[1].run('cat /var/log/client.log').splitlines()
        bad = [line for line in log if not line[0].isdigit()]
        if bad:
            raise LabError(f'the client says {bad[0]}')
        return len(log)
    wait_for('answers of the guest', PATIENCE, lambda: answers() >= 5, 1)
    protect(hosts)
    before = answers()
    wait_for('answers of the protected guest', PATIENCE, lambda: answers() >= before + 10, 1)
    held = status(hosts[0])['net']
    hosts[0].kill()
    before = answers()
    say(f'primary killed after {before} answers, held for p50 {held["hold_ms"]["p50"]} ms')
    taken = wait_state(hosts[1], 'active')
    wait_for('answers after the takeover', PATIENCE, lambda: answers() >= before + 10, 1)
    check_ledger(hosts[1].console(GUEST))
    steps(hosts[1], taken['takeover'], 'vif', [float(line.split()[1]) for line in hosts[1].run('cat /var/log/client.log').splitlines()])


CONNINFO = f'host={ADDRESS} user=postgres dbname=postgres connect_timeout=60'


def acknowledged(host):
    """How many transactions the database's clients were told are committed."""
    return int(host.run('grep -c "^ack " /root/ledger.log 2>/dev/null || :') or 0)


def progress(host, what, more):
    least = acknowledged(host) + more
    wait_for(what, PATIENCE, lambda: acknowledged(host) >= least, 1)


def start_database(hosts, protected=True, kind='pvh', vcpus=1, **daemons):
    """PostgreSQL on a disk of ours, on hosts[0]; its clients, a bank's, are on the host that is not going to die."""
    guest_config(hosts, memory=256, extra='', network=True, ramdisk='database.cpio', disk=True, kind=kind, vcpus=vcpus)
    set_up_network(hosts)
    hosts[0].run(f'cp --sparse=always /lab/database.disk {IMAGE}', 300)
    start_daemons(hosts, DATABASE_GATE, memory=256, **daemons)
    start_guest(hosts[0], 'REMUS-GUEST-READY')
    if protected:  # else remusd has found it, and lets its packets pass
        hosts[0].run(f'remusctl protect {GUEST}')
    hosts[1].run(f'/lab/ledger --init --conninfo "{CONNINFO}" --seconds 300', 400)


DATABASE_GATE = (*GATE, f'disks = {{"{IMAGE}"}}')


def lose_database(hosts):
    """Kills hosts[0] at any moment while the clients work; what they were told is in the database of hosts[1]."""
    primary, backup = hosts
    wait_state(primary, 'protected')
    backup.run('rm -f /root/ledger.log')
    backup.start(f'/lab/ledger --conninfo "{CONNINFO}" --clients 4 --log /root/ledger.log', '/var/log/ledger.log')
    backup.run('while ! [ -e /root/ledger.log ]; do sleep 0.1; done')
    progress(backup, 'transactions', 20)
    time.sleep(random.random() * 3)
    before = status(primary)
    primary.kill()
    before['acknowledged'] = acknowledged(backup)
    taken = wait_state(backup, 'active')['takeover']
    progress(backup, 'transactions after the takeover', 20)
    backup.run('kill -TERM $(pidof ledger); while pidof ledger; do sleep 0.1; done')
    backup.run(f'/lab/ledger --verify --conninfo "{CONNINFO}" --log /root/ledger.log', 400)
    return before, taken


def check_image(host, image):
    """As after a power failure: the journal is replayed, then nothing may be wrong."""
    host.run(f'e2fsck -fp {image} || [ $? = 1 ]; e2fsck -fn {image}', 300)


def amcheck(host):
    host.run(f'/lab/pg_amcheck -h {ADDRESS} -U postgres -d postgres --heapallindexed', 600)


def database(hosts, **kind):
    """PostgreSQL on a protected disk: no acknowledged commit is lost with the primary host (R1, R2, R5)."""
    start_database(hosts, **kind)
    before, taken = lose_database(hosts)
    say(f'primary killed after {before["acknowledged"]} acknowledged transactions; '
        f'{json.dumps({k: before[k] for k in ("pause_ms", "disks") if k in before})}')
    host = hosts[1]
    steps(host, taken, 'vif and disk')
    host.run(f'xl destroy {GUEST}')
    wait_for('the disk server to end', PATIENCE, lambda: host.try_run('pidof nbdkit').returncode, 0.5)
    check_image(host, IMAGE)

    # What the guest has in its memory might hide what the disk lacks.
    host.run(f'cd /root; rm /var/log/xen/guest-{GUEST}*; sed -i -e "s/script=.*target=/target=/; s|target=.*\'|target={IMAGE}\'|" '
             f'-e "s/rx0-guest/xenbr0/" {GUEST}.cfg')
    start_guest(host, 'REMUS-GUEST-READY')
    host.run(f'/lab/ledger --verify --conninfo "{CONNINFO}" --log /root/ledger.log', 400)
    amcheck(host)
    say(f'{acknowledged(host)} transactions acknowledged, none lost; database and file system are whole')


def pv_database(hosts):
    """The same in a PV domain with two processors."""
    database(hosts, kind='pv', vcpus=2)


def come_back(host):
    host.boot()
    host.wait_booted()
    host.install(host.tree)
    set_up_network([host])


def kills(hosts):
    """KILLS times in a row the host that has the database is lost, and comes back as its backup (R1, R2, R5)."""
    rounds, logs, took = int(os.environ.get('KILLS', '3')), [], []
    pool = concurrent.futures.ThreadPoolExecutor()
    start_database(hosts)
    for n in range(1, rounds + 1):
        before, taken = lose_database(hosts)
        dead, host = hosts
        back = pool.submit(come_back, dead) if n < rounds else None
        logs.append(host.run('cat /root/ledger.log'))
        for i, log in enumerate(logs[:-1]):
            host.write(f'/root/ledger-{i}.log', log)
            host.run(f'/lab/ledger --verify --conninfo "{CONNINFO}" --log /root/ledger-{i}.log', 400)
        host.run(f'xl pause {GUEST}; cp --sparse=always {IMAGE} /root/copy.img; xl unpause {GUEST}', 300)
        check_image(host, '/root/copy.img')
        amcheck(host)
        steps(host, taken, 'vif and disk', kill=n, system='remusd', acknowledged=log_count(logs), lost_acknowledged=0, fsck='clean',
              pg_amcheck='clean', checkpoints=before['checkpoints'])
        took.append(taken['activate_ms'])
        say(f'kill {n} of {rounds}: {log_count(logs)} transactions acknowledged, none lost; database and file system are whole; '
            f'takeovers median {statistics.median(took):.0f}, at most {max(took):.0f} ms')
        if n == rounds:
            break
        back.result()
        hosts = [host, dead]
        host.run('kill $(pidof remus-backupd); while pidof remus-backupd; do sleep 0.1; done >/dev/null; rm -f /root/copy.img')
        start_daemons(hosts, DATABASE_GATE, memory=256)
        host.run(f'remusctl protect {GUEST}')


def log_count(logs):
    return sum(log.count('\nack ') for log in logs)


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


def preflight(hosts):
    """What the hosts lack, each and together, is said ahead, all of it, and nothing once it is there."""
    disk = f'disks = {{"{IMAGE}"}}'
    guest_config(hosts, network=True, disk=True)
    for host in hosts:
        host.run('rmmod nbd tun 2>/dev/null; mv /etc/xen/scripts/block-remus /root; date -s @%.2f >/dev/null' % time.time())
    start_daemons(hosts, (*GATE, disk))

    def expect(host, primary=(), backup=(), link=()):
        """Of the link only what is named: clocks and times are the lab's own."""
        done = host.try_run(f'remusctl --json preflight {GUEST}')
        found = json.loads(done.stdout)['vms'][0]
        if bool(found['lacks']) != bool(done.returncode):
            raise LabError(f'remusctl preflight exits with {done.returncode} for {found}')
        for where, things in ('primary', primary), ('backup', backup), ('link', link):
            said = [thing['what'] for thing in found['lacks'] if thing['host'] == where]
            if (where != 'link' and len(said) != len(things)) or any(thing not in '\n'.join(said) for thing in things):
                raise LabError(f'host {host.number} should say that the {where} lacks {things}, and says {json.dumps(found, indent=1)}')
        return found
    both = ('interface rx0', 'bridge rx0-guest', 'block-remus', 'no tap interfaces', 'no nbd devices')
    expect(hosts[0], (*both, IMAGE, f'no domain {GUEST}'), both)
    expect(hosts[1], (), both)

    set_up_network(hosts)
    for host in hosts:
        host.run('modprobe nbd; mv /root/block-remus /etc/xen/scripts')
    expect(hosts[1])
    hosts[0].run(f'truncate -s 16M {IMAGE}')
    expect(hosts[0], [f'no domain {GUEST}'])
    hosts[0].run(f'sed -i "s/^memory = .*/memory = 160/" /root/{GUEST}.cfg; remusctl protect {GUEST}')
    wait_for('remusd to serve the disk', PATIENCE, lambda: hosts[0].try_run(f'test -S /run/remus/{GUEST}.nbd').returncode == 0, 0.5)
    start_guest(hosts[0])
    expect(hosts[0], ['MiB, its section says 128'], ["MiB, the backup's section says 128"])
    hosts[0].run(f'xl destroy {GUEST}; sed -i -e "s/^memory = .*/memory = 128/" -e "s/script=block-remus,//; s|target=.*\'|target={IMAGE}\'|" '
                 f'/root/{GUEST}.cfg; rm -f /var/log/xen/guest-{GUEST}*')
    start_guest(hosts[0])
    expect(hosts[0], ['its disk xvda would not be replicated'])
    say('one host each: all of it is said')

    # Both together, of a guest that could be protected, and then is.
    hosts[0].run(f'xl destroy {GUEST}; kill $(pidof remusd); while pidof remusd; do sleep 0.1; done >/dev/null; rm -rf /run/remus {IMAGE}*; '
                 f'rm -f /var/log/xen/guest-{GUEST}*')
    hosts[1].run('kill $(pidof remus-backupd); while pidof remus-backupd; do sleep 0.1; done >/dev/null')
    guest_config(hosts)
    start_guest(hosts[0])
    start_daemons(hosts)
    say(f'link: {json.dumps(expect(hosts[0])["link"])}')
    hosts[1].run(f'date -s @{time.time() + 3600:.2f} >/dev/null')
    expect(hosts[0], link=["ahead of the primary's"])
    hosts[1].write('/root/big.cfg', 'name = "big"\ntype = "pvh"\nkernel = "/lab/vmlinux"\nmemory = 900\nmaxmem = 900\n')
    hosts[1].run('xl create -p /root/big.cfg')
    expect(hosts[0], (), ['the replica needs 144 MiB'])
    hosts[1].run('xl destroy big')
    protect(hosts)
    held = epoch_of(hosts[0])
    expect(hosts[0])
    wait_for('checkpoints to go on', PATIENCE, lambda: epoch_of(hosts[0]) > held + 2, 0.5)
    if status(hosts[0])['state'] != 'protected' or status(hosts[1])['state'] != 'ready':
        raise LabError(f'a preflight disturbs the protection: {status(hosts[0])}')
    hosts[0].run(f'remusctl unprotect {GUEST}')
    hosts[1].kill()
    expect(hosts[0], (), ['backup 10.9.0.2:7910: '])

    # The backup's processor lacks a feature that the domain has been promised.
    hosts[1].boot(cpu=f'{CPU},-bmi2,-adx')
    hosts[1].wait_booted()
    hosts[1].install(hosts[1].tree)
    remus_config(hosts[1], 'memory = 128')
    hosts[1].start('remus-backupd -f -c /etc/remusd.conf', '/var/log/remus-backupd.log')
    wait_for('remus-backupd', PATIENCE, lambda: hosts[1].try_run('remusctl list').returncode == 0, 0.5)
    expect(hosts[0], (), ['bmi2 (leaf 0x7 ebx bit 8), adx (leaf 0x7 ebx bit 19)'])
    refused(hosts, 'bmi2 (leaf 0x7')


def comeback(hosts):
    """A host whose guest was taken over comes back: nothing there runs a second one, and it is said why (R7)."""
    first, second = hosts
    first.kill()
    first.keep_disk()
    first.boot()
    first.wait_booted()
    first.install(first.tree)
    guest_config(hosts, network=True, disk=True)
    set_up_network(hosts)
    first.run(f'truncate -s 16M {IMAGE}')
    start_daemons(hosts, DATABASE_GATE)
    start_guest(first)
    protect(hosts)
    wait_for('some checkpoints', PATIENCE, lambda: status(first)['checkpoints'] >= 5, 0.5)
    first.run('sync')
    first.kill()
    wait_state(second, 'active')
    goes_on(second, 2)
    first.boot()
    first.wait_booted()
    set_up_network([first])

    def not_created():
        done = first.try_run(f'xl create /root/{GUEST}.cfg')
        said = (done.stdout + done.stderr).decode()
        if done.returncode == 0 or GUEST in first.run('xl list') or 'block-remus' not in said:
            raise LabError(f'xl create on the host that came back exits with {done.returncode}: {said}\n{first.run("xl list")}')
        return re.search('block-remus: .*', said).group()
    say(f'before remusd runs: {not_created()}')
    first.start('remusd -f -c /etc/remusd.conf', '/var/log/remusd.log')
    wait_for('remusd to be back', PATIENCE, lambda: first.try_run('remusctl list').returncode == 0, 0.5)
    why = 'runs on this backup'
    wait_error(first, why)
    say(f'with remusd: {not_created()}')
    first.run(f'remusctl protect {GUEST}')
    time.sleep(3)
    not_created()
    said = first.try_run(f'remusctl status {GUEST}').stdout.decode()
    if why not in said or 'what to do' not in said or 'with the other host as its backup' not in said:
        raise LabError(f'remusctl status does not say why and what to do:\n{said}')
    lacks = [thing['what'] for thing in json.loads(first.try_run(f'remusctl --json preflight {GUEST}').stdout)['vms'][0]['lacks']]
    for thing in ('is stale', f'{GUEST} runs on the backup', f'no domain {GUEST}'):
        if thing not in '\n'.join(lacks):
            raise LabError(f'preflight does not say "{thing}": {lacks}')

    # Without a disk that could be refused it runs, for xl asks nobody; but it has no network.
    first.run(f'sed -i "/^disk/d" /root/{GUEST}.cfg; sed -i "/disks = /d" /etc/remusd.conf')
    restart(first, 'remusd')
    start_guest(first)
    wait_error(first, why)
    before = first.run('cat /sys/class/net/rx0/statistics/rx_packets')
    answers = first.run(f'ping -c 5 {ADDRESS}')
    if 'DUP' in answers or ' 5 received' not in answers:
        raise LabError(f'two guests answer, or none:\n{answers}')
    if first.run('cat /sys/class/net/rx0/statistics/rx_packets') != before:
        raise LabError('what the second guest sent has left the host')
    first.run(f'xl destroy {GUEST}')
    goes_on(second, 2)
    if status(second)['state'] != 'active':
        raise LabError(f'the guest that was taken over: {status(second)}')


def wait_error(host, why):
    """Until remusd says why not."""
    said = wait_for(f'"{why}"', PATIENCE, lambda: why in (status(host)['last_error'] or '') and status(host)['last_error'], 0.5)
    say(said)


def refused(hosts, why, goes_on_there=True):
    """Asked to protect, remusd says why it does not; the guest is none the worse."""
    hosts[0].run(f'remusctl protect {GUEST}')
    wait_error(hosts[0], why)
    hosts[0].try_run(f'remusctl unprotect {GUEST}')
    if goes_on_there:
        goes_on(hosts[0], 2)


def restart(host, daemon, prefix=''):
    host.run(f'kill $(pidof {daemon}); while pidof {daemon}; do sleep 0.1; done >/dev/null')
    host.start(f'{prefix}{daemon} -f -c /etc/remusd.conf', f'/var/log/{daemon}.log')
    wait_for(f'{daemon} to be back', PATIENCE, lambda: host.try_run('remusctl list').returncode == 0, 0.5)


def bad_input(hosts):
    """What goes wrong between Xen and remusd: one clear error each, and the guest goes on."""
    guest_config(hosts)
    start_guest(hosts[0])
    start_daemons(hosts)

    hosts[1].write('/root/big.cfg', 'name = "big"\ntype = "pvh"\nkernel = "/lab/vmlinux"\nmemory = 900\nmaxmem = 900\n')
    hosts[1].run('xl create -p /root/big.cfg')
    refused(hosts, 'MiB free')
    hosts[1].run('xl destroy big')

    restart(hosts[0], 'remusd', 'env XEN_PRETEND=4.11 LD_PRELOAD=/lab/xen-times.so ')
    refused(hosts, '"xen 4.11 pvh"')
    restart(hosts[0], 'remusd')

    # Another one tracks its pages, as a migration does.
    protect(hosts)
    hosts[0].run("sed 's|^vm|run-dir = \"/run/remus-2\"\\nvm|' /etc/remusd.conf >/etc/remusd-2.conf; mkdir -p /run/remus-2")
    hosts[0].start('remusd -f -c /etc/remusd-2.conf', '/var/log/remusd-2.log')
    wait_for('the second remusd', PATIENCE, lambda: hosts[0].try_run('remusctl -R /run/remus-2 list').returncode == 0, 0.5)
    hosts[0].run(f'remusctl -R /run/remus-2 protect {GUEST}')
    said = wait_for('the second to be refused', PATIENCE,
                    lambda: 'something else tracks' in hosts[0].try_run(f'remusctl -R /run/remus-2 --json status {GUEST}').stdout.decode())
    hosts[0].run('kill $(cat /run/remus-2/remusd.pid 2>/dev/null || pgrep -f remusd-2.conf)')
    held = epoch_of(hosts[0])
    wait_for('checkpoints to go on', PATIENCE, lambda: said and epoch_of(hosts[0]) > held + 2, 0.5)
    hosts[0].run(f'remusctl protect {GUEST}')  # again: nothing to do
    goes_on(hosts[0], 2)
    say('protected already: refused to another, nothing to do for the same')

    domid = hosts[0].run(f'xl domid {GUEST}').strip()
    hosts[0].run(f'xenstore-watch -n 3 /local/domain/{domid}/control/shutdown; xl destroy {GUEST}')
    no_takeover(hosts, 'gone in the middle of a checkpoint')

    # Its kernel never looks at what xl writes; remusd finds it by itself.
    guest_config(hosts, 'lab.load=16,300 initcall_blacklist=xen_setup_shutdown_event')
    hosts[0].run(f'rm -f /var/log/xen/guest-{GUEST}*')
    start_guest(hosts[0])
    refused(hosts, 'does not answer a request to suspend')
    domid = hosts[0].run(f'xl domid {GUEST}').strip()
    if hosts[0].run(f'xenstore-read /local/domain/{domid}/control/shutdown').strip():
        raise LabError('the request to suspend was not taken back')
    hosts[0].run(f'xl destroy {GUEST}')

    if 'shadow' not in hosts[0].run('xl info virt_caps').split():
        guest_config(hosts, kind='pv')
        hosts[0].run(f'rm -f /var/log/xen/guest-{GUEST}*')
        start_guest(hosts[0])
        refused(hosts, 'CONFIG_SHADOW_PAGING')


def log_dirty(hosts, kind='pvh'):
    """xl remus takes log-dirty mode away from a protected domain (R8): noticed before the next checkpoint, and undone later."""
    port = 8002
    guest_config(hosts, kind=kind)
    start_daemons(hosts)
    start_guest(hosts[0])
    protect(hosts)
    hosts[1].start(f'socat -b 262144 TCP-LISTEN:{port},reuseaddr EXEC:"xl migrate-receive -r",setsid', '/var/log/receive.log')
    hosts[0].start(f'xl remus -F -n -d -i 2000 -s "" {GUEST} "socat -b 262144 - TCP:{hosts[1].address}:{port}"', '/var/log/remus.log')
    wait_error(hosts[0], 'something else tracks')
    if status(hosts[1])['state'] == 'active':
        raise LabError('taken over because of xl remus')
    goes_on(hosts[0], 2)
    hosts[1].run(f'kill -9 $(pidof socat); for d in $(xl list | grep -o "^{GUEST}--incoming"); do xl destroy $d; done')
    wait_state(hosts[0], 'protected')
    say('protected again when xl has let go')
    before = status(hosts[0])['checkpoints']
    wait_for('checkpoints', PATIENCE, lambda: status(hosts[0])['checkpoints'] > before + 5, 0.5)
    hosts[0].kill()
    wait_state(hosts[1], 'active')
    goes_on(hosts[1], 4)


def pv_log_dirty(hosts):
    """The same with a PV domain."""
    log_dirty(hosts, 'pv')


def xenstored(hosts):
    """The primary's xenstored dies, and another one begins: a clear error each, and the guest goes on."""
    guest_config(hosts)
    start_daemons(hosts)
    start_guest(hosts[0])
    protect(hosts)
    hosts[0].run('kill -9 $(cat /run/xenstored.pid)')
    wait_error(hosts[0], 'xenstored')
    goes_on(hosts[0], 2)
    hosts[0].run('/usr/lib/xen-4.17/bin/oxenstored --pid-file /run/xenstored.pid')
    wait_error(hosts[0], 'does not know the domain any more')
    if status(hosts[1])['state'] == 'active':
        raise LabError('taken over because of a lost xenstored')
    hosts[0].run(f'remusctl unprotect {GUEST}')
    goes_on(hosts[0], 2)


def devices(hosts):
    """A replica's devices are attached ahead of its takeover, and go with it when there is none."""
    guest_config(hosts, network=True, disk=True)
    set_up_network(hosts)
    hosts[0].run(f'truncate -s 16M {IMAGE}')
    start_daemons(hosts, DATABASE_GATE)
    start_guest(hosts[0])

    def attached(count):
        wait_for(f'{count} vif and {count} nbd device on the backup', PATIENCE, lambda: hosts[1].run(
            'ls /sys/class/net | grep -c "^vif"; ls -d /sys/block/nbd*/pid 2>/dev/null | wc -l').split() == [str(count)] * 2, 0.5)
    hosts[1].run('mv /etc/xen/scripts/block-remus /root')
    refused(hosts, 'devices could not be attached')
    attached(0)
    hosts[1].run('mv /root/block-remus /etc/xen/scripts')
    protect(hosts)
    attached(1)
    hosts[0].run(f'remusctl unprotect {GUEST}')
    no_takeover(hosts, 'unprotect')
    attached(0)
    protect(hosts)
    hosts[1].run('kill -9 $(pidof remus-backupd)')
    wait_for('the replica to go', PATIENCE, lambda: GUEST not in hosts[1].run('xl list'), 0.5)
    attached(0)
    goes_on(hosts[0], 2)


def suspend_channel(hosts):
    """A guest that advertises a suspend event channel is suspended through it; how long that takes, beside xenstore."""
    start_daemons(hosts)
    for way, extra in (('xenstore', ''), ('event channel', 'lab.channel')):
        hosts[0].run(f'xl destroy {GUEST} 2>/dev/null; rm -f /var/log/xen/guest-{GUEST}*; true')
        guest_config(hosts, f'lab.load=16,300 {extra}')
        start_guest(hosts[0])
        protect(hosts)
        base = status(hosts[0])['checkpoints']
        wait_for('30 checkpoints', PATIENCE, lambda: status(hosts[0])['checkpoints'] >= base + 30, 1)
        console, pause = hosts[0].console(GUEST), status(hosts[0])['pause_ms']
        check_ledger(console)
        if ('SUSPENDS 20' in console) != bool(extra):
            raise LabError(f'{way}: the guest was asked in another way')
        print(json.dumps({'suspend': way, **{f'{name}_ms': pause[name]['p50'] for name in ('suspend', 'resume', 'total')}}), flush=True)
    hosts[0].kill()
    wait_state(hosts[1], 'active')
    goes_on(hosts[1], 4)


def demo(hosts):
    """What scripts/demo --xen shows; the figures go to folder $DEMO_WORK, for it to report."""
    work, log = os.environ['DEMO_WORK'], '/root/ledger.log'
    primary, backup = hosts

    def keep(name, text):
        with open(os.path.join(work, name), 'w', encoding='utf-8') as f:
            f.write(text)

    def mark(name):
        backup.run(f'echo "mark {name}" >>{log}')

    def rate(seconds):
        before, began = acknowledged(backup), time.monotonic()
        time.sleep(seconds)
        return f'{(acknowledged(backup) - before) / (time.monotonic() - began):.1f} transactions/s'
    start_database(hosts, protected=False)
    backup.start(f'/lab/ledger --conninfo "{CONNINFO}" --clients 4 --log {log}', '/var/log/ledger.log')
    progress(backup, 'transactions', 4)
    say(f'not protected: {rate(4)}')
    mark('protecting')
    protect(hosts)
    mark('protected')
    say('protected')
    progress(backup, 'transactions under protection', 20)
    for _ in range(3):
        now = rate(int(os.environ.get('DEMO_SECONDS', '10')) / 3)
        vm = status(primary)
        say(f"{vm['checkpoints']} checkpoints, the domain paused for {vm['pause_ms']['total']['p50']:.0f} ms each, {now}")
    keep('status-primary', primary.try_run(f'remusctl --json status {GUEST}').stdout.decode())
    mark('lost')
    primary.kill()
    before = acknowledged(backup)
    say('KILLED the primary host, in the middle of an epoch')
    wait_for('a transaction after the loss', PATIENCE, lambda: acknowledged(backup) > before, 0.5)
    keep('status-backup', backup.try_run(f'remusctl --json status {GUEST}').stdout.decode())  # exit status 3: not protected
    mark('taken-over')
    say('taken over: the domain runs on the backup host, and the clients go on')
    progress(backup, 'transactions after the takeover', 20)
    backup.run('kill -TERM $(pidof ledger); while pidof ledger; do sleep 0.1; done')
    say('comparing what the clients were told with what the database has')
    keep('verify', backup.try_run(f'/lab/ledger --verify --conninfo "{CONNINFO}" --log {log}', 400).stdout.decode())
    amcheck(backup)


# --- beside xl remus ---

TIMES = '/var/log/xen-times'
WATCHED = f'env XEN_TIMES={TIMES} LD_PRELOAD=/lab/xen-times.so'
PHASES = ('suspend_ms', 'copy_ms', 'resume_ms')


def times(host):
    """What tests/lab/xen-times.c has noted: (microseconds, event, number)."""
    lines = [line.split() for line in host.run(f'cat {TIMES} 2>/dev/null || :').splitlines()]
    return sorted((int(line[0]), line[1], int(line[2])) for line in lines)


def checkpoints_of(events):
    """Of each whole checkpoint: until the domain was seen suspended, until its resume was called, until that came back; and
    what was mapped page by page meanwhile."""
    found, at = [], {}
    for when, what, n in events:
        if what == 'scanned' and found:
            found[-1].setdefault('mapped', n)
        if what == 'request':
            at = {}
        at[what] = when
        if what == 'resumed' and {'request', 'suspended', 'scanned', 'resume'} <= at.keys():
            found.append(dict(zip(PHASES, ((at['suspended'] - at['request']) / 1000, (at['resume'] - at['suspended']) / 1000,
                                           (when - at['resume']) / 1000))))
    return found


def measure(hosts, load, system, dirty, end):
    """Some time of checkpoints as dom0's calls of Xen and the link see them, and the takeover; a JSON line."""
    now = 'cat /sys/class/net/eth1/statistics/tx_bytes /proc/uptime'
    wait_for('regular checkpoints', PATIENCE, lambda: len(checkpoints_of(times(hosts[0]))) >= 5, 1)

    def reading():
        sent, seconds = hosts[0].run(now).split()[:2]
        return int(sent), float(seconds), acknowledged(hosts[1])
    hosts[0].run(f': >{TIMES}')
    before = reading()
    wait_for(f'{COMPARED} checkpoints', PATIENCE, lambda: len(checkpoints_of(times(hosts[0]))) >= COMPARED, 1)
    found = checkpoints_of(times(hosts[0]))
    sent, seconds, transactions = (b - a for a, b in zip(before, reading()))
    figures = {'system': system, 'load': load, 'checkpoints': len(found), 'seconds': round(seconds, 1)}
    figures['period_ms'] = round(seconds * 1000 / len(found))
    for name in PHASES:
        figures[name] = round(statistics.median(c[name] for c in found), 2)
    figures['dirty_pages'] = round(dirty(found))
    figures['bytes_per_checkpoint'] = sent // len(found)
    figures['bytes_per_second'] = round(sent / seconds)
    if load == 'postgresql':
        figures['transactions'] = transactions
        figures['bytes_per_transaction'] = sent // transactions
    hosts[0].kill()
    figures['takeover_ms'] = round(end())
    RESULTS.append(figures)
    print(json.dumps(figures), flush=True)


COMPARED = 50  # checkpoints
RESULTS = []


def with_remusd(hosts, load):
    measure(hosts, load, 'remusd', lambda _: status(hosts[0])['dirty_pages']['p50'],
            lambda: wait_state(hosts[1], 'active')['takeover']['activate_ms'])
    steps(hosts[1], status(hosts[1])['takeover'], 'vif and disk' if load == 'postgresql' else 'no devices')


def with_xl(hosts, load):
    """Nothing but xl: its stream goes through socat; that it has ended, the backup is told by hand."""
    port = 8002
    hosts[1].start(f'{WATCHED} socat -b 262144 TCP-LISTEN:{port},reuseaddr EXEC:"xl migrate-receive -r",setsid', '/var/log/receive.log')
    hosts[0].start(f'{WATCHED} xl remus -F -n -d -i 500 -s "" {GUEST} "socat -b 262144 - TCP:{hosts[1].address}:{port}"', '/var/log/remus.log')

    def end():
        cut = float(hosts[1].run("python3 -c 'import os, time; print(time.monotonic()); os.kill('$(pidof socat)', 9)'"))
        return wait_for('the replica to run', 60, lambda: [t / 1e3 - cut * 1e3 for t, what, _ in times(hosts[1]) if what == 'unpaused'], 1)[0]
    measure(hosts, load, 'xl-remus', lambda found: statistics.median(c['mapped'] for c in found if 'mapped' in c), end)


# xl's interval begins when the checkpoint before is away, remusd's when it began: so both take about as many a second.
BESIDE_XL = {'watched': True, 'interval': 1000}
MEMORY = 'lab.load=2,4000'  # the same 512 pages, nearly all of them at each checkpoint


def compare_remusd(hosts):
    """remusd's figures: a guest that writes to memory."""
    guest_config(hosts, MEMORY)
    start_guest(hosts[0])
    start_daemons(hosts, **BESIDE_XL)
    protect(hosts)
    with_remusd(hosts, 'memory')


def compare_xl(hosts):
    """xl remus's figures, the same guest."""
    guest_config(hosts, MEMORY, stock=True)
    start_guest(hosts[0])
    with_xl(hosts, 'memory')


def start_bank(host):
    """The same work for both systems, less than either lets through: 2 transactions a second, however long one takes."""
    host.start(f'/lab/ledger --conninfo "{CONNINFO}" --clients 8 --rate 2 --log /root/ledger.log', '/var/log/ledger.log')
    progress(host, 'transactions', 4)


def compare_remusd_database(hosts):
    """remusd's figures: PostgreSQL."""
    start_database(hosts, services=('services = "pgsql:5432"',), **BESIDE_XL)
    wait_state(hosts[0], 'protected')
    start_bank(hosts[1])
    with_remusd(hosts, 'postgresql')


def compare_xl_database(hosts):
    """xl remus's figures: PostgreSQL, whose disk and packets xl remus leaves alone here."""
    guest_config(hosts, memory=256, extra='', network=True, ramdisk='database.cpio', disk=True, stock=True)
    for host in hosts:
        host.run(f'cp --sparse=always /lab/database.disk {IMAGE}', 300)
    start_guest(hosts[0], 'REMUS-GUEST-READY')
    hosts[1].run(f'/lab/ledger --init --conninfo "{CONNINFO}" --seconds 300', 400)
    start_bank(hosts[1])
    with_xl(hosts, 'postgresql')


def table():
    """RESULTS for the README, and of each load remusd's share of what xl remus takes."""
    keys = ('period_ms', *PHASES, 'dirty_pages', 'bytes_per_checkpoint', 'bytes_per_second', 'bytes_per_transaction', 'takeover_ms')
    lines = ['| ' + ' | '.join(('load', 'system', *keys)) + ' |', '|' + ' --- |' * (len(keys) + 2)]
    for load in dict.fromkeys(r['load'] for r in RESULTS):
        rows = {r['system']: r for r in RESULTS if r['load'] == load}
        if len(rows) == 2:
            rows['remusd / xl-remus'] = {k: f"{rows['remusd'][k] / rows['xl-remus'][k]:.3f}" for k in keys if k in rows['remusd']}
        lines += ['| ' + ' | '.join((load, name, *(str(row.get(k, '')) for k in keys))) + ' |' for name, row in rows.items()]
    return '\n'.join(lines)


def clean_up(hosts):
    """Hosts that stay up: ends what an earlier scenario left."""
    for host in hosts:
        if host.alive():
            host.run('kill -9 $(pidof remusd remus-backupd remus-xen-restore python3) 2>/dev/null; sleep 1; '
                     f'for d in {GUEST} {GUEST}--replica; do xl destroy $d 2>/dev/null; done; '
                     'rm -rf /run/remus /var/log/xen/guest-* /var/log/remus* '
                     f'{IMAGE}*; :')


def explain(hosts):
    """What a reader needs to see why a scenario failed."""
    for host in hosts:
        if host.alive():
            say(f'host {host.number}:')
            print(host.try_run('xl list; tail -n 20 /var/log/remus*.log; cat /run/remus/*.restore.log; '
                               'tail -n 3 /var/log/xen/guest-*.log; xl dmesg | tail -n 5').stdout.decode(
                                   errors='replace'))


ALL = {'self-test': self_test, 'takeover': takeover, 'network': network, 'network-kernel': network_kernel,
       'network-learned': network_learned, 'learned': learned, 'network-plug': network_plug,
       'operator': operator, 'shutdown': shutdown, 'database': database, 'preflight': preflight, 'bad-input': bad_input,
       'devices': devices, 'comeback': comeback, 'suspend-channel': suspend_channel, 'log-dirty': log_dirty, 'pv': pv,
       'pv-database': pv_database, 'pv-log-dirty': pv_log_dirty, 'xenstored': xenstored}
COMPARE = {'compare-remusd': compare_remusd, 'compare-xl': compare_xl, 'compare-remusd-database': compare_remusd_database,
           'compare-xl-database': compare_xl_database}
MORE = {'kills': kills, 'demo': demo, **COMPARE}  # only by name
SHADOW = {'pv', 'pv-database', 'pv-log-dirty'}  # want a Xen with shadow paging, tests/lab/xen-shadow
