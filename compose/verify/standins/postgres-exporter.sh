#!/bin/bash
# Debian's is older than the tag of compose.yaml: a collector that it does not know, it does not have, and need not turn off.
set -euo pipefail
known=$(prometheus-postgres-exporter --help 2>&1)
arguments=()
for argument in "$@"; do
    case $argument in
    --no-collector.*) grep -qF "collector.${argument#--no-collector.}" <<<"$known" || continue ;;
    esac
    arguments+=("$argument")
done
exec prometheus-postgres-exporter "${arguments[@]}"
