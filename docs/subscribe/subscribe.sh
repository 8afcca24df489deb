# Everything from the first event on, as a member of a group; another run goes on where this one ended.
kcat -F "$KAFKA_CONFIG" -G "${KAFKA_GROUP:-subscriber}" -X auto.offset.reset=earliest -q -u -f '%h\n%s\n' PaymentTopic
