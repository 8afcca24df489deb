#!/bin/bash
# Formats Kafka's storage if nobody has, then runs the broker: the programs of the image, with the settings of `cargo stack`.
set -euo pipefail
settings=/run/secrets/kafka-server.properties
if [ ! -e /var/lib/kafka/data/logs/meta.properties ]; then
    /opt/kafka/bin/kafka-storage.sh format --standalone -t "$(/opt/kafka/bin/kafka-storage.sh random-uuid)" -c "$settings"
fi
exec /opt/kafka/bin/kafka-server-start.sh "$settings"
