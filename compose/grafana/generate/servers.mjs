import { good, graph, number, rate } from './panels.mjs'

const up = [
  number('Up', 24, 'short', [['min by (job) (up)', '{{job}}']], [['red'], ['green', 1]], {
    names: { 0: 'down', 1: 'up' },
    description: 'The worst instance of each job.',
  }),
]

const edge = [
  graph('Requests', 6, 'reqps', [['sum(rate(haproxy_frontend_http_requests_total{proxy="edge"}[$__rate_interval]))', 'edge']]),
  graph('Answers', 6, 'reqps', [rate('haproxy_frontend_http_responses_total{proxy="edge"}', 'code')]),
  graph('Instances that are ready', 6, 'short', [['haproxy_backend_active_servers{proxy=~"payments-svc|balance-svc"}', '{{proxy}}']]),
  graph('Connections', 6, 'short', [['haproxy_frontend_current_sessions{proxy="door"}', 'open']]),
]

const databases = [
  graph('WAL written', 6, 'Bps', [['max by (source) (delta(cdc_relay_wal_position_bytes[1m])) / 60', '{{source}}']], 'As the relay sees it.'),
  graph('WAL retained for the slot', 6, 'bytes', [['max by (source) (cdc_relay_wal_retained_bytes)', '{{source}}']]),
  graph('WAL that is not emitted', 6, 'bytes', [['max by (source) (cdc_relay_lag_bytes)', '{{source}}']]),
  graph('Last answer', 6, 's', [['time() - max by (source) (cdc_relay_slot_watched_timestamp_seconds)', '{{source}}']], 'The relay asks every five seconds.'),
]

const rabbitmq = [
  number('Alarms', 4, 'short', 'max(rabbitmq_alarms_free_disk_space_watermark) + max(rabbitmq_alarms_memory_used_watermark)', good(1), {
    description: 'Of disk and memory. It blocks whoever publishes.',
  }),
  graph('Messages', 7, 'short', [
    ['max(rabbitmq_queue_messages_ready)', 'ready'],
    ['max(rabbitmq_queue_messages_unacked)', 'delivered, not acknowledged'],
  ]),
  graph('Memory', 7, 'bytes', [
    ['rabbitmq_process_resident_memory_bytes', 'resident'],
    ['rabbitmq_resident_memory_limit_bytes', 'alarm'],
  ]),
  graph('Disk', 6, 'bytes', [
    ['rabbitmq_disk_space_available_bytes', 'free'],
    ['rabbitmq_disk_space_available_limit_bytes', 'alarm'],
  ]),
]

const processes = [
  graph('CPU', 6, 'percentunit', [['rate(process_cpu_seconds_total[$__rate_interval])', '{{instance}}']], 'Of one core.'),
  graph('Memory', 6, 'bytes', [['process_resident_memory_bytes', '{{instance}}']]),
  graph('Open files', 6, 'short', [['process_open_fds', '{{instance}}']]),
  graph('Starts, in an hour', 6, 'short', [['changes(process_start_time_seconds[1h])', '{{instance}}']]),
]

const scraping = [
  graph('Time of a scrape', 8, 's', [['max by (job) (scrape_duration_seconds)', '{{job}}']]),
  graph('Time series', 8, 'short', [['prometheus_tsdb_head_series', 'series']]),
  graph('Time of the rules', 8, 's', [['sum by (rule_group) (prometheus_rule_group_last_duration_seconds)', '{{rule_group}}']]),
]

export const servers = {
  uid: 'coro-servers',
  title: 'Servers',
  description: 'Processes, the edge, databases as the relay sees them, RabbitMQ, Prometheus.',
  rows: [
    { title: 'Up', panels: up },
    { title: 'The edge', panels: edge },
    { title: 'Databases', panels: databases },
    { title: 'RabbitMQ', panels: rabbitmq },
    { title: 'Processes', panels: processes },
    { title: 'Prometheus', panels: scraping },
  ],
}
