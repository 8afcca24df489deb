#!/bin/sh
# Puts the snippets of docs/subscribe into a folder, with all that they need: Node.js and npm's packages as
# package-lock.json pins them, and a Python environment. Needs npm and python3 with venv. Again: nothing.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
cp "$here"/* "$here"/../../docs/subscribe/* .
pins=$(cat package-lock.json requirements.txt | sha256sum)
if [ "$(cat installed 2>/dev/null)" = "$pins" ]; then exit 0; fi
rm -f installed
# No package runs a script of its own.
npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2
ln -sfn node_modules/node-linux-*/bin/node node
python3 -m venv --clear python
python/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements.txt >&2
echo "$pins" >installed
