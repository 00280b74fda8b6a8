# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen hosts in QEMU: a Host boots, runs commands in its dom0 over ssh, and dies on request."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time

# Without these QEMU 7.2's emulation of Xen goes wrong: dom0 dies at an iret with SMAP, SIMD registers are mixed
# up between domains with AVX and XSAVE, PVH guests die with RDTSCP.
CPU = 'max,-smap,-rdtscp,-xsave,-xsaveopt,-xgetbv1,-avx,-avx2,-f16c,-fma,-vaes,-pku,-mpx'
BOOT_S = 400  # on a busy machine


class LabError(Exception):
    pass


def say(text):
    print(f'[{time.strftime("%H:%M:%S")}] {text}', file=sys.stderr, flush=True)


def wait_for(what, seconds, probe, every=0.1):
    """Calls probe until it returns something true; that is the result."""
    end = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > end:
            raise LabError(f'waited {seconds} s for {what}')
        time.sleep(every)


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


class Host:
    """One Xen host.  Files in its folder: pid, port, serial.log, qmp.  $LAB_XEN: another hypervisor, an unpacked ELF."""

    def __init__(self, number, folder, image, xen=None):
        self.number, self.image = number, image
        self.xen = os.environ.get('LAB_XEN') or xen or f'{image}/xen'
        self.folder = os.path.join(folder, str(number))
        self.link = os.path.join(folder, f'link-{number}')
        self.peer_link = os.path.join(folder, f'link-{3 - number}')
        self.address = f'10.9.0.{number}'
        os.makedirs(self.folder, exist_ok=True)

    def path(self, name):
        return os.path.join(self.folder, name)

    def _read(self, name):
        try:
            with open(self.path(name), errors='replace') as f:
                return f.read()
        except FileNotFoundError:
            return ''

    @property
    def pid(self):
        return int(self._read('pid') or 0)

    def alive(self):
        try:
            with open(f'/proc/{self.pid}/cmdline') as f:
                return self.folder in f.read()
        except OSError:
            return False

    def keep_disk(self):
        """From its next boot on what it writes is there after one more, as far as it had left the host's memory."""
        if not os.path.exists(self.path('disk')):
            subprocess.run(['cp', '--sparse=always', f'{self.image}/dom0.ext4', self.path('disk')], check=True)

    def boot(self, memory=2048, dom0_memory=1024, cpu=CPU):
        for name in ('serial.log', 'qmp', 'ssh'):
            if os.path.lexists(self.path(name)):
                os.unlink(self.path(name))
        if os.path.exists(self.link):
            os.unlink(self.link)
        port = free_port()
        image = self.image
        command = [
            'qemu-system-x86_64', '-accel', 'tcg,tb-size=512', '-cpu', cpu, '-m', str(memory), '-smp', '1',
            '-nodefaults', '-display', 'none', '-no-reboot',
            '-chardev', f'file,id=serial,path={self.path("serial.log")}', '-serial', 'chardev:serial',
            '-qmp', f'unix:{self.path("qmp")},server=on,wait=off',
            '-kernel', self.xen, '-append',
            f'console=com1 com1=115200,8n1 dom0_mem={dom0_memory}M,max:{dom0_memory}M loglvl=all noreboot',
            '-initrd', f'{image}/vmlinux console=hvc0 root=/dev/vda mitigations=off net.ifnames=0 '
                       f'lab.id={self.number},{image}/initrd',
            '-drive', (f'file={self.path("disk")}' if os.path.exists(self.path('disk')) else f'file={image}/dom0.ext4,snapshot=on') +
                      ',if=none,id=disk,format=raw,cache=unsafe',
            '-device', 'virtio-blk-pci,drive=disk',
            '-netdev', f'user,id=outside,hostfwd=tcp:127.0.0.1:{port}-:22',
            '-device', 'virtio-net-pci,netdev=outside,romfile=',
            '-netdev', f'dgram,id=link,local.type=unix,local.path={self.link},'
                       f'remote.type=unix,remote.path={self.peer_link}',
            '-device', f'virtio-net-pci,netdev=link,romfile=,mac=52:54:00:09:00:0{self.number},host_mtu=60000',
        ]
        with open(self.path('qemu.log'), 'w') as log:
            qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                    start_new_session=True)
        for name, value in (('pid', qemu.pid), ('port', port)):
            with open(self.path(name), 'w') as f:
                f.write(str(value))
        self.process = qemu

    def wait_booted(self):
        def ready():
            if getattr(self, 'process', None) and self.process.poll() is not None:
                raise LabError(f'host {self.number}: QEMU ended:\n{self._read("qemu.log")}')
            return 'DOM0-READY' in self._read('serial.log')
        wait_for(f'host {self.number} to boot (its console: {self.path("serial.log")})', BOOT_S, ready)
        wait_for(f'host {self.number} to answer', 30, lambda: self.try_run('true').returncode == 0)

    def _ssh(self, command):
        return ['ssh', '-q', '-i', f'{self.image}/ssh-key', '-p', self._read('port'),
                '-o', 'StrictHostKeyChecking=no', '-o', 'UserKnownHostsFile=/dev/null', '-o', 'ConnectTimeout=30',
                '-o', 'ControlMaster=auto', '-o', f'ControlPath={self.path("ssh")}', '-o', 'ControlPersist=600',
                'root@127.0.0.1', command]

    def try_run(self, command, seconds=120, **kwargs):
        kwargs.setdefault('stdin', subprocess.DEVNULL)
        try:
            return subprocess.run(self._ssh(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  timeout=seconds, **kwargs)
        except subprocess.TimeoutExpired:
            raise LabError(f'host {self.number}: `{command}\' takes longer than {seconds} s') from None

    def run(self, command, seconds=120, **kwargs):
        """Standard output of a shell command in dom0; LabError when it fails."""
        done = self.try_run(command, seconds, **kwargs)
        if done.returncode:
            raise LabError(f'host {self.number}: `{command}\' exits with {done.returncode}: '
                           f'{(done.stdout + done.stderr).decode(errors="replace").strip()}')
        return done.stdout.decode(errors='replace')

    def start(self, command, log):
        """Runs a command in the background of dom0."""
        self.run(f'(setsid nohup {command} >{shlex.quote(log)} 2>&1 </dev/null &)')

    def write(self, path, text):
        self.run(f'cat >{shlex.quote(path)}', stdin=None, input=text.encode())

    def install(self, tree):
        """Copies a folder over dom0's root."""
        with subprocess.Popen(['tar', '-C', tree, '-cf', '-', '.'], stdout=subprocess.PIPE) as tar:
            self.run('tar -C / --no-same-owner --keep-directory-symlink -xf -', stdin=tar.stdout)

    def console(self, guest):
        """What the guest has printed on this host."""
        return self.run(f'cat /var/log/xen/guest-{guest}*.log 2>/dev/null || :')

    def qmp(self, command, **arguments):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(self.path('qmp'))
            stream = s.makefile('rw')
            stream.readline()
            for request in ({'execute': 'qmp_capabilities'}, {'execute': command, 'arguments': arguments}):
                stream.write(json.dumps(request) + '\n')
                stream.flush()
                while True:
                    answer = json.loads(stream.readline())
                    if 'event' not in answer:
                        break
            if 'error' in answer:
                raise LabError(f'{command}: {answer["error"]["desc"]}')
            return answer['return']

    def cut_link(self, cut=True):
        self.qmp('set_link', name='link', up=not cut)

    def kill(self):
        """As when its power fails."""
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)
            if getattr(self, 'process', None):
                self.process.wait()
            wait_for('QEMU to end', 10, lambda: not self.alive(), 0.01)
        subprocess.run(['ssh', '-q', '-o', f'ControlPath={self.path("ssh")}', '-O', 'exit', 'root@127.0.0.1'],
                       stderr=subprocess.DEVNULL, check=False)
