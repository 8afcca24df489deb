// @ts-check
// A load as clients make it, through the edge: `cargo stack k6 NAME` with a profile of profiles.json, which
// `cargo stack load NAME` puts on the stack without k6. Every payment is followed to its end; some requests are sent
// twice and must be answered with the same bytes; some payments are declined.
//
// RATE (payments per second, for a profile of one step), DURATION (of each step) and USERS change the profile:
// `cargo stack k6 smoke -e RATE=200 -e DURATION=10s`.
import http from 'k6/http';
import { check, sleep } from 'k6';
import exec from 'k6/execution';
import { Trend } from 'k6/metrics';

/**
 * @typedef {{ rate: number, seconds: number }} Step
 * @typedef {{ accept_p99_ms: number, settle_p95_ms: number, settle_p99_ms: number }} Limits
 * @typedef {{ purpose: string, users: number, zipf: number, declined_one_in: number, replayed_one_in: number, steps: Step[],
 *   pause_seconds: number, finds_knee: boolean, limits: Limits }} Profile
 * @typedef {{ users: string[], run: string }} Setup
 */

const EDGE = __ENV.EDGE_URL;
const PROFILE = read(__ENV.PROFILE || 'smoke');

const AMOUNT = 1000;
const DEPOSIT = 1_000_000_000;
const ENDS = ['completed', 'rejected', 'failed', 'cancelled'];
const LOOK_S = 0.1;
const SETTLE_TIMEOUT_MS = 30_000;
const GRACE_S = 40;
// Payments that may be under way at once, in seconds of the step's rate. One more is dropped.
const UNDER_WAY_S_MAX = 10;
// Making a VU in the middle of a load is work, and so is keeping one.
const VUS_AT_FIRST_MAX = 500;

// From the 201 until the end was seen by a client that looks every 100 ms.
const settle = new Trend('settle_ms', true);

/** @type {import('k6/options').Options} */
export const options = {
  scenarios: scenarios(PROFILE),
  thresholds: thresholds(PROFILE),
  setupTimeout: '180s',
  teardownTimeout: '180s',
  summaryTrendStats: ['count', 'med', 'p(95)', 'p(99)', 'max'],
};

const JSON_BODY = { 'content-type': 'application/json' };
// Of the users up to and including each, the n-th of whom pays with weight 1 / n^zipf.
const WEIGHTS = weights(PROFILE);

/**
 * @param {string} name
 * @returns {Profile}
 */
export function read(name) {
  /** @type {Record<string, Profile>} */
  const profiles = JSON.parse(open('./profiles.json'));
  const profile = profiles[name];
  if (profile === undefined) {
    throw new Error(`there is no load ${name}; there is: ${Object.keys(profiles).join(', ')}`);
  }
  const { RATE, DURATION, USERS } = __ENV;
  if (RATE !== undefined && profile.steps.length > 1) {
    throw new Error('a rate can be chosen for a load of one step only');
  }
  const seconds = DURATION === undefined ? undefined : Number(DURATION.replace(/s$/, ''));
  for (const step of profile.steps) {
    step.rate = Number(RATE ?? step.rate);
    step.seconds = seconds ?? step.seconds;
    if (!(step.rate > 0 && step.seconds > 0)) {
      throw new Error('RATE is payments per second and DURATION a number of seconds, such as 30s');
    }
  }
  profile.users = Number(USERS ?? profile.users);
  return profile;
}

/**
 * A scenario for each step, so that each has figures of its own.
 * @param {Profile} profile
 */
export function scenarios({ steps, pause_seconds }) {
  let start = 0;
  const entries = steps.map(({ rate, seconds }, nth) => {
    /** @type {import('k6/options').Scenario} */
    const scenario = {
      executor: 'constant-arrival-rate',
      rate,
      timeUnit: '1s',
      duration: `${seconds}s`,
      startTime: `${start}s`,
      preAllocatedVUs: Math.min(rate * 4, VUS_AT_FIRST_MAX),
      maxVUs: rate * UNDER_WAY_S_MAX,
      gracefulStop: `${GRACE_S}s`,
    };
    start += seconds + pause_seconds;
    return [name(nth), scenario];
  });
  return Object.fromEntries(entries);
}

/** @param {number} nth */
function name(nth) {
  return `step_${nth + 1}`;
}

/**
 * What a load promises; a load that finds the knee promises only that each answer and each end is one that may be. k6 keeps
 * figures of a scenario only where a threshold names them, so each step has some that always hold.
 * @param {Profile} profile
 */
export function thresholds({ steps, finds_knee, limits }) {
  /** @type {Record<string, string[]>} */
  const all = { 'checks{kind:always}': ['rate==1'] };
  if (!finds_knee) {
    all['checks'] = ['rate==1'];
    all['http_req_failed'] = ['rate<0.001'];
    all['http_req_duration{call:accept}'] = [`p(99)<${limits.accept_p99_ms}`];
    all['settle_ms'] = [`p(95)<${limits.settle_p95_ms}`, `p(99)<${limits.settle_p99_ms}`];
    // What was not sent was not measured.
    all['dropped_iterations'] = ['count==0'];
  }
  steps.forEach((_, nth) => {
    const scenario = name(nth);
    all[`checks{scenario:${scenario}}`] = ['rate>=0'];
    all[`dropped_iterations{scenario:${scenario}}`] = ['count>=0'];
    all[`http_req_duration{call:accept,scenario:${scenario}}`] = ['max>=0'];
    all[`settle_ms{scenario:${scenario}}`] = ['max>=0'];
  });
  return all;
}

/** @param {Profile} profile */
function weights({ users, zipf }) {
  let sum = 0;
  return Array.from({ length: users }, (_, nth) => (sum += (nth + 1) ** -zipf));
}

/** @param {string[]} users */
function pick(users) {
  const point = Math.random() * WEIGHTS[WEIGHTS.length - 1];
  let [low, high] = [0, users.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (WEIGHTS[middle] <= point) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return users[low];
}

/** @returns {Setup} */
export function setup() {
  const users = Array.from({ length: PROFILE.users }, () => crypto.randomUUID());
  for (const user of users) {
    const deposit = { user_id: user, amount: DEPOSIT, idempotency_key: 'load' };
    const headers = { ...JSON_BODY, authorization: `Bearer ${__ENV.ADMIN_TOKEN}` };
    const params = { headers, tags: { name: 'POST /deposits', call: 'deposit' } };
    const answer = http.post(`${__ENV.BALANCE_ADMIN_URL}/deposits`, JSON.stringify(deposit), params);
    if (answer.status !== 201) {
      throw new Error(`no deposit: ${answer.status} ${answer.body}`);
    }
  }
  return { users, run: crypto.randomUUID() };
}

/** @param {Setup} setup */
export default function ({ users, run }) {
  const nth = exec.scenario.iterationInTest;
  const user = pick(users);
  const declined = isOneOf(PROFILE.declined_one_in, nth);
  const order = JSON.stringify({
    client_number: declined ? '0812-decline' : '081234567890',
    service_id: __ENV.DEMO_SERVICE_ID,
    amount: AMOUNT,
    idempotency_key: `${run}/${exec.scenario.name}/${nth}`,
  });
  const accepted = pay(user, order, 'accept');
  const acceptedAt = Date.now();
  if (!check(accepted, { 'accepted with 201': (answer) => answer.status === 201 })) {
    return;
  }
  const path = accepted.headers['Location'];
  if (isOneOf(PROFILE.replayed_one_in, nth)) {
    const again = pay(user, order, 'replay');
    if (check(again, { 'sent again: the same 201': (answer) => answer.status === 201 })) {
      always(again, {
        'sent again: the same bytes': (answer) => answer.body === accepted.body,
        'sent again: marked so': (answer) => answer.headers['Idempotent-Replayed'] === 'true',
      });
    }
  }
  const status = follow(user, path, acceptedAt);
  if (check(status, { 'ended in time': (status) => status !== null })) {
    settle.add(Date.now() - acceptedAt);
    always(status, { 'ended as planned': (status) => status === (declined ? 'failed' : 'completed') });
  }
}

/**
 * Whether an iteration is one of those that are declined, or sent again.
 * @param {number} oneIn
 * @param {number} nth
 */
function isOneOf(oneIn, nth) {
  return oneIn > 0 && nth % oneIn === 0;
}

/**
 * Checks what no load excuses.
 * @template T
 * @param {T} value
 * @param {Record<string, (value: T) => boolean>} checks
 */
function always(value, checks) {
  return check(value, checks, { kind: 'always' });
}

/**
 * Nothing is left between states.
 * @param {Setup} setup
 */
export function teardown({ users }) {
  for (const user of users) {
    const params = { headers: { 'x-user-id': user }, tags: { name: 'GET /balance', call: 'balance' } };
    const answer = http.get(`${EDGE}/balance`, params);
    check(answer, { 'nothing is held': (balance) => balance.status === 200 && balance.json('held') === 0 });
  }
}

/**
 * @param {string} user
 * @param {string} order
 * @param {string} call
 */
function pay(user, order, call) {
  const params = { headers: { ...JSON_BODY, 'x-user-id': user }, tags: { name: 'POST /payments', call } };
  return http.post(`${EDGE}/payments`, order, params);
}

/**
 * The status of a payment that has ended; null when it has not in time.
 * @param {string} user
 * @param {string} path
 * @param {number} since
 */
function follow(user, path, since) {
  const params = { headers: { 'x-user-id': user }, tags: { name: 'GET /payments/{id}', call: 'look' } };
  while (Date.now() - since < SETTLE_TIMEOUT_MS) {
    const answer = http.get(`${EDGE}${path}`, params);
    const status = answer.status === 200 ? String(answer.json('status')) : '';
    if (ENDS.includes(status)) {
      return status;
    }
    sleep(LOOK_S);
  }
  return null;
}

/**
 * The summary: a line for each step, the knee if the load looks for it, and the thresholds that were crossed.
 * @param {{ metrics: Record<string, { values: Record<string, number>, thresholds?: Record<string, { ok: boolean }> }> }} data
 */
export function handleSummary({ metrics }) {
  const { steps, limits, finds_knee } = PROFILE;
  const value = (/** @type {string} */ metric, /** @type {string} */ stat) => metrics[metric]?.values[stat] ?? 0;
  /** @type {number | null} */
  let knee = null;
  let searching = true;
  const lines = steps.map(({ rate }, nth) => {
    const scenario = name(nth);
    const settled = `settle_ms{scenario:${scenario}}`;
    const accept = value(`http_req_duration{call:accept,scenario:${scenario}}`, 'p(99)');
    const [p95, p99] = [value(settled, 'p(95)'), value(settled, 'p(99)')];
    const dropped = value(`dropped_iterations{scenario:${scenario}}`, 'count');
    const held =
      dropped === 0 &&
      value(`checks{scenario:${scenario}}`, 'rate') === 1 &&
      accept < limits.accept_p99_ms &&
      p95 < limits.settle_p95_ms &&
      p99 < limits.settle_p99_ms;
    searching = searching && held;
    knee = searching ? rate : knee;
    const figures = [accept, value(settled, 'med'), p95, p99].map((ms) => ms.toFixed(1));
    return (
      `${rate}/s: ${value(settled, 'count')} settled, ${dropped} dropped, accept p99 ${figures[0]} ms, ` +
      `settle p50 ${figures[1]} p95 ${figures[2]} p99 ${figures[3]} ms, ${held ? 'held' : 'not held'}`
    );
  });
  if (finds_knee) {
    lines.push(knee === null ? 'no step was held' : `the knee: ${knee} payments per second`);
  }
  for (const [metric, { thresholds }] of Object.entries(metrics)) {
    const crossed = Object.entries(thresholds ?? {}).filter(([, { ok }]) => !ok);
    lines.push(...crossed.map(([threshold]) => `crossed: ${metric} ${threshold}`));
  }
  return { stdout: `${lines.join('\n')}\n` };
}
