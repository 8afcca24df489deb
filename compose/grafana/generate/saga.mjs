import { graph, quantiles, rate } from './panels.mjs'

const p99 = (histogram, legend, labels = '') => [quantiles(histogram, labels)[1][0], legend]

const whole = [
  graph(
    'Time per step, p99',
    16,
    's',
    [
      p99('payments_accept_seconds', '1 accept'),
      ['max by (source) (job_source_sink:cdc_relay_commit_to_acknowledged_seconds:p99_rate5m)', '2 emit {{source}}'],
      p99('payments_hold_seconds', '3 hold, since accepted'),
      p99('processor_commit_seconds', '4 intent', '{of="intents"}'),
      p99('processor_call_seconds', '5 call'),
      p99('processor_commit_seconds', '6 outcome', '{of="outcomes"}'),
      p99('payments_settle_seconds', '7 end, since accepted'),
    ],
    'In the order of a payment. emit comes between all others: from a commit to its acknowledgement.',
  ),
  graph('Settle time', 8, 's', quantiles('payments_settle_seconds')),
]

const times = [
  graph('1 Accept: request to commit', 8, 's', quantiles('payments_accept_seconds')),
  graph('2 Emit: commit to acknowledgement', 8, 's', [
    ['job_source_sink:cdc_relay_commit_to_acknowledged_seconds:p99_rate5m', '{{source}} to {{sink}}'],
  ], 'p99 of five minutes.'),
  graph('3 Hold: acceptance to hold', 8, 's', quantiles('payments_hold_seconds'), 'Of one payment a second.'),
  graph('4 and 6 Intents and outcomes: commit', 8, 's', [
    p99('processor_commit_seconds', 'intents, p99', '{of="intents"}'),
    p99('processor_commit_seconds', 'outcomes, p99', '{of="outcomes"}'),
  ]),
  graph('5 Charge: call of the gateway', 8, 's', quantiles('processor_call_seconds')),
  graph('Batches of the consumers, p99', 8, 's', [
    ['histogram_quantile(0.99, sum by (job, le) (rate(consumer_batch_seconds_bucket[$__rate_interval])))', '{{job}}'],
  ], 'Retries included: what stands still is not in it.'),
]

const steps = [
  graph('Payments', 6, 'ops', [rate('payments_transitions_total', 'event')], 'Transitions by event.'),
  graph('Ledger', 6, 'ops', [rate('balance_ledger_entries_total', 'kind')], 'Entries by kind.'),
  graph('Charges', 6, 'ops', [rate('processor_transitions_total', 'to')], 'Transitions by new status.'),
  graph('Events', 6, 'ops', [
    ['sum by (source, sink) (rate(cdc_relay_messages_total[$__rate_interval]))', '{{source}} to {{sink}}'],
  ], 'Emitted by the relay.'),
]

const between = [
  graph('Records that wait', 6, 'short', [['sum by (job) (max by (job, topic, partition) (consumer_lag_records))', '{{job}}']], 'Of each group, over all partitions.'),
  graph('The fullest partitions', 6, 'short', [
    ['topk(5, max by (job, topic, partition) (consumer_lag_records))', '{{job}} {{topic}}/{{partition}}'],
  ]),
  graph('Work messages', 6, 'short', [
    ['max(rabbitmq_queue_messages_ready)', 'ready'],
    ['max(rabbitmq_queue_messages_unacked)', 'delivered, not acknowledged'],
  ]),
  graph('WAL that is not emitted', 6, 'bytes', [['max by (source) (cdc_relay_lag_bytes)', '{{source}}']]),
]

const consumers = [
  graph('Records', 6, 'ops', [['sum by (job, outcome) (rate(consumer_records_total[$__rate_interval]))', '{{job}} {{outcome}}']]),
  graph('Records of a batch, p99', 6, 'short', [
    ['histogram_quantile(0.99, sum by (job, le) (rate(consumer_batch_records_bucket[$__rate_interval])))', '{{job}}'],
  ]),
  graph('Retries, in ten minutes', 6, 'short', [['sum by (job, reason) (increase(consumer_retries_total[10m]))', '{{job}} {{reason}}']]),
  graph('Records that wait for a row', 6, 'short', [['max by (job) (consumer_waiting_records)', '{{job}}']]),
]

const TERMINAL = '{event=~"completed|rejected|failed|cancelled"}'

const traces = [
  graph('Traces', 8, 'ops', [rate('tracer_traces_total', 'outcome')], 'Sent to the collector, or refused by it.'),
  graph('Share of payments that is traced', 8, 'percentunit', [
    [
      `sum(rate(tracer_traces_total{outcome="sent"}[$__rate_interval])) / sum(rate(payments_transitions_total${TERMINAL}[$__rate_interval]))`,
      'traced',
    ],
  ], 'TRACE_SAMPLE_RATIO says how many are to be.'),
  graph('Events that wait for their trace', 8, 'short', [['sum(tracer_events_pending)', 'pending']], 'Of payments without an end, or the collector is away.'),
]

export const saga = {
  uid: 'coro-saga',
  title: 'The saga, step by step',
  description: 'How long each step of a payment takes, how many there are, and what waits between them.',
  rows: [
    { title: 'The whole', panels: whole },
    { title: 'Time per step', panels: times },
    { title: 'Steps per second', panels: steps },
    { title: 'Between the steps', panels: between },
    { title: 'Consumers', panels: consumers },
    { title: 'Traces', panels: traces },
  ],
}
