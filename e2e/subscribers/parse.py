"""Reads records, one JSON object a line (key, headers, value), with the CloudEvents SDK, and prints how many it read right."""

import datetime
import json
import sys

from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka
from cloudevents.core.formats.json import JSONFormat

count = 0
for line in sys.stdin:
    record = json.loads(line)
    headers = {name: value.encode() for name, value in record["headers"].items()}
    event = from_kafka(KafkaMessage(headers=headers, key=record["key"], value=record["value"].encode()), JSONFormat())
    attributes = event.get_attributes()
    for name in ["specversion", "id", "source", "type", "subject"]:
        assert attributes[name] == record["headers"][f"ce_{name}"], line
    assert attributes["time"] == datetime.datetime.fromisoformat(record["headers"]["ce_time"].replace("Z", "+00:00")), line
    assert attributes["datacontenttype"] == "application/json"
    assert attributes["partitionkey"] == record["key"]
    assert event.get_data() == json.loads(record["value"]), line
    count += 1
print(count)
