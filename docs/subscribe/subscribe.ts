// Prints every change of a payment once. Needs Node.js 22.22 or newer, and: npm install @platformatic/kafka

import { readFileSync } from 'node:fs'
import { Consumer, MessagesStreamFallbackModes, MessagesStreamModes, stringDeserializers } from '@platformatic/kafka'

const PAYMENTS_MAX = 100_000

/** The fields that are used here; docs/events/payments.row.json has all. */
interface Payment {
  amount: number
  version: number
}

/** The highest version of each payment, for the payments that changed last. */
class Latest {
  readonly #versions = new Map<string, number>()

  version (payment: string): number {
    return this.#versions.get(payment) ?? 0
  }

  set (payment: string, version: number): void {
    this.#versions.delete(payment)
    this.#versions.set(payment, version)
    const [oldest] = this.#versions.keys()
    if (oldest !== undefined && this.#versions.size > PAYMENTS_MAX) {
      this.#versions.delete(oldest)
    }
  }
}

/** The file of the subscriber's principal: librdkafka's properties, one a line. */
function properties (path: string): Record<string, string> {
  const lines = readFileSync(path, 'utf8').split('\n').filter(line => line.includes('=') && !line.startsWith('#'))
  return Object.fromEntries(lines.map(line => [line.split('=', 1)[0], line.slice(line.indexOf('=') + 1).trim()]))
}

/** A private authority; the public ones are known. */
function authority (file: string | undefined): { ca?: Buffer } {
  return file === undefined ? {} : { ca: readFileSync(file) }
}

function handle (headers: Map<string, string>, value: string, latest: Latest): void {
  const [type, payment] = [headers.get('ce_type') ?? '', headers.get('ce_subject') ?? '']
  if (!type.endsWith('.v1')) {
    return // a type of the future: its .v1 comes beside it
  }
  let event: Payment
  try {
    event = JSON.parse(value) as Payment
  } catch (error) {
    console.error(`${type} of ${payment} is no event and was skipped: ${error}`)
    return
  }
  if (!(event.version > latest.version(payment))) {
    return // a repetition
  }
  console.log(type, payment, event.version, event.amount) // your effect
  latest.set(payment, event.version)
}

const file = properties(process.env.KAFKA_CONFIG ?? '')
const consumer = new Consumer({
  clientId: 'subscriber',
  groupId: process.env.KAFKA_GROUP ?? 'subscriber',
  bootstrapBrokers: file['bootstrap.servers'].split(','),
  sasl: {
    mechanism: file['sasl.mechanism'] as 'PLAIN' | 'SCRAM-SHA-512',
    username: file['sasl.username'],
    password: file['sasl.password']
  },
  ...(file['security.protocol'] === 'SASL_SSL' ? { tls: authority(file['ssl.ca.location']) } : {}),
  deserializers: stringDeserializers
})
const stream = await consumer.consume({
  topics: ['PaymentTopic'],
  mode: MessagesStreamModes.COMMITTED,
  fallbackMode: MessagesStreamFallbackModes.EARLIEST, // a new group begins at the first event
  autocommit: false // an offset counts once its event is handled
})
const latest = new Latest()
for await (const message of stream) {
  handle(message.headers, message.value, latest)
  await message.commit()
}
