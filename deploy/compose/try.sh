#!/usr/bin/env bash
# Tries it for real and removes everything again: builds the image on a base made of Debian packages, trains on a cluster
# of containers, plain and with TLS, kills a worker and the training on the way, and compares each model with one that
# was trained outside. Takes a few minutes.
# Usage: try.sh     as root, with the packages of ../install-debian.sh, and `pip install '.[deploy]'` on the PATH
#
# podman gets a storage and a network namespace of its own, so that nothing here meets what exists already.
set -euo pipefail
cd "$(dirname "$0")"
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
    [ ! -e /etc/ssl/certs/ca-certificates.crt ] || secrets+=(--secret "id=ca.crt,src=/etc/ssl/certs/ca-certificates.crt")
    # In the namespace of the machine, as pip needs an index.
    timeout 900 podman build --quiet --network host "${secrets[@]}" --build-arg BASE=localhost/base \
        --file Dockerfile --tag distmf ../.. >/dev/null
    say "built the image, $(podman 10 image inspect --format '{{.Size}}' distmf) bytes"
    [ "$(podman 60 run --rm --network none distmf sh -c 'id -u; cat /etc/pip.conf 2>/dev/null')" = 1000 ] ||
        fail "the image runs as root, or holds the pip.conf of the build"
}

compose() { timeout 300 docker-compose --progress quiet "${files[@]}" "$@"; }
pid_of() { podman 10 inspect --format '{{.State.Pid}}' "$1"; }
# has_logged CONTAINER PATTERN: podman's own log, of all runs of the container
has_logged() { podman 10 logs "$1" 2>&1 | grep -E "$2" >/dev/null; }
has_state() { [ "$(podman 10 inspect --format '{{.State.Status}} {{.State.ExitCode}}' "$1")" = "$2" ]; }
is_another_than() { ! has_state "$1" "exited 137" && [ "$(pid_of "$1")" != "$2" ] && [ "$(pid_of "$1")" != 0 ]; }

# kill_process CONTAINER: as the kernel does when memory is short; its restart policy has to bring it back
kill_process() {
    local pid
    pid=$(pid_of "$1")
    kill -KILL "$pid"
    until_true 60 is_another_than "$1" "$pid"
}

# train_and_compare FILES...: with these compose files
train_and_compare() {
    files=("${@/#/--file=}")
    local data
    compose up --detach --no-build train
    data=$(podman 10 volume inspect --format '{{.Mountpoint}}' distmf_data)
    [ -e "$work/outside" ] || timeout 300 distmf train "$data/blocks" "$work/outside" --threads 2 -q "${options[@]}"
    until_true 120 has_logged distmf-train-1 'epoch +3/'
    kill_process distmf-worker-1
    say "killed a worker; it is back"
    until_true 120 has_logged distmf-train-1 'epoch +15/'
    kill_process distmf-train-1
    say "killed the training; it is back"
    until_true 300 has_state distmf-train-1 "exited 0"
    [ "$(podman 10 logs distmf-train-1 2>&1 | grep -cE 'epoch +1/')" = 1 ] || fail "it began anew instead of resuming"
    diff -r "$data/model" "$work/outside" || fail "the models differ"
    say "trained: the same bytes as outside ($*)"
}

refuses_strangers() {
    local code="from distributed import Client; Client('$1', timeout=5)"
    ! podman 60 exec distmf-worker-1 python -c "$code" >/dev/null 2>&1 || fail "$1 lets in who has no certificate"
    say "$1 is closed without a certificate"
}

trap cleanup EXIT
start_podman
build
python3 -c "import sys, distmf; distmf.datasets.planted_ratings(sys.argv[1], 300_000, 3_000, 1_000)" "$work/ratings"

options=(--rank 16 --epochs 40 --tol 0)
export RATINGS=$work/ratings CERTIFICATES=$work/certificates
export BLOCK_OPTIONS="--grid 4x4 --holdout 0.1" TRAIN_OPTIONS="${options[*]} --checkpoint-every 1"

train_and_compare compose.yaml
compose down --volumes --timeout 5

./make-certificates.sh "$CERTIFICATES" 2>/dev/null
train_and_compare compose.yaml compose.tls.yaml
refuses_strangers tcp://scheduler:8786
refuses_strangers tls://scheduler:8786
compose down --volumes --timeout 5
say "all is well"
