#!/bin/bash
# As the official image's, as far as compose.yaml relies on it: makes the cluster at the first start.
set -euo pipefail
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    mkdir -p "$PGDATA"
    read -ra arguments <<<"${POSTGRES_INITDB_ARGS:-}"
    initdb --username=postgres --pwfile="$POSTGRES_PASSWORD_FILE" "${arguments[@]}" >/dev/null
fi
exec "$@"
