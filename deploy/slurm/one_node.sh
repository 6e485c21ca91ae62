#!/usr/bin/env bash
# Runs a command beside a Slurm of this one machine, which ends with the command: to try things, not to compute on.
# Usage: one_node.sh COMMAND [ARGUMENT]...     for example: one_node.sh bash
#
# Needs the Debian packages slurm-wlm and munge; neither root nor systemd. Everything lies in a folder of its own, with
# the command's temporary files, and is removed in the end, as are jobs and processes, also after Ctrl-C and SIGTERM.
# The daemons listen on 127.0.0.1 only. The node pretends to have 8 CPUs, so that more tasks than cores can be tried.
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
daemons=()
command=()

# ours: prints the processes that belong to this Slurm
ours() { grep -lzx "SLURM_CONF=$work/slurm.conf" /proc/[0-9]*/environ 2>/dev/null | cut -d / -f 3 || true; }
has_no_jobs() { [ -z "$(squeue --noheader)" ]; }

cleanup() {
    local status=$? left
    trap - EXIT
    trap '' INT TERM
    kill_all "${command[@]}"
    if [ "${#daemons[@]}" = 3 ]; then
        scancel --quiet --user="$(id -u)"
        (until_true 30 "end of the jobs" has_no_jobs) || status=1
    fi
    kill_all "${daemons[@]}"
    export -n SLURM_CONF  # what is called from here on is not part of it
    left=$(ours)
    if [ -n "$left" ]; then
        # shellcheck disable=SC2086  # one word each
        say "left behind: $(ps -o pid=,args= -p $left)" >&2
        # shellcheck disable=SC2086
        kill_all $left
        [ "$status" != 0 ] || status=1
    fi
    rm -rf "$work"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

two_free_ports() {
    python3 -c 'import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in sockets))'
}

# The machine's cgroups are left alone. A job that is requeued waits as long as credentials are valid: not two minutes.
configure() {
    local ports
    read -ra ports < <(two_free_ports)
    mkdir -p "$work"/{state,spool}
    cat >"$work/slurm.conf" <<EOF
ClusterName=one
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmdPort=${ports[1]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$work/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
SlurmdParameters=config_overrides
KillWait=5
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=8 RealMemory=8192
PartitionName=all Nodes=ALL Default=YES
EOF
}

# start NAME COMMAND...: a daemon, out of reach of Ctrl-C; its output is shown if Slurm does not come up
start() {
    setsid "${@:2}" >"$work/$1.out" 2>&1 &
    daemons+=($!)
}
is_idle() { [ "$(sinfo --noheader --format %T 2>/dev/null)" = idle ]; }

need_commands munged slurmctld slurmd
configure
(umask 077 && head -c 1024 /dev/urandom >"$work/munge.key")
# --force: the folder is closed to others, which is what is wanted when all daemons are of one user.
start munged munged --foreground --force --key-file="$work/munge.key" --socket="$work/munge.socket" \
    --pid-file="$work/munged.pid" --log-file="$work/munged.log" --seed-file="$work/munge.seed"
until_true 10 "socket of munged" test -S "$work/munge.socket"
export SLURM_CONF=$work/slurm.conf
start slurmctld slurmctld -D
start slurmd slurmd -D
if ! (until_true 30 "an idle node" is_idle); then
    tail -n 20 "$work"/{munged,slurmctld,slurmd}.out >&2
    exit 1
fi
# Not in the foreground, where the shell would hear of a signal only when the command ends.
mkdir "$work/tmp"
TMPDIR=$work/tmp env --default-signal=INT,QUIT "$@" <&0 &
command=($!)
wait "${command[0]}"
