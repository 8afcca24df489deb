#!/bin/sh
# Writes the dashboards of Coro: `generate.sh FOLDER DASHBOARDS`. FOLDER gets npm's packages, as package-lock.json pins them.
# In this repository: compose/grafana/generate/generate.sh target/dashboards compose/grafana/dashboards
# Needs npm.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1" "$2"
dashboards=$(cd "$2" && pwd)
cd "$1"
cp "$here"/* .
pins=$(sha256sum <package-lock.json)
if [ "$(cat installed 2>/dev/null)" != "$pins" ]; then
  rm -f installed
  # No package runs a script of its own.
  npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2
  echo "$pins" >installed
fi
node generate.mjs "$dashboards"
