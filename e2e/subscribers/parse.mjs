// Reads records, one JSON object a line (key, headers, value), with the CloudEvents SDK, and prints how many it read right.
import assert from 'node:assert/strict'
import { createInterface } from 'node:readline'
import { Kafka } from 'cloudevents'

let count = 0
for await (const line of createInterface({ input: process.stdin })) {
  const record = JSON.parse(line)
  assert.ok(Kafka.isEvent(record), line)
  const event = Kafka.toEvent(record)
  assert.ok(event.validate())
  for (const name of ['specversion', 'id', 'source', 'type', 'subject']) {
    assert.equal(event[name], record.headers[`ce_${name}`], line)
  }
  assert.equal(Date.parse(event.time), Date.parse(record.headers.ce_time), line)
  assert.equal(event.datacontenttype, 'application/json')
  assert.equal(event.partitionkey, record.key)
  assert.deepEqual(event.data, JSON.parse(record.value))
  count += 1
}
console.log(count)
