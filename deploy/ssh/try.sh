#!/usr/bin/env bash
# Tries it for real, over an sshd of its own that plays two machines, 127.0.0.1 and 127.0.0.2: a training that outlives
# the ssh session that started it, whose workers and driver are killed and that goes on, and one over TLS. Each model must
# be that of an undisturbed training in threads, byte for byte.
# Usage: try.sh     installs what is missing (Debian packages only as root or with sudo); takes one to two minutes
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# ours: prints all processes behind sshd, drivers too; they have its folder in their environment
ours() { grep --text --files-with-matches --no-messages "DISTMF_TRY=$work" /proc/[0-9]*/environ | cut -d/ -f3 || true; }
sshd=
trap cleanup EXIT
trap 'exit 143' TERM INT
cleanup() {
    local status=$?
    [ "$status" = 0 ] || tail -n 30 "$work"/*.log >&2
    # shellcheck disable=SC2046  # one word each
    kill_all $sshd $(ours)
    rm -rf "$work"
}

# An sshd for this user, on loopback only, with keys of its own.
start_sshd() {
    [ "$(id -u)" != 0 ] || mkdir -p /run/sshd
    ssh-keygen -q -t ed25519 -N '' -f "$work/host_key"
    ssh-keygen -q -t ed25519 -N '' -f "$work/user_key"
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    cat >"$work/sshd_config" <<EOF
ListenAddress 127.0.0.1
ListenAddress 127.0.0.2
Port $port
HostKey $work/host_key
AuthorizedKeysFile $work/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
SetEnv DISTMF_TRY=$work
EOF
    printf "[127.0.0.%d]:$port $(cat "$work/host_key.pub")\n" 1 2 >"$work/known_hosts"
    cat >"$work/ssh_config" <<EOF
Host *
    Port $port
    IdentityFile $work/user_key
    UserKnownHostsFile $work/known_hosts
EOF
    "$(command -v sshd)" -D -f "$work/sshd_config" -E "$work/sshd.log" &
    sshd=$!
    until_true 10 "an answer of sshd" on_first true 2>"$work/ssh.log"
    say "sshd listens on port $port of 127.0.0.1 and 127.0.0.2"
}

on_first() { ssh -F "$work/ssh_config" -o BatchMode=yes 127.0.0.1 "$@"; }

# train LOG MODEL CHECKPOINT HOSTS WORKERS: as the README does, in an ssh session that has ended then; sets $driver
train() {
    driver=$(on_first "cd $work; nohup env ${DASK_CONFIG:+DASK_CONFIG=$DASK_CONFIG} $(command -v python3) \
        $deploy/ssh/over_ssh.py --hosts $4 --interface lo --workers $5 --ssh-config ssh_config \
        train blocks $2 --checkpoint $3 --resume ${options[*]} >$1 2>&1 </dev/null & echo \$!")
}
remote() { pgrep --full "distributed.cli.dask_spec" | grep -xFf <(ours) || true; }
workers() { for pid in $(remote); do pgrep --parent "$pid" --full spawn_main || true; done; }
has_workers() { [ "$(workers | wc -l)" = 2 ]; }
nothing_is_left() { [ -z "$(ours)" ]; }

train_and_kill() {
    local victim
    train first.log model checkpoint two-hosts 1
    until_true 60 "fifth epoch" has_logged "$work/first.log" '^epoch *5/'
    # shellcheck disable=SC2046  # one word each
    listens_on_loopback_only $(remote) $(workers)
    kill -HUP "$driver"  # a shell sends it to what it has started when its terminal is closed
    victim=$(workers | head -n 1)
    kill -KILL "$victim"
    until_true 30 "a new worker" has_workers
    until_true 60 "epochs with the new worker" has_logged "$work/first.log" '^epoch *20/'
    say "ended its session, killed a worker: another one is there, and the training goes on"

    kill -KILL "$driver" || fail "the driver ended before it could be killed"
    until_true 20 "end of what the driver left behind" nothing_is_left
    say "killed the driver: scheduler and workers have ended"

    train second.log model checkpoint two-hosts 1
    until_true 120 "end of the driver" has_no_process "$driver"
    has_logged "$work/second.log" '^going on after epoch' || fail "it began anew instead of going on"
    same_model "$work/model" "$work/reference"
    until_true 10 "end of scheduler and workers" nothing_is_left
    say "started it again: the same bytes as in threads without interruption, and nothing is left running"
}

# The machines that are there begin to start their workers, and must not keep them.
miss_a_machine() {
    train missing.log no-model no-checkpoint missing-host 1
    until_true 60 "end of the driver without a machine" has_no_process "$driver"
    has_logged "$work/missing.log" "no cluster on 127.0.0.1, 127.0.0.3: .*must work for each" || fail "does not say what is wrong"
    until_true 20 "end of the workers without a driver" nothing_is_left
    say "a machine is missing: it says so, and nothing is left running"
}

train_with_tls() {
    "$deploy/compose/make-certificates.sh" "$work/tls" 1 2>"$work/certificates.log"
    sed "s|/path/to/tls|$work/tls|g" "$deploy/tls.yaml" >"$work/dask.yaml"
    export DASK_CONFIG=$work/dask.yaml
    train tls.log tls-model tls-checkpoint one-host 2
    until_true 60 "fifth epoch with TLS" has_logged "$work/tls.log" '^epoch *5/'
    refuses_strangers
    until_true 120 "end of the driver" has_no_process "$driver"
    same_model "$work/tls-model" "$work/reference"
    until_true 10 "end of scheduler and workers" nothing_is_left
    say "trained with TLS: the same bytes again"
}

refuses_strangers() {
    local code='import sys, psutil
from distributed import Client
(pid,) = [p for p in map(int, sys.argv[1:]) if "distributed.Scheduler" in " ".join(psutil.Process(p).cmdline())]
ports = [c.laddr.port for c in psutil.Process(pid).net_connections() if c.status == "LISTEN"]
for port in ports:
    try:
        Client(f"tcp://127.0.0.1:{port}", timeout=2)
    except OSError:
        continue
    sys.exit(1)'
    # shellcheck disable=SC2046  # one word each
    env -u DASK_CONFIG python3 -c "$code" $(remote) >/dev/null 2>&1 || fail "the scheduler lets in who has no certificate"
}

need_commands sshd ssh ssh-keygen openssl
need_python asyncssh
small_blocks
options=(--rank 16 --epochs 50 --tol 0 --patience 0)
distmf train "$work/blocks" "$work/reference" --threads 2 "${options[@]}" -q >/dev/null
printf '127.0.0.%d\n' 1 >"$work/one-host"
printf '127.0.0.%d\n' 1 2 >"$work/two-hosts"
printf '127.0.0.%d\n' 1 3 >"$work/missing-host"
start_sshd
train_and_kill
miss_a_machine
train_with_tls
say "all is well"
