# SPDX-License-Identifier: GPL-2.0-or-later
"""What the lab tries.  A scenario gets two hosts with remusd installed and nothing running; LabError fails it."""

import json
import random
import re
import time

from xenlab import LabError, say, wait_for

PATIENCE = 400  # seconds that anything may take on a busy machine
GUEST = 'g1'
MAC, ADDRESS = '00:16:3e:00:00:51', '10.9.0.51'
GATE = ('tap = rx0', f'mac = "{MAC}"', 'guest-bridge = rx0-guest')
IMAGE = f'/root/{GUEST}.img'


def guest_config(hosts, extra='lab.load=16,300', memory=128, network=False, ramdisk='guest.cpio.gz', disk=False):
    where = 'bridge=rx0-guest' if network is True else network
    vif = f"vif = ['mac={MAC},{where},script=vif-remus']" if network else ''
    if disk:
        vif += f"\ndisk = ['vdev=xvda,format=raw,script=block-remus,target={GUEST}']"
    for host in hosts:
        host.write(f'/root/{GUEST}.cfg', f'''
name = "{GUEST}"
type = "pvh"
kernel = "/lab/vmlinux"
ramdisk = "/lab/{ramdisk}"
memory = {memory}
vcpus = 1
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
s.settimeout(1)
s.connect(("%s", 7000))
last = 0
while True:
    try:
        s.send(b"?")
        n = int(s.recv(100))
        print(n, flush=True)
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


def start_daemons(hosts, both=(), memory=128):
    """hosts[0] protects, hosts[1] is its backup; slow heartbeats, since emulated processors are late."""
    both = (f'memory = {memory}', *both)
    remus_config(hosts[0], f'backup = "{hosts[1].address}:7910"', 'interval = 500', 'heartbeat = 100',
                 'timeout = 5000', *both)
    remus_config(hosts[1], 'takeover = automatic', *both)
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


def restart_guest(hosts):
    """A new domain of the same name, protected again: its past is not held against it."""
    hosts[0].run(f'xl destroy {GUEST} 2>/dev/null; rm -f /var/log/xen/guest-{GUEST}*; true')
    start_guest(hosts[0])
    hosts[0].run('kill $(pidof remusd); while pidof remusd; do sleep 0.1; done >/dev/null')
    hosts[0].start('remusd -f -c /etc/remusd.conf', '/var/log/remusd.log')
    wait_for('remusd to be back', PATIENCE, lambda: hosts[0].try_run('remusctl list').returncode == 0, 0.5)
    protect(hosts)


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
    start_guest(hosts[0])
    start_daemons(hosts, GATE)
    output_commit(hosts, 'frames')


def network_nfqueue(hosts):
    """The same with a vif that stays on the network's bridge, held by netfilter queues."""
    kernel_holds(hosts, 'nfqueue')


def network_plug(hosts):
    """The same, held by a plug queue, which is there before the guest."""
    kernel_holds(hosts, 'plug')


def kernel_holds(hosts, port):
    guest_config(hosts, 'lab.load=4,50', network='vifname=rx0,bridge=xenbr0')
    start_daemons(hosts, ('vif = rx0', f'mac = "{MAC}"', 'guest-bridge = xenbr0', f'netbuf = {port}'))
    # remusd looks for the guest when it is told to protect it, and its port then waits for the vif.
    hosts[0].try_run(f'remusctl protect {GUEST}')
    start_guest(hosts[0])
    output_commit(hosts, port)


def output_commit(hosts, port):
    hosts[1].write('/root/client.py', CLIENT)
    protect(hosts)
    hosts[1].start('python3 /root/client.py', '/var/log/client.log')

    def answers():
        log = hosts[1].run('cat /var/log/client.log').splitlines()
        bad = [line for line in log if not line.isdigit()]
        if bad:
            raise LabError(f'the client says {bad[0]}')
        return len(log)
    wait_for('answers of the guest', PATIENCE, lambda: answers() >= 10, 1)
    held = status(hosts[0])['net']
    if held['port'] != port:
        raise LabError(f'held by {held["port"]}, not by {port}')
    hosts[0].kill()
    before = answers()
    say(f'primary killed after {before} answers, held for p50 {held["hold_ms"]["p50"]} ms')
    taken = wait_state(hosts[1], 'active')
    wait_for('answers after the takeover', PATIENCE, lambda: answers() >= before + 10, 1)
    check_ledger(hosts[1].console(GUEST))
    say(f'takeover with a vif: {json.dumps(taken["takeover"])}')


def acknowledged(host):
    """How many transactions the database's clients were told are committed."""
    return int(host.run('grep -c "^ack " /root/ledger.log || :'))


def progress(host, what, more):
    least = acknowledged(host) + more
    wait_for(what, PATIENCE, lambda: acknowledged(host) >= least, 1)


def whole_disk(host):
    """As after a power failure: the journal is replayed, then nothing may be wrong."""
    host.run(f'xl destroy {GUEST}')
    wait_for('the disk server to end', PATIENCE, lambda: host.try_run('pidof nbdkit').returncode, 0.5)
    host.run(f'e2fsck -fp {IMAGE} || [ $? = 1 ]; e2fsck -fn {IMAGE}', 300)


def database(hosts):
    """PostgreSQL on a protected disk: no acknowledged commit is lost with the primary host (R1, R2, R5)."""
    clients, conninfo = hosts[1], f'host={ADDRESS} user=postgres dbname=postgres connect_timeout=60'
    guest_config(hosts, memory=256, extra='', network=True, ramdisk='database.cpio', disk=True)
    set_up_network(hosts)
    hosts[0].run(f'cp --sparse=always /lab/database.disk {IMAGE}', 300)
    start_daemons(hosts, (*GATE, f'disks = {{"{IMAGE}"}}'), memory=256)
    start_guest(hosts[0], 'REMUS-GUEST-READY')
    protect(hosts)
    clients.run(f'/lab/ledger --init --conninfo "{conninfo}" --seconds 300', 400)
    clients.start(f'/lab/ledger --conninfo "{conninfo}" --clients 4 --log /root/ledger.log', '/var/log/ledger.log')
    clients.run('while ! [ -e /root/ledger.log ]; do sleep 0.1; done')
    progress(clients, 'transactions', 20)
    time.sleep(random.random() * 3)
    before = status(hosts[0])
    hosts[0].kill()
    say(f'primary killed after {acknowledged(clients)} acknowledged transactions; '
        f'{json.dumps({k: before[k] for k in ("pause_ms", "disks") if k in before})}')
    taken = wait_state(hosts[1], 'active')
    say(f'takeover with vif and disk: {json.dumps(taken["takeover"])}')
    progress(clients, 'transactions after the takeover', 20)
    clients.run('kill -TERM $(pidof ledger); while pidof ledger; do sleep 0.1; done')
    verify = f'/lab/ledger --verify --conninfo "{conninfo}" --log /root/ledger.log'
    clients.run(verify, 400)
    whole_disk(hosts[1])

    # What the guest has in its memory might hide what the disk lacks.
    hosts[1].run(f'cd /root; rm /var/log/xen/guest-{GUEST}*; sed -i -e "s/script=.*target=/target=/; s|target=.*\'|target={IMAGE}\'|" '
                 f'-e "s/rx0-guest/xenbr0/" {GUEST}.cfg')
    start_guest(hosts[1], 'REMUS-GUEST-READY')
    clients.run(verify, 400)
    clients.run(f'/lab/pg_amcheck -h {ADDRESS} -U postgres -d postgres --heapallindexed', 600)
    say(f'{acknowledged(clients)} transactions acknowledged, none lost; database and file system are whole')


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
    """What a host lacks is said ahead, all of it, and nothing once it is there."""
    disk = f'disks = {{"{IMAGE}"}}'
    guest_config(hosts, network=True, disk=True)
    for host in hosts:
        host.run('rmmod nbd tun 2>/dev/null; mv /etc/xen/scripts/block-remus /root; :')
    start_daemons(hosts, (*GATE, disk))

    def lacks(host):
        done = host.try_run(f'remusctl --json preflight {GUEST}')
        found = json.loads(done.stdout)['vms'][0]['lacks']
        if bool(found) != bool(done.returncode):
            raise LabError(f'remusctl preflight exits with {done.returncode} for {found}')
        return '\n'.join(thing['what'] for thing in found)

    def expect(host, *things):
        said = lacks(host)
        if len(said.splitlines()) != len(things) or any(thing not in said for thing in things):
            raise LabError(f'host {host.number} should lack {things}, and says:\n{said}')
    both = ('interface rx0', 'bridge rx0-guest', 'block-remus', 'no tap interfaces', 'no nbd devices')
    expect(hosts[0], *both, IMAGE, f'no domain {GUEST}')
    expect(hosts[1], *both)

    set_up_network(hosts)
    for host in hosts:
        host.run('modprobe nbd; mv /root/block-remus /etc/xen/scripts')
    expect(hosts[1])
    hosts[0].run(f'truncate -s 16M {IMAGE}')
    expect(hosts[0], f'no domain {GUEST}')
    hosts[0].run(f'sed -i "s/^memory = .*/memory = 160/" /root/{GUEST}.cfg; remusctl protect {GUEST}')
    wait_for('remusd to serve the disk', PATIENCE, lambda: hosts[0].try_run(f'test -S /run/remus/{GUEST}.nbd').returncode == 0, 0.5)
    start_guest(hosts[0])
    expect(hosts[0], 'MiB, its section says 128')
    hosts[0].run(f'xl destroy {GUEST}; sed -i -e "s/^memory = .*/memory = 128/" -e "s/script=block-remus,//; s|target=.*\'|target={IMAGE}\'|" '
                 f'/root/{GUEST}.cfg; rm -f /var/log/xen/guest-{GUEST}*')
    start_guest(hosts[0])
    expect(hosts[0], 'its disk xvda would not be replicated')


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


ALL = {'self-test': self_test, 'takeover': takeover, 'network': network, 'network-nfqueue': network_nfqueue,
       'network-plug': network_plug, 'operator': operator, 'shutdown': shutdown,
       'database': database,
       'preflight': preflight}
