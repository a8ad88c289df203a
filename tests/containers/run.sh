#!/usr/bin/env bash
# make test-containers: a Docker daemon and images where there are none, then the tests that need them.
set -euo pipefail
cd "$(dirname "$0")/../.."
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
own=

install() {
    command -v apt-get >/dev/null && $sudo true || {
        echo "$1 is missing, and apt-get or root to install it with: install it yourself" >&2
        exit 1
    }
    echo "installing $1 ..."
    $sudo apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

stop() {
    [ -z "$own" ] || { $sudo kill "$own" && tail --pid="$own" -f /dev/null; }
}

if ! docker info >/dev/null 2>&1; then
    command -v dockerd >/dev/null || install docker.io
    echo "starting a Docker daemon ..."
    log=$(mktemp)
    $sudo sh -c 'echo $$ >"$1.pid"; exec dockerd --group "$2" >"$1" 2>&1' sh "$log" "$(id -gn)" &
    for _ in $(seq 120); do
        docker info >/dev/null 2>&1 && break
        sleep 0.5
    done
    own=$(cat "$log.pid")
    trap stop EXIT
    docker info >/dev/null || { tail -20 "$log" >&2; exit 1; }
fi
docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || install docker-compose

base=$($sudo tests/containers/images.sh)

# build TAG ARGUMENT...: our own image
build() {
    echo "building $1 ..."
    log=$(mktemp)
    docker build -f compose/Dockerfile --build-arg BASE="$base" -t "$@" . >"$log" 2>&1 || { tail -30 "$log" >&2; exit 1; }
    rm "$log"
}
build streamkm:0.1.0
build streamkm:files --target files

# Ryuk, which cleans up after a test run that was killed, is one more image to pull.
docker image inspect testcontainers/ryuk:0.8.1 >/dev/null 2>&1 || export TESTCONTAINERS_RYUK_DISABLED=true
exact="killed_twice or committed_records_only"
STREAMKM_TEST_BROKER=docker .venv/bin/python -m pytest tests/containers tests/test_end_to_end.py -k "containers or $exact" "$@"
