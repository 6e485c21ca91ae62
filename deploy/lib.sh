# shellcheck shell=bash
# What the scripts that try a deployment share. They source it first; it gives them a folder, "$work", that is removed
# when they end.
set -euo pipefail

deploy=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)

say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
fail() { say "failed: $*" >&2; exit 1; }

# until_true SECONDS WHAT COMMAND...: waits for a command to succeed
until_true() {
    local deadline=$((SECONDS + $1))
    until "${@:3}"; do
        [ "$SECONDS" -lt "$deadline" ] || fail "$2: not within $1 s"
        sleep 0.2
    done
}

# need_commands COMMAND...: installs the Debian packages of the tries if a command is missing
need_commands() {
    PATH=$PATH:/usr/sbin
    if ! command -v "$@" >/dev/null || [ "$(command -v "$@" | wc -l)" -lt $# ]; then
        "$deploy/install-debian.sh" >"$work/install.log" 2>&1 || fail "$(tail -n 3 "$work/install.log")"
        say "installed Debian packages"
    fi
}

# need_python MODULE...: goes on with the python on the PATH, or with a new environment if it lacks distmf or a module
need_python() {
    if ! python3 -c "import distmf ${*/#/, }" 2>/dev/null; then
        python3 -m venv "$work/venv"
        PATH=$work/venv/bin:$PATH
        pip install --quiet "$deploy/..[deploy]" >"$work/pip.log" 2>&1 || fail "$(tail -n 3 "$work/pip.log")"
        python3 -c "import distmf ${*/#/, }"
        say "installed distmf[deploy] in an environment of its own"
    fi
}

# kill_all PID...: ends processes, and waits until they are gone
kill_all() {
    kill "$@" 2>/dev/null || true
    for _ in {1..50}; do
        kill -0 "$@" 2>/dev/null || return 0
        sleep 0.2
    done
    kill -KILL "$@" 2>/dev/null || true
}

has_no_process() { ! kill -0 "$1" 2>/dev/null; }

# has_logged FILE PATTERN
has_logged() { grep -qs "$2" "$1"; }

# listens_on_loopback_only PID...: of these processes one at least must listen, and none on more than 127.0.0.1
listens_on_loopback_only() {
    local code='import sys, psutil
sockets = [c for pid in sys.argv[1:] for c in psutil.Process(int(pid)).net_connections() if c.status == "LISTEN"]
print(*(f"{c.laddr.ip}:{c.laddr.port}" for c in sockets))
sys.exit(not sockets or any(c.laddr.ip != "127.0.0.1" for c in sockets))'
    python3 -c "$code" "$@" >"$work/sockets" || fail "listens on more than 127.0.0.1, or on nothing: $(cat "$work/sockets")"
    say "scheduler and workers listen on $(wc -w <"$work/sockets") ports of 127.0.0.1 only"
}

# small_blocks: makes "$work/blocks", of planted ratings
small_blocks() {
    python3 -c "import sys, distmf; distmf.datasets.planted_ratings(sys.argv[1], 300_000, 3_000, 1_000)" "$work/ratings"
    distmf block "$work/ratings" "$work/blocks" --grid 4x4 --holdout 0.1 -q >/dev/null
}

# same_model MODEL OTHER: they must be the same, byte for byte
same_model() { diff -r --exclude run.json "$1" "$2" >&2 || fail "the models $1 and $2 differ"; }
