#!/bin/bash
# shellcheck disable=SC2086 # options
exec java -Xmx128m ${KAFKA_LOG4J_OPTS:-} -cp '/opt/kafka/libs/*' kafka.tools.StorageTool "$@"
