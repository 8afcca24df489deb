#!/bin/sh
# Makes the types of both languages of openapi.yaml, by their own generators, as docs/PAY.md says it. Run beside it.
set -eu
./node node_modules/.bin/openapi-typescript openapi.yaml --output coro.ts >&2
python/bin/datamodel-codegen --input openapi.yaml --input-file-type openapi --output coro.py \
  --output-model-type pydantic_v2.BaseModel --enum-field-as-literal all --collapse-root-models --target-python-version 3.11 \
  --disable-timestamp
