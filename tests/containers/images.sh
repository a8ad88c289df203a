#!/usr/bin/env bash
# Has the images that the compose file and the fixtures name: pulled, or made here where no registry can be reached.
# Made from a Debian root (debootstrap), the Kafka that streamkm.broker downloads, its Java, and Debian's packages.
# Run as root, beside a Docker daemon. Prints the base for our own image.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
made=streamkm-test/base:bookworm
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The default of a variable in a line such as: image: ${KAFKA_IMAGE:-apache/kafka:4.1.1}
named() { sed -n "s/.*\${$1:-\([^}]*\)}.*/\1/p" "$root/compose/docker-compose.yml" | head -1; }
there() { docker image inspect "$1" >/dev/null 2>&1 || timeout 300 docker pull --quiet "$1" >/dev/null 2>&1; }

base() {
    docker image inspect "$made" >/dev/null 2>&1 && return
    command -v debootstrap >/dev/null || apt-get install -y -qq --no-install-recommends debootstrap >/dev/null
    # The same mirror as this machine has.
    mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/debian.* 2>/dev/null || true; } |
        sed -nE 's/^(URIs:|deb( \[.*\])?) *(https?:[^ ]*\/debian)\/? *.*/\3/p' | head -1)
    echo "making a Debian root ..." >&2
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/root" \
        "${mirror:-http://deb.debian.org/debian}" >"$work/log" 2>&1 || { tail -20 "$work/log" >&2; exit 1; }
    # Who looks into encrypted connections here is trusted in there too.
    cp /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/ca-certificates.crt"
    rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/* \
        "$work"/root/usr/share/{doc,man,locale}
    tar -C "$work/root" -c . | docker import --change "ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt" \
        --change "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt" --change 'CMD ["bash"]' - "$made" >/dev/null
    rm -rf "$work/root"
}

# standin NAME TAG: build it from a folder that holds what its Dockerfile copies.
standin() {
    echo "$2 cannot be pulled, so one is made" >&2
    mkdir -p "$work/$1"
    [ ! -e "$here/standins/$1-run.sh" ] || install -m 755 "$here/standins/$1-run.sh" "$work/$1/run"
    docker build --build-arg BASE="$made" -f "$here/standins/$1.Dockerfile" -t "$2" "$work/$1" >"$work/log" 2>&1 ||
        { tail -30 "$work/log" >&2; exit 1; }
}

kafka=$(named KAFKA_IMAGE) postgres=$(named POSTGRES_IMAGE) prometheus=$(named PROMETHEUS_IMAGE)
python=$(sed -n 's/^ARG BASE=//p' "$root/compose/Dockerfile")
if there "$python"; then
    echo "$python"
else
    base
    echo "$made"
fi
there "$kafka" || {
    base
    mkdir -p "$work/kafka/jars"
    "$root/.venv/bin/python" "$here/kafka_files.py" "$work/kafka"
    cp "$here/standins/log4j2.properties" "$work/kafka"
    standin kafka "$kafka"
}
there "$postgres" || { base && standin postgres "$postgres"; }
there "$prometheus" || { base && standin prometheus "$prometheus"; }
