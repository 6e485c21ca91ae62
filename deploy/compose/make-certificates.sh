#!/usr/bin/env bash
# Makes a throw-away certificate authority, and one key pair for scheduler, workers and jobs to share.
# Usage: make-certificates.sh FOLDER [DAYS]     writes ca.pem, cert.pem and key.pem; the authority's own key is not kept
set -euo pipefail

folder=${1:?usage: make-certificates.sh FOLDER [DAYS]}
days=${2:-365}
new_key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

openssl req -x509 "${new_key[@]}" -days "$days" -subj "/CN=distmf throw-away authority" \
    -keyout "$work/ca-key.pem" -out "$work/ca.pem"
openssl req "${new_key[@]}" -subj "/CN=distmf" -keyout "$work/key.pem" -out "$work/request.pem"
openssl x509 -req -days "$days" -in "$work/request.pem" -CA "$work/ca.pem" -CAkey "$work/ca-key.pem" -CAcreateserial \
    -out "$work/cert.pem"

# Nobody else may enter the folder; the files themselves can be read, as the containers' user has another number.
mkdir -p "$folder"
chmod 700 "$folder"
install -m 644 "$work"/{ca,cert,key}.pem "$folder"
