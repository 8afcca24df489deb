import { good, graph, number, quantiles, rate } from './panels.mjs'

const share = [['red'], ['orange', 0.99], ['green', 0.999]]
const settled = [['red'], ['orange', 0.95], ['green', 0.99]]

const well = [
  number('Alerts', 3, 'short', 'count(ALERTS{alertname=~"Coro.*|CdcRelay.*", alertstate="firing"}) - 1', good(1), {
    description: 'Alerts that fire, the watchdog not counted: it always does.',
  }),
  number('Accepted, in an hour', 4, 'percentunit', '1 - slo:accepted_bad:ratio_1h', share, {
    description: 'Requests to pay that were not answered 5xx. The objective is 99.9 %.',
  }),
  number('Settled in 10 s, in an hour', 4, 'percentunit', '1 - slo:settled_bad:ratio_1h', settled, {
    description: 'Accepted payments that ended within ten seconds, declines too. The objective is 99 %.',
  }),
  number('Oldest without an end', 4, 's', 'max(payments_oldest_unsettled_seconds)', [['green'], ['orange', 600], ['red', 3600]]),
  number('Unknown charges', 3, 'short', 'max(processor_live_charges{status="unknown", older_than="1m"})', [['green'], ['orange', 1]], {
    description: 'For more than a minute. The hold stays, and the gateway is inquired of.',
  }),
  number('New payments', 3, 'short', 'max(payments_shedding)', good(1), { names: { 0: 'accepted', 1: 'refused' } }),
  number('Breaker', 3, 'short', 'max(processor_breaker_state)', [['green'], ['orange', 1], ['red', 2]], {
    names: { 0: 'closed', 1: 'half-open', 2: 'open' },
  }),
]

const burn = (slo, budget) =>
  ['5m', '1h', '6h'].map((window) => [`slo:${slo}_bad:ratio_${window} / ${budget}`, window])

const objectives = [
  graph('Burn rate: accepted', 12, 'short', burn('accepted', 0.001), 'How many times faster than allowed the budget is spent. Pages at 14.4 in an hour and at 6 in six.'),
  graph('Burn rate: settled', 12, 'short', burn('settled', 0.01), 'As beside it, of payments without an end after ten seconds.'),
]

const accepting = [
  graph('Requests to pay', 8, 'reqps', [rate('payments_requests_total', 'outcome')], 'By outcome. failed: the database did not commit. shed: holds take too long.'),
  graph('Time to accept', 8, 's', quantiles('payments_accept_seconds')),
  graph('Answers of the edge', 8, 'reqps', [rate('haproxy_backend_http_responses_total{proxy="payments-svc"}', 'code')], 'Of all calls that payments-svc answers.'),
]

const settling = [
  graph('Accepted, and ended', 8, 'reqps', [
    ['sum(rate(payments_accepted_total[$__rate_interval]))', 'accepted'],
    rate('payments_transitions_total{event=~"completed|rejected|failed|cancelled"}', 'event'),
  ]),
  graph('Settle time', 8, 's', quantiles('payments_settle_seconds'), 'From the acceptance to the end. What has no end is not in it.'),
  graph('Without an end, by age', 8, 'short', [['max by (older_than) (payments_unsettled)', 'older than {{older_than}}']]),
]

const gateway = [
  graph('Calls', 6, 'reqps', [rate('processor_calls_total', 'outcome')]),
  graph('Time of a call', 6, 's', quantiles('processor_call_seconds')),
  graph('Inquiries', 6, 'reqps', [rate('processor_inquiries_total', 'finding')]),
  graph('Charges that are not terminal', 6, 'short', [['max by (status) (processor_live_charges{older_than="1m"})', '{{status}}']], 'For more than a minute.'),
]

const aside = [
  graph('Messages set aside, in an hour', 8, 'short', [['sum by (job) (increase(consumer_records_total{outcome="parked"}[1h]))', '{{job}}']]),
  graph('Contradictions, in an hour', 8, 'short', [['sum by (job) (increase(saga_contradictions_total[1h]))', '{{job}}']]),
  graph('Alarms of the processor, in an hour', 8, 'short', [['sum by (what) (increase(processor_alarms_total[1h]))', '{{what}}']]),
]

const audit = [
  number('Contradictions, in an hour', 4, 'short', 'sum(max by (check) (increase(auditor_violations_total[1h])))', good(1), {
    description: 'Confirmed by the continuous audit. The log names each.',
  }),
  number('Suspicions', 4, 'short', 'max(auditor_suspicions)', [['green'], ['orange', 1]], {
    description: 'Read again before they are reported. They come and go while payments move.',
  }),
  number('Last examined', 4, 's', 'time() - max(auditor_last_examined_timestamp_seconds)', [['green'], ['orange', 600]], {
    description: 'Since a pass examined a payment. Where nothing is paid, nothing is examined.',
  }),
  number('Records not read', 4, 'short', 'max(auditor_behind_records)', [['green'], ['orange', 1000], ['red', 50000]]),
  number('CPU', 8, 'percentunit', 'max(rate(process_cpu_seconds_total{job="auditor"}[5m]))', [['green'], ['orange', 0.02], ['red', 0.2]], {
    description: 'Of one core. What it costs follows what changes.',
  }),
  graph('Examined', 8, 'ops', [['sum by (kind) (rate(auditor_examined_total[$__rate_interval]))', '{{kind}}']]),
  graph('Time of a pass', 8, 's', quantiles('auditor_pass_seconds'), 'Of passes that examined something.'),
  graph('Payments in memory', 8, 'short', [
    ['max(auditor_pending_payments)', 'not compared yet'],
    ['max by (waits_for) (auditor_late_payments)', 'late, waiting for {{waits_for}}'],
  ]),
]

export const money = {
  uid: 'coro-money',
  title: 'Money moving',
  description: 'Whether payments are accepted and settled. Alerts lead to docs/runbooks.',
  rows: [
    { title: 'Is it well?', panels: well },
    { title: 'Objectives', panels: objectives },
    { title: 'Accepting', panels: accepting },
    { title: 'Settling', panels: settling },
    { title: 'The gateway', panels: gateway },
    { title: 'Set aside', panels: aside },
    { title: 'The continuous audit', panels: audit },
  ],
}
