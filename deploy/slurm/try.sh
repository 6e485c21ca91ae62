#!/usr/bin/env bash
# Tries it for real, on a Slurm of this one machine: a job that is killed in every way and goes on, with TLS at last, and
# workers that are jobs of their own. Each model must be that of an undisturbed training in threads, byte for byte.
# Usage: try.sh     installs what is missing (Debian packages only as root or with sudo); takes two to four minutes
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ "${1:-}" = --beside-slurm ] || exec "$here/one_node.sh" "$here/try.sh" --beside-slurm
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$here/../lib.sh"

cleanup() {
    local status=$?
    [ "$status" = 0 ] || tail -n 30 "$work"/job/*.log >&2
    # shellcheck disable=SC2046  # one word each
    kill_all $(jobs -p)
}
trap cleanup EXIT

options=(--rank 16 --epochs 40 --tol 0 --patience 0)
export SLURM_WAIT=3

# submit ARGUMENT...: sets $job
submit() {
    job=$(sbatch --parsable --ntasks=4 --mem-per-cpu=500M --output=train.log distmf.sbatch "$@")
}
field() { scontrol --oneliner show job "$job" | grep -oP "(?<= $1=)\S+"; }
is() { [ "$(field "$1")" = "$2" ]; }
has_ended() { [[ $(field JobState) =~ ^(COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL)$ ]]; }
goes_on() { [ "$(grep -c '^going on after epoch' train.log)" = "$1" ]; }

# goes_on_requeued TIMES
goes_on_requeued() {
    until_true 60 "requeueing, restart $1" is Restarts "$1"
    until_true 120 "going on, restart $1" goes_on "$1"
}

# pids_of_tasks [TASK]: of the job's srun, and of one task only: 0 is the scheduler, 1 the driver
pids_of_tasks() { scontrol listpids "$job.0" | awk -v task="${1:-}" '$5 ~ /^[0-9]+$/ && (task == "" || $5 == task) {print $1}'; }

# Once each: a killed driver, a job whose time is nearly over, a job that is cancelled and submitted again.
train_and_kill() {
    local pid
    submit train "$work/blocks" model --checkpoint checkpoint "${options[@]}"
    until_true 120 "fifth epoch" has_logged train.log '^epoch *5/'
    # shellcheck disable=SC2046  # one word each
    listens_on_loopback_only $(pids_of_tasks)
    pid=$(pids_of_tasks 1)
    kill -KILL "$pid" || fail "the driver ended before it could be killed"
    goes_on_requeued 1
    say "killed the driver: Slurm requeued the job, and it goes on"

    scancel --batch --signal=USR1 "$job"
    goes_on_requeued 2
    say "sent the signal of a time that is nearly over: it goes on"

    scancel "$job"
    until_true 120 "end of the cancelled job" has_ended
    is JobState CANCELLED || fail "a cancelled job is $(field JobState)"
    use_tls
    submit train "$work/blocks" model --checkpoint checkpoint "${options[@]}"
    until_true 120 "going on after the job was cancelled" goes_on 3
    grep -q '"address": "tls://' "distmf-scheduler-$job.json" || fail "the scheduler's address is not tls://"
    until_true 300 "end of the job" has_ended
    is JobState COMPLETED || fail "the job $(field JobState)"
    [ "$(grep -c '^epoch *1/' train.log)" = 1 ] || fail "it began anew instead of going on"
    same_model model "$work/reference"
    say "cancelled the job and submitted it again, with TLS: the same bytes as in threads without interruption"
}

# From here on, for all.
use_tls() {
    "$deploy/compose/make-certificates.sh" "$work/tls" 1 2>certificates.log || fail "$(tail -n 3 certificates.log)"
    sed "s|/path/to/tls|$work/tls|g" "$deploy/tls.yaml" >dask.yaml
    export DASK_CONFIG=$PWD/dask.yaml
}

hand_on_exit_codes() {
    submit train "$work/nowhere" model --checkpoint elsewhere
    until_true 120 "end of a job that cannot work" has_ended
    [ "$(field ExitCode) $(field Restarts)" = "1:0 0" ] || fail "exit code $(field ExitCode), restarts $(field Restarts)"
    say "a job that cannot work ends with exit code 1, and is not repeated"
}

# All workers are lost on the way, and replaced.
train_from_login_node() {
    python3 "$here/login_node.py" --interface lo --jobs 2 --memory 500MiB \
        train "$work/blocks" model-of-jobs --checkpoint checkpoint-of-jobs --resume "${options[@]}" >login_node.log 2>&1 &
    local driver=$!
    until_true 120 "fifth epoch of the driver on the login node" has_logged login_node.log '^epoch *5/'
    squeue --noheader --format=%i | xargs scancel --full --signal=KILL
    [ ! -e model-of-jobs ] || fail "the training ended before its workers could be killed"
    say "killed the jobs of all workers"
    until_true 300 "end of the driver on the login node" has_no_process "$driver"
    wait "$driver" || fail "the driver on the login node: exit code $?"
    same_model model-of-jobs "$work/reference"
    until_true 60 "end of the workers' jobs" has_no_jobs
    say "trained from the login node, with new workers: the same bytes again"
}
has_no_jobs() { [ -z "$(squeue --noheader)" ]; }

need_commands sbatch openssl
need_python dask_jobqueue
small_blocks
distmf train "$work/blocks" "$work/reference" --threads 2 "${options[@]}" -q >/dev/null
mkdir "$work/job"
cd "$work/job"
cp "$here"/{distmf.sbatch,runner.py} .
train_and_kill
hand_on_exit_codes
train_from_login_node
say "all is well"
