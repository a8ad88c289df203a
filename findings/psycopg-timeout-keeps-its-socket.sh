#!/usr/bin/env bash
# psycopg.connect() that runs into its connect_timeout raises ConnectionTimeout and leaves its TCP connection open until
# Python's garbage collector comes by: the error, its traceback and the half-made connection hold one another.
# A PostgreSQL that such a client has reached keeps a process for it, and waits for it when it is shut down "smart", for
# as long as its authentication_timeout (60 s).
#
# seen, with psycopg 3.3.9 (binary), Python 3.11:
#   raised ConnectionTimeout
#   connection closed after the error was dropped: False
#   connection closed after gc.collect(): True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'psycopg[binary]==3.3.9'
"$folder/venv/bin/python" - <<'PYTHON' | tee "$folder/out"
import gc
import socket
import sys

import psycopg

print("psycopg", psycopg.__version__, psycopg.pq.__impl__, "on Python", sys.version.split()[0])
gc.disable()  # as if none were due: when it comes by itself is luck
server = socket.create_server(("127.0.0.1", 0))  # takes connections, and says nothing
where = f"host=127.0.0.1 port={server.getsockname()[1]} dbname=x user=x sslmode=disable gssencmode=disable"


def attempt() -> None:
    try:
        psycopg.connect(where, connect_timeout=2)
    except psycopg.errors.ConnectionTimeout as error:
        print("raised", type(error).__name__)


def closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(1000):
            pass
    except TimeoutError:
        return False
    return True


attempt()
connection, _ = server.accept()
connection.settimeout(3)
print("connection closed after the error was dropped:", closed(connection))
gc.collect()
print("connection closed after gc.collect():", closed(connection))
PYTHON
grep -qx "raised ConnectionTimeout" "$folder/out"
grep -qx "connection closed after the error was dropped: False" "$folder/out"
grep -qx "connection closed after gc.collect(): True" "$folder/out"
