#!/bin/sh
# Puts the snippets of docs/pay into a folder, with all that they need: Node.js and npm's packages as package-lock.json pins
# them, a Python environment as requirements.txt does, and the types that both languages' own generators make of openapi.yaml.
# Needs npm, and Python 3.11 or newer with venv. Again: the snippets and the types only.
#
# requirements.txt is made of requirements.in: uv pip compile --universal --python-version 3.11 --generate-hashes
# --no-annotate --no-header requirements.in -o requirements.txt
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
cp "$here"/* "$here"/../../docs/pay/* "$here"/../../docs/openapi.yaml .
pins=$(cat package-lock.json requirements.txt | sha256sum)
if [ "$(cat installed 2>/dev/null)" != "$pins" ]; then
  rm -f installed
  # No package runs a script of its own.
  npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2
  ln -sfn node_modules/node-linux-*/bin/node node
  python3 -m venv --clear python
  python/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.txt >&2
  echo "$pins" >installed
fi
# As docs/PAY.md says them.
./node node_modules/.bin/openapi-typescript openapi.yaml --output coro.ts >&2
python/bin/datamodel-codegen --input openapi.yaml --input-file-type openapi --output coro.py \
  --output-model-type pydantic_v2.BaseModel --enum-field-as-literal all --collapse-root-models --target-python-version 3.11 \
  --disable-timestamp
