#!/bin/bash
# Formats Kafka's storage if nobody has, then runs the broker: the programs of the image, with the settings of `cargo stack`, and
# with the exporter of its metrics where the profile `observe` has put one.
set -euo pipefail
settings=/run/secrets/kafka-server.properties
if [ ! -e /var/lib/kafka/data/logs/meta.properties ]; then
    /opt/kafka/bin/kafka-storage.sh format --standalone -t "$(/opt/kafka/bin/kafka-storage.sh random-uuid)" -c "$settings"
fi
agent=$(find /opt/coro/agent -name '*.jar' | head -n 1)
if [ -n "$agent" ]; then export KAFKA_OPTS="-javaagent:$agent=9404:/opt/coro/metrics.yml"; fi
exec /opt/kafka/bin/kafka-server-start.sh "$settings"
