// Pays safely and follows the payment to its end. Needs Node.js 22.18 or newer, and the types that docs/PAY.md makes of
// openapi.yaml (coro.ts).

import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { components } from './coro.ts'

type Schemas = components['schemas']
type Payment = Schemas['Payment']
type AcceptedPayment = Schemas['AcceptedPayment']
type Movement = Schemas['Movement']
type Problem = Schemas['Problem']

const { EDGE_URL: edge, DEMO_USER_ID: user } = process.env
if (edge === undefined || user === undefined) {
  throw new Error('set EDGE_URL and DEMO_USER_ID: . .stack/env')
}
const TERMINAL = new Set<string>(['completed', 'rejected', 'failed', 'cancelled'])
/** Whether the outcome is not known, and the same request may be sent again. */
const isUnknown = (status: number): boolean => status === 408 || status === 429 || status >= 500

/** A definite answer: nothing was changed. `problem` says why (docs/problems.md). */
class Refused extends Error {
  readonly problem: Problem

  constructor (problem: Problem) {
    super(`${problem.type}: ${problem.detail}`)
    this.problem = problem
  }
}

/** Sends a request until its outcome is known. Every call is safe to repeat; `key` makes a payment so. */
async function call<T> (method: string, path: string, body?: object, key?: string): Promise<T> {
  const headers: Record<string, string> = { 'x-user-id': user!, 'content-type': 'application/json' }
  if (key !== undefined) {
    headers['idempotency-key'] = JSON.stringify(key)
  }
  for (let pause = 200; ; pause = Math.min(2 * pause, 10_000)) {
    let wait = pause
    try {
      const answer = await fetch(edge + path, {
        method, headers, body: body && JSON.stringify(body), signal: AbortSignal.timeout(40_000)
      })
      if (answer.ok) {
        return await answer.json() as T
      }
      if (!isUnknown(answer.status)) {
        throw new Refused(await answer.json() as Problem)
      }
      wait = Number(answer.headers.get('retry-after') ?? pause / 1000) * 1000
    } catch (error) {
      if (error instanceof Refused) {
        throw error
      }
    }
    await sleep(wait)
  }
}

/** Pays once per key, whatever goes wrong in between. Store the key before the first try. */
async function pay (key: string, order: Schemas['Order']): Promise<AcceptedPayment> {
  return await call('POST', '/payments', order, key)
}

/** The payment at its end. While `outcome_unknown` is true it goes on by itself: do not pay again. */
async function wait (id: string): Promise<Payment> {
  for (;;) {
    const payment = await call<Payment>('GET', `/payments/${id}?wait=25000`)
    if (TERMINAL.has(payment.status)) {
      return payment
    }
  }
}

/** Asks to cancel; the end says whether that was honoured. Too late is no error. */
async function cancel (id: string): Promise<void> {
  try {
    await call('POST', `/payments/${id}/cancel`)
  } catch (error) {
    if (!(error instanceof Refused) || error.problem.type !== 'urn:coro:problem:payment-ended') {
      throw error
    }
  }
}

/** Every movement of the balance, newest first. */
async function * statement (): AsyncGenerator<Movement> {
  for (let cursor: string | null = ''; cursor !== null;) {
    const query: string = cursor === '' ? '' : `&cursor=${cursor}`
    const page: { movements: Movement[], next_cursor: string | null } =
      await call('GET', `/balance/movements?limit=100${query}`)
    yield * page.movements
    cursor = page.next_cursor
  }
}

const [clientNumber = '081', amount = '100'] = process.argv.slice(2)
const order = { client_number: clientNumber, service_id: 'electricity', amount: Number(amount) }
const key = randomUUID()
const paid = await pay(key, order)
const again = await pay(key, order)
if (again.payment_id !== paid.payment_id) {
  throw new Error('the same key and the same order are the same payment')
}
const ended = await wait(paid.payment_id)
console.log('payment', ended.payment_id, ended.status, ended.reason)
const slow = await pay(randomUUID(), { ...order, client_number: `${clientNumber}-slow300` })
await cancel(slow.payment_id)
const late = await wait(slow.payment_id)
console.log('cancel', late.payment_id, late.status, late.cancel)
for await (const movement of statement()) {
  if (movement.payment_id === ended.payment_id) {
    console.log('movement', movement.entry_no, movement.kind, movement.amount, movement.available_after)
  }
}
