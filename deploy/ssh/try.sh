#!/usr/bin/env bash
# Tries it for real, over an sshd of its own on this machine: a training whose workers and driver are killed and that goes
# on, and one over TLS. Each model must be that of an undisturbed training in threads, byte for byte.
# Usage: try.sh     installs what is missing (Debian packages only as root or with sudo); takes about a minute
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# All processes of this try, here and behind sshd, have its folder in their environment.
ours() { grep --text --files-with-matches --no-messages "DISTMF_TRY=$work" /proc/[0-9]*/environ | cut -d/ -f3 | grep -vx "$$" || true; }
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

# An sshd for this user on a port of 127.0.0.1, with keys of its own.
start_sshd() {
    [ "$(id -u)" != 0 ] || mkdir -p /run/sshd
    ssh-keygen -q -t ed25519 -N '' -f "$work/host_key"
    ssh-keygen -q -t ed25519 -N '' -f "$work/user_key"
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    cat >"$work/sshd_config" <<EOF
ListenAddress 127.0.0.1
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
    echo "[127.0.0.1]:$port $(cat "$work/host_key.pub")" >"$work/known_hosts"
    cat >"$work/ssh_config" <<EOF
Host *
    Port $port
    IdentityFile $work/user_key
    UserKnownHostsFile $work/known_hosts
EOF
    DISTMF_TRY=$work "$(command -v sshd)" -D -f "$work/sshd_config" -E "$work/sshd.log" &
    sshd=$!
    until_true 10 "an answer of sshd" ssh -F "$work/ssh_config" -o BatchMode=yes 127.0.0.1 true 2>"$work/ssh.log"
    say "sshd listens on port $port of 127.0.0.1"
}

# train LOG MODEL CHECKPOINT: in the background; sets $driver
train() {
    DISTMF_TRY=$work python3 "$deploy/ssh/over_ssh.py" --hosts "$work/hosts" --interface lo --workers 2 \
        --ssh-config "$work/ssh_config" train "$work/blocks" "$work/$2" --checkpoint "$work/$3" --resume \
        "${options[@]}" >"$work/$1" 2>&1 &
    driver=$!
}
has_logged() { grep -qs "$2" "$work/$1"; }
remote() { pgrep --full "distributed.cli.dask_spec" | grep -xFf <(ours) || true; }
workers() { for pid in $(remote); do pgrep --parent "$pid" --full spawn_main || true; done; }
has_workers() { [ "$(workers | wc -l)" = 2 ]; }
nothing_remote() { [ -z "$(remote)" ]; }

train_and_kill() {
    local victim
    train first.log model checkpoint
    until_true 60 "tenth epoch" has_logged first.log '^epoch *10/'
    listens_on_loopback_only
    victim=$(workers | head -n 1)
    kill -KILL "$victim"
    until_true 30 "a new worker" has_workers
    until_true 60 "epochs with the new worker" has_logged first.log '^epoch *40/'
    say "killed a worker: another one is there, and the training goes on"

    kill -KILL "$driver" || fail "the driver ended before it could be killed"
    wait "$driver" 2>/dev/null || true
    until_true 20 "end of what the driver left behind" nothing_remote
    say "killed the driver: scheduler and workers have ended"

    train second.log model checkpoint
    wait "$driver" || fail "exit code $?"
    has_logged second.log '^going on after epoch' || fail "it began anew instead of going on"
    same_model "$work/model" "$work/reference"
    until_true 10 "end of scheduler and workers" nothing_remote
    say "started it again: the same bytes as in threads without interruption, and nothing is left running"
}

listens_on_loopback_only() {
    local code='import sys, psutil
sockets = [c for pid in sys.argv[1:] for c in psutil.Process(int(pid)).net_connections() if c.status == "LISTEN"]
sys.exit(not sockets or any(c.laddr.ip != "127.0.0.1" for c in sockets))'
    # shellcheck disable=SC2046  # one word each
    python3 -c "$code" $(remote) $(workers) || fail "scheduler or workers listen on more than 127.0.0.1"
}

train_with_tls() {
    "$deploy/compose/make-certificates.sh" "$work/tls" 1 2>"$work/certificates.log"
    sed "s|/path/to/tls|$work/tls|g" "$deploy/slurm/tls.yaml" >"$work/dask.yaml"
    export DASK_CONFIG=$work/dask.yaml
    train tls.log tls-model tls-checkpoint
    until_true 60 "tenth epoch with TLS" has_logged tls.log '^epoch *10/'
    refuses_strangers
    wait "$driver" || fail "exit code $?"
    same_model "$work/tls-model" "$work/reference"
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
options=(--rank 16 --epochs 150 --tol 0)
distmf train "$work/blocks" "$work/reference" --threads 2 "${options[@]}" -q >/dev/null
echo 127.0.0.1 >"$work/hosts"
start_sshd
train_and_kill
train_with_tls
say "all is well"
