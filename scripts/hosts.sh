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
