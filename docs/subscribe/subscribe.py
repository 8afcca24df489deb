"""Prints every change of a payment once. Needs, in a virtual environment: pip install confluent-kafka"""

import collections
import json
import os
import sys

from confluent_kafka import Consumer, KafkaException

PAYMENTS_MAX = 100_000


class Latest:
    """The highest version of each payment, for the payments that changed last."""

    def __init__(self):
        self.versions = collections.OrderedDict()

    def version(self, payment):
        return self.versions.get(payment, 0)

    def set(self, payment, version):
        self.versions[payment] = version
        self.versions.move_to_end(payment)
        if len(self.versions) > PAYMENTS_MAX:
            self.versions.popitem(last=False)


def properties(path):
    """The file of the subscriber's principal: librdkafka's properties, one a line."""
    with open(path) as file:
        lines = [line.strip() for line in file if "=" in line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def handle(message, latest):
    headers = dict(message.headers() or [])
    kind, payment = (headers.get(name, b"").decode() for name in ("ce_type", "ce_subject"))
    if not kind.endswith(".v1"):
        return  # a type of the future: its .v1 comes beside it
    try:
        event = json.loads(message.value())
        repeated = event["version"] <= latest.version(payment)
    except (ValueError, TypeError, KeyError) as error:
        place = f"{message.topic()}/{message.partition()}/{message.offset()}"
        print(f"{place} is no event and was skipped: {error!r}", file=sys.stderr)
        return
    if repeated:
        return
    print(kind, payment, event["version"], event["amount"], flush=True)  # your effect
    latest.set(payment, event["version"])


def main():
    consumer = Consumer({
        **properties(os.environ["KAFKA_CONFIG"]),
        "group.id": os.environ.get("KAFKA_GROUP", "subscriber"),
        "auto.offset.reset": "earliest",  # a new group begins at the first event
        "enable.auto.offset.store": False,  # an offset counts once its event is handled
    })
    consumer.subscribe(["PaymentTopic"])
    latest = Latest()
    try:
        while True:
            message = consumer.poll(1.0)
            if message is None:
                continue
            if message.error():
                raise KafkaException(message.error())
            handle(message, latest)
            consumer.store_offsets(message)
    except KeyboardInterrupt:
        pass
    finally:
        consumer.close()


if __name__ == "__main__":
    main()
