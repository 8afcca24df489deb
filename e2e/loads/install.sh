#!/bin/sh
# Puts the loads of compose/k6 into a folder, with what checks them: Node.js and npm's packages as package-lock.json pins them.
# Needs npm. Again: the loads only.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
cp "$here"/* "$here"/../../compose/k6/* .
pins=$(sha256sum <package-lock.json)
if [ "$(cat installed 2>/dev/null)" = "$pins" ]; then exit 0; fi
rm -f installed
# No package runs a script of its own.
npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2
ln -sfn node_modules/node-linux-*/bin/node node
echo "$pins" >installed
