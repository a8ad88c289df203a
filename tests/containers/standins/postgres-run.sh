#!/bin/bash
# As the image postgres does: a cluster with its user, password and database, made once; then the server.
set -euo pipefail
data=${PGDATA:-/var/lib/postgresql/data}
if [ ! -s "$data/PG_VERSION" ]; then
    password=${POSTGRES_PASSWORD:-$(cat "${POSTGRES_PASSWORD_FILE:-/dev/null}")}
    [ -n "$password" ] || { echo "POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE has to be set" >&2; exit 1; }
    initdb --pgdata "$data" --username "${POSTGRES_USER:-postgres}" --pwfile <(echo "$password") \
        --auth-local trust --auth-host scram-sha-256 --encoding UTF8 --locale C.UTF-8 >/dev/null
    echo "host all all all scram-sha-256" >>"$data/pg_hba.conf"
    # Only on its socket, so that nobody takes it for ready.
    pg_ctl --pgdata "$data" --wait --silent -o "-c listen_addresses=" start
    [ "${POSTGRES_DB:-postgres}" = postgres ] || createdb --username "${POSTGRES_USER:-postgres}" "$POSTGRES_DB"
    pg_ctl --pgdata "$data" --wait --silent stop
fi
exec postgres -D "$data" -c "listen_addresses=*" "$@"
