# SPDX-License-Identifier: GPL-2.0-or-later
# Shell functions that the scripts share: source it from bash after `set -eu`.
#
#   say TEXT...           one progress line on stderr, with the time since the first script began
#   die TEXT...           says why, exits with 1
#   defer COMMAND...      runs COMMAND at exit, last deferred first, whatever ended the script; it finds
#                         the script's status in exit_status
#   need_packages NAME... installs those Debian packages of the list that are missing
#   build_tree DIR [CONFIGURE-OPTION...]
#                         builds this source tree in DIR
#   build_programs          builds this source tree where the demo has it, and puts its programs into PATH
#   netns_remove NAME     ends every process in a network namespace, by its id, and removes it

# shellcheck shell=bash

export REMUS_STARTED=${REMUS_STARTED:-${EPOCHREALTIME/./}}
deferred=()
top=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
# shellcheck disable=SC2034 # for those who source this
build_packages=(gcc libc6-dev make autoconf automake libtool pkg-config liblz4-dev libzstd-dev
    libxxhash-dev libevent-dev libconfuse-dev libjansson-dev libpq-dev)

say() {
    local ms=$(((${EPOCHREALTIME/./} - REMUS_STARTED) / 1000))
    printf '[%3d.%d s] %s\n' $((ms / 1000)) $((ms / 100 % 10)) "$*" >&2
}

die() {
    say "${0##*/}: $*"
    exit 1
}

defer() {
    deferred+=("$(printf '%q ' "$@")")
}

run_deferred() {
    exit_status=$?
    local i
    trap '' INT TERM HUP
    trap - EXIT
    set +e
    for ((i = ${#deferred[@]} - 1; i >= 0; i--)); do
        eval "${deferred[i]}"
    done
    exit "$exit_status"
}

trap run_deferred EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

need_root() {
    [ "$(id -u)" = 0 ] || die "needs root: run it with sudo"
}

apt_quiet() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 \
        -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0 "$@"
}

# apt's lists may be absent (a fresh container) or too old (404 on the packages that they name).
apt_update() {
    say "fetching Debian's package lists"
    apt_quiet update >&2
}

apt_has_lists() {
    [ -n "$(apt-cache show --no-all-versions busybox-static 2>/dev/null)" ]
}

need_packages() {
    local name log missing=()
    for name in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] ||
            missing+=("$name")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    need_root
    apt_has_lists || apt_update
    say "installing ${missing[*]}"
    log=$(mktemp)
    if ! apt_quiet install --no-install-recommends -y "${missing[@]}" >"$log" 2>&1; then
        apt_update
        apt_quiet install --no-install-recommends -y "${missing[@]}" >"$log" 2>&1 ||
            { cat "$log" >&2; rm -f "$log"; die "apt-get could not install ${missing[*]}"; }
    fi
    rm -f "$log"
}

# Under sudo, what is built still belongs to the owner of the source tree.
as_owner() {
    local uid gid
    read -r uid gid < <(stat -c '%u %g' "$top")
    if [ "$uid" = "$(id -u)" ]; then
        "$@"
    else
        setpriv --reuid="$uid" --regid="$gid" --clear-groups "$@"
    fi
}

build_tree() (
    dir=$1
    shift
    as_owner mkdir -p "$dir"
    exec 8<"$top"
    flock 8
    log=$dir/build.log
    as_owner touch "$log"
    {
        cd "$top" &&
        if [ configure.ac -nt configure ]; then
            as_owner autoreconf -i
        fi &&
        cd "$dir" &&
        if ! [ -e config.status ]; then
            as_owner "$top/configure" "$@"
        fi &&
        as_owner make -j "$(nproc)"
    } >"$log" 2>&1 || { tail -n 40 "$log" >&2; die "the build failed; all of it is in $log"; }
)

build_programs() {
    build=$top/build/demo
    [ ! -e "$top/config.status" ] || build=$top
    build_tree "$build"
    PATH=$build/remusd:$build/backup:$build/ctl:$build/tests:$PATH
    REMUS_LIBEXEC=$build/vm
    export PATH REMUS_LIBEXEC
}

# A process that forks while we look can escape one round, so look until nobody is left.
netns_kill() {
    local pids round
    for ((round = 0; round < 50; round++)); do
        pids=$(ip netns pids "$1" 2>/dev/null) && [ -n "$pids" ] || return 0
        # shellcheck disable=SC2086 # a list
        kill -KILL $pids 2>/dev/null || :
        sleep 0.02
    done
}

netns_remove() {
    [ -e "/run/netns/$1" ] || return 0
    netns_kill "$1"
    ip netns del "$1"
}
