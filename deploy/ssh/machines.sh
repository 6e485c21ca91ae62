#!/usr/bin/env bash
# Runs a command beside an own sshd of this one machine, which ends with the command: to try things, not to compute on.
# Usage: machines.sh COMMAND [ARGUMENT]...     for example: machines.sh bash
#
# Two "machines", 127.0.0.1 and 127.0.0.2, are reached by `ssh -F "$SSH_CONFIG" 127.0.0.1`; "$HOSTS" is a file that names
# them. Needs the Debian packages openssh-server and openssh-client, but not root. All keys and settings lie in a folder of
# their own: neither ~/.ssh nor the sshd of the system is touched.
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# ours: prints the processes that were started by this sshd
ours() { grep -lzx "TMPDIR=$work/tmp" /proc/[0-9]*/environ 2>/dev/null | cut -d / -f 3 || true; }

cleanup() {
    local status=$?
    trap - EXIT
    kill_all "${sshd[@]}"
    local left
    left=$(ours)
    if [ -n "$left" ]; then
        # shellcheck disable=SC2086  # one word each
        say "left behind: $(ps -o pid=,args= -p $left)" >&2
        # shellcheck disable=SC2086
        kill_all $left
        status=1
    fi
    rm -rf "$work"
    exit "$status"
}
trap cleanup EXIT
sshd=()

need_commands sshd ssh ssh-keygen
mkdir "$work/tmp"
export SSH_CONFIG=$work/ssh_config HOSTS=$work/hosts
printf '127.0.0.1\n127.0.0.2\n' >"$HOSTS"
for key in host_key user_key; do ssh-keygen -q -t ed25519 -N "" -C "" -f "$work/$key"; done
port=$(python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
sed "s|.*|[&]:$port $(cat "$work/host_key.pub")|" "$HOSTS" >"$work/known_hosts"
cat >"$SSH_CONFIG" <<END
Port $port
User $(id -un)
IdentityFile $work/user_key
IdentitiesOnly yes
UserKnownHostsFile $work/known_hosts
END
cat >"$work/sshd_config" <<END
Port $port
ListenAddress 127.0.0.1
ListenAddress 127.0.0.2
HostKey $work/host_key
AuthorizedKeysFile $work/user_key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
PidFile none
SetEnv TMPDIR=$work/tmp
END
"$(command -v sshd)" -D -e -f "$work/sshd_config" 2>"$work/sshd.log" &
sshd=($!)
until_true 10 "sshd" ssh -F "$SSH_CONFIG" 127.0.0.1 true 2>/dev/null
"$@"
