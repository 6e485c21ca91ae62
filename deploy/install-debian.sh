#!/usr/bin/env bash
# Installs the Debian packages that the tests marked `deploy` need, and those of reports. Run as root, or where sudo asks for
# no password.
set -euo pipefail

packages=(
    openssl
    chromium  # tests/test_report.py
    aardvark-dns conmon debootstrap iptables netavark podman runc  # compose/
    munge slurm-wlm  # slurm/
    openssh-client openssh-server  # ssh/
)
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo --non-interactive)

# Debian starts a service when it installs it. None is wanted here: the tests run daemons of their own.
if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" install -m 755 /dev/stdin /usr/sbin/policy-rc.d
    trap '"${as_root[@]}" rm -f /usr/sbin/policy-rc.d' EXIT
fi
apt_get=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300)
"${apt_get[@]}" update
"${apt_get[@]}" install --yes --no-install-recommends "${packages[@]}"
