#!/bin/sh
# Puts tools of tests into a folder: `install.sh TOOLS FOLDER [FROM…]`. TOOLS is a folder beside this file. It is copied, with the
# files FROM, or those in folders FROM. What it pins is installed there: Node.js and npm's packages by package-lock.json; where it
# has requirements.txt, a Python environment too. Needs npm, and Python 3.11 or newer with venv for the latter. Again: the files
# only.
set -eu
tools=$(cd "$(dirname "$0")" && pwd)/$1
folder=$2
shift 2
mkdir -p "$folder"
cp "$tools"/* "$folder"
for from in "$@"; do
  if [ -d "$from" ]; then cp "$from"/* "$folder"; else cp "$from" "$folder"; fi
done
cd "$folder"
pins=$(cat package-lock.json requirements.txt 2>/dev/null | sha256sum)
if [ "$(cat installed 2>/dev/null)" = "$pins" ]; then exit 0; fi
rm -f installed
# No package runs a script of its own.
npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2
ln -sfn node_modules/node-linux-*/bin/node node
if [ -e requirements.txt ]; then
  python3 -m venv --clear python
  # Where one requirement has a hash, all must have one, and it is compared.
  python/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements.txt >&2
fi
echo "$pins" >installed
