#!/bin/sh
# Copies the compiled kernels to a writable folder, and executes streamkm.
if [ ! -d "$NUMBA_CACHE_DIR" ]; then
    if ! cp -R /opt/streamkm/kernels "$NUMBA_CACHE_DIR.$$" 2>/dev/null || ! mv "$NUMBA_CACHE_DIR.$$" "$NUMBA_CACHE_DIR"; then
        echo "streamkm: ${NUMBA_CACHE_DIR%/*} cannot be written; on a read-only root give it: --tmpfs /tmp" >&2
    fi
fi
exec streamkm "$@"
