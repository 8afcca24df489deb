// A steady load as clients make it, through the edge: `cargo stack k6 smoke`. Every payment is followed to its end;
// some requests are sent twice and must be answered with the same bytes; some payments are declined.
//
// RATE (payments per second), DURATION and USERS change it: `cargo stack k6 smoke -e RATE=200`.
import http from 'k6/http';
import { check, sleep } from 'k6';
import exec from 'k6/execution';
import { Trend } from 'k6/metrics';

const EDGE = __ENV.EDGE_URL;
const RATE = Number(__ENV.RATE || 50);
const DURATION = __ENV.DURATION || '30s';
const USERS = Number(__ENV.USERS || 50);

const AMOUNT = 1000;
const DEPOSIT = 1_000_000_000;
const ENDS = ['completed', 'rejected', 'failed', 'cancelled'];
// One in so many.
const DECLINED = 25;
const REPLAYED = 10;
const LOOK_S = 0.1;
const PATIENCE_MS = 30_000;

// From the 201 until the end was seen by a client that looks every 100 ms.
const settle = new Trend('settle_ms', true);

export const options = {
  scenarios: {
    payments: {
      executor: 'constant-arrival-rate',
      rate: RATE,
      timeUnit: '1s',
      duration: DURATION,
      // Enough for all that are under way when a payment takes four seconds: making more in between is work.
      preAllocatedVUs: RATE * 4,
      maxVUs: RATE * 10,
      gracefulStop: '40s',
    },
  },
  // For two cores that the whole stack and k6 share.
  thresholds: {
    checks: ['rate==1'],
    http_req_failed: ['rate<0.001'],
    'http_req_duration{call:accept}': ['p(99)<250'],
    settle_ms: ['p(95)<2000', 'p(99)<5000'],
    // What was not sent was not measured.
    dropped_iterations: ['count==0'],
  },
  summaryTrendStats: ['count', 'avg', 'med', 'p(95)', 'p(99)', 'max'],
};

const JSON_BODY = { 'content-type': 'application/json' };

export function setup() {
  const users = Array.from({ length: USERS }, () => crypto.randomUUID());
  for (const user of users) {
    const deposit = { user_id: user, amount: DEPOSIT, idempotency_key: 'smoke' };
    const headers = { ...JSON_BODY, authorization: `Bearer ${__ENV.ADMIN_TOKEN}` };
    const params = { headers, tags: { name: 'POST /deposits', call: 'deposit' } };
    const answer = http.post(`${__ENV.BALANCE_ADMIN_URL}/deposits`, JSON.stringify(deposit), params);
    if (answer.status !== 201) {
      throw new Error(`no deposit: ${answer.status} ${answer.body}`);
    }
  }
  return { users, run: crypto.randomUUID() };
}

export default function ({ users, run }) {
  const nth = exec.scenario.iterationInTest;
  const user = users[nth % users.length];
  const declined = nth % DECLINED === 0;
  const order = JSON.stringify({
    client_number: declined ? '0812-decline' : '081234567890',
    service_id: __ENV.DEMO_SERVICE_ID,
    amount: AMOUNT,
    idempotency_key: `${run}/${nth}`,
  });
  const accepted = pay(user, order, 'accept');
  const accepted_at = Date.now();
  if (!check(accepted, { 'accepted with 201': (answer) => answer.status === 201 })) {
    return;
  }
  const path = accepted.headers['Location'];
  if (nth % REPLAYED === 0) {
    const again = pay(user, order, 'replay');
    check(again, {
      'sent again: the same 201': (answer) => answer.status === 201,
      'sent again: the same bytes': (answer) => answer.body === accepted.body,
      'sent again: marked so': (answer) => answer.headers['Idempotent-Replayed'] === 'true',
    });
  }
  const ended = follow(user, path, accepted_at);
  const wanted = declined ? 'failed' : 'completed';
  if (check(ended, { 'ended as it should': (payment) => payment !== null && payment.status === wanted })) {
    settle.add(Date.now() - accepted_at);
  }
}

// Nothing is left between states.
export function teardown({ users }) {
  for (const user of users) {
    const params = { headers: { 'x-user-id': user }, tags: { name: 'GET /balance', call: 'balance' } };
    const answer = http.get(`${EDGE}/balance`, params);
    check(answer, { 'nothing is held': (balance) => balance.status === 200 && balance.json('held') === 0 });
  }
}

function pay(user, order, call) {
  const params = { headers: { ...JSON_BODY, 'x-user-id': user }, tags: { name: 'POST /payments', call } };
  return http.post(`${EDGE}/payments`, order, params);
}

// The payment once it has ended; null when it has not in time.
function follow(user, path, since) {
  const params = { headers: { 'x-user-id': user }, tags: { name: 'GET /payments/{id}', call: 'look' } };
  while (Date.now() - since < PATIENCE_MS) {
    const answer = http.get(`${EDGE}${path}`, params);
    if (answer.status === 200 && ENDS.includes(answer.json('status'))) {
      return answer.json();
    }
    sleep(LOOK_S);
  }
  return null;
}
