#!/usr/bin/env bash
# Installs the Debian packages that the tests marked `deploy` need. Run as root.
set -euo pipefail

packages=(
    aardvark-dns  # names of containers
    conmon
    debootstrap  # makes the base image, as no image registry is needed then
    iptables
    netavark  # networks of containers
    openssl
    podman
    runc
)
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends "${packages[@]}"
