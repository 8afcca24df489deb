#!/bin/bash
# shellcheck disable=SC2086 # options
exec java ${KAFKA_OPTS:-} $KAFKA_HEAP_OPTS $KAFKA_JVM_PERFORMANCE_OPTS $KAFKA_LOG4J_OPTS -cp '/opt/kafka/libs/*' kafka.Kafka "$@"
