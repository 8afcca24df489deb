// Runs each function of load.js once, on the stack of the environment, as k6 would.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { exec, seen } from './shim.mjs'

/** The load of these settings, as k6 reads it: anew for each. */
async function load (settings) {
  Object.assign(globalThis.__ENV, { PROFILE: undefined, RATE: undefined, DURATION: undefined, USERS: undefined }, settings)
  return await import(`./load.js?${new URLSearchParams(settings)}`)
}

const profiles = JSON.parse(readFileSync(new URL('profiles.json', import.meta.url), 'utf8'))

// Each profile makes a scenario of each step, one behind the other.
for (const [name, { steps, pause_seconds: pause, finds_knee: findsKnee }] of Object.entries(profiles)) {
  const { options } = await load({ PROFILE: name })
  let start = 0
  const expected = steps.map(({ rate, seconds }) => {
    const scenario = [rate, `${seconds}s`, `${start}s`]
    start += seconds + pause
    return scenario
  })
  const found = Object.values(options.scenarios).map(({ rate, duration, startTime }) => [rate, duration, startTime])
  assert.deepEqual(found, expected, name)
  assert.equal('dropped_iterations' in options.thresholds, !findsKnee, `${name}: one dropped iteration fails`)
  assert.deepEqual(options.thresholds['checks{kind:always}'], ['rate==1'], name)
}

// Settings change a profile, and what makes no load is refused.
const { options } = await load({ PROFILE: 'smoke', RATE: '200', DURATION: '10s' })
assert.deepEqual([options.scenarios.step_1.rate, options.scenarios.step_1.duration], [200, '10s'])
for (const [settings, refusal] of [
  [{ PROFILE: 'nothing' }, /there is no load nothing; there is: smoke/],
  [{ PROFILE: 'smoke', RATE: '0' }, /RATE is payments per second/],
  [{ PROFILE: 'smoke', RATE: 'x' }, /RATE is payments per second/],
  [{ PROFILE: 'smoke', DURATION: '1m' }, /DURATION a number of seconds/],
  [{ PROFILE: 'spike', RATE: '10' }, /one step only/]
]) {
  await assert.rejects(load(settings), refusal, JSON.stringify(settings))
}

// Its life: an ordinary payment, one that is declined, one that is sent again.
const smoke = await load({ PROFILE: 'smoke', USERS: '3' })
const setup = smoke.setup()
assert.equal(setup.users.length, 3)
for (const nth of [0, 1, 10, 25]) {
  exec.scenario.iterationInTest = nth
  smoke.default(setup)
}
smoke.teardown(setup)
const times = Object.fromEntries(Array.from(seen.checks, ([name, results]) => [name, results.length]))
assert.deepEqual(times, {
  'accepted with 201': 4,
  'sent again: the same 201': 2,
  'sent again: the same bytes': 2,
  'sent again: marked so': 2,
  'ended in time': 4,
  'ended as planned': 4,
  'nothing is held': 3
})
for (const [name, results] of seen.checks) assert.ok(results.every(Boolean), name)
assert.equal(seen.metrics.get('settle_ms').length, 4)

// The knee is the highest rate before the first step that was not held.
const stress = await load({ PROFILE: 'stress' })
const metrics = {}
const [held, lost] = [{ checks: 1, dropped: 0 }, { checks: 1, dropped: 1 }]
for (const [nth, { checks, dropped }] of [held, held, lost, held].entries()) {
  const scenario = `step_${nth + 1}`
  metrics[`checks{scenario:${scenario}}`] = { values: { rate: checks } }
  metrics[`dropped_iterations{scenario:${scenario}}`] = { values: { count: dropped }, thresholds: { 'count>=0': { ok: true } } }
  metrics[`settle_ms{scenario:${scenario}}`] = { values: { count: 10, med: 50, 'p(95)': 100, 'p(99)': 200 } }
  metrics[`http_req_duration{call:accept,scenario:${scenario}}`] = { values: { 'p(99)': 20 } }
}
metrics.checks = { values: {}, thresholds: { 'rate==1': { ok: false } } }
const { stdout } = stress.handleSummary({ metrics })
assert.match(stdout, /^100\/s: 10 settled, 0 dropped, accept p99 20\.0 ms, settle p50 50\.0 p95 100\.0 p99 200\.0 ms, held$/m)
assert.match(stdout, /^300\/s: .*1 dropped.*, not held$/m)
assert.match(stdout, /^the knee: 200 payments per second$/m)
assert.match(stdout, /^crossed: checks rate==1$/m)
