# SPDX-License-Identifier: GPL-2.0-or-later
# Three hosts on one machine, each a network namespace: source it after lib.sh.
#
#            10.77.0.0/24                        10.78.0.0/24
#   client ---- lan bridge ---- bridge: tap       primary ------ backup
#   .1             |            (primary)            .1            .2
#                  +----------- bridge: tap
#                               (backup)
#
# The guest is 10.77.0.2, behind the tap of the host that it runs on. Checkpoints have a link of their own.
#
#   hosts_make PREFIX TAP   makes PREFIX-lan, PREFIX-client, PREFIX-primary and PREFIX-backup, and
#                           defers their removal
#   on HOST COMMAND...      runs COMMAND on client, primary or backup. Its /dev/shm is its own and is
#                           gone with it and with the processes that it started
#   hosts_kill HOST         ends every process of the host at once, as a power failure would
#   host_config HOST LINE...
#                           writes $work/HOST.conf: the VM db1 of the image in $work/image, which the
#                           primary protects to the backup, with these lines added for it
#   host_start HOST PROGRAM starts a daemon with it; returns when its control socket is there
#
# The last two want $work, the TAP tap-db1, and the programs in PATH.

# shellcheck shell=bash

hosts_make() {
    local tap=$2 host
    hosts=$1
    for host in lan client primary backup; do
        ip netns add "$hosts-$host"
        defer netns_remove "$hosts-$host"
        ip -n "$hosts-$host" link set lo up
    done
    ip -n "$hosts-lan" link add br0 up type bridge
    for host in client primary backup; do
        ip -n "$hosts-lan" link add "$host" up master br0 type veth peer name lan netns "$hosts-$host"
        ip -n "$hosts-$host" link set lan up
    done
    ip -n "$hosts-client" address add 10.77.0.1/24 dev lan
    for host in primary backup; do
        ip -n "$hosts-$host" link add br0 up type bridge
        ip -n "$hosts-$host" link set lan master br0
        ip -n "$hosts-$host" tuntap add "$tap" mode tap
        ip -n "$hosts-$host" link set "$tap" up master br0
        ip netns exec "$hosts-$host" sh -c 'echo 1000 >/proc/sys/net/unix/max_dgram_qlen'
    done
    ip -n "$hosts-primary" link add peer up type veth peer name peer netns "$hosts-backup"
    ip -n "$hosts-backup" link set peer up
    ip -n "$hosts-primary" address add 10.78.0.1/24 dev peer
    ip -n "$hosts-backup" address add 10.78.0.2/24 dev peer
}

on() {
    ip netns exec "$hosts-$1" sh -c 'mount -t tmpfs shm /dev/shm && exec "$@"' sh "${@:2}"
}

hosts_kill() {
    netns_kill "$hosts-$1"
}

# shellcheck disable=SC2154 # work is the caller's
host_config() {
    local host=$1
    mkdir "$work/$host"
    [ "$host" = backup ] || cp --sparse=always "$work/image/disk" "$work/primary/db1.img"
    cat >"$work/$host.conf" <<EOF
run-dir = "$work/$host"
listen = "10.78.0.2:7910"
vm db1 {
    platform = qemu
    accelerator = auto
    memory = 256
    cpus = 1
    kernel = "$work/image/vmlinuz"
    initrd = "$work/image/initrd"
    append = "$(cat "$work/image/append") remus.ip=10.77.0.2/24"
    tap = "tap-db1"
    mac = "52:54:00:77:00:02"
    disks = { "$work/$host/db1.img" }
    takeover = automatic
    $([ "$host" = backup ] || echo 'backup = "10.78.0.2:7910"')
$(printf '    %s\n' "${@:2}")
}
EOF
}

# shellcheck disable=SC2154
host_start() {
    on "$1" "$2" -f -c "$work/$1.conf" >"$work/$2.log" 2>&1 &
    until [ -S "$work/$1/$2.sock" ]; do
        kill -0 $! 2>/dev/null || die "$2 did not start: $(tail -n 3 "$work/$2.log")"
        sleep 0.05
    done
    disown
}
