#!/bin/sh
# Puts what drives a browser into a folder: Node.js and npm's packages as package-lock.json pins them. Needs npm; the browser is
# the distribution's. Again: the scripts only.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
cp "$here"/* .
pins=$(sha256sum <package-lock.json)
if [ "$(cat installed 2>/dev/null)" = "$pins" ]; then exit 0; fi
rm -f installed
# No package runs a script of its own.
npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2
ln -sfn node_modules/node-linux-*/bin/node node
echo "$pins" >installed
