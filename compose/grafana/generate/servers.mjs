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

const DISKS = 'fstype!~"tmpfs|overlay|squashfs|ramfs"'

const machines = [
  graph('CPU', 6, 'percentunit', [
    ['1 - avg by (instance) (rate(node_cpu_seconds_total{mode="idle"}[$__rate_interval]))', '{{instance}}'],
  ], 'Of all cores.'),
  graph('Memory', 6, 'percentunit', [['1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes', '{{instance}}']], 'Taken. Caches count as free.'),
  graph('Disks', 6, 'percentunit', [
    [`1 - max by (instance, device) (node_filesystem_avail_bytes{${DISKS}} / node_filesystem_size_bytes)`, '{{instance}} {{device}}'],
  ], 'Taken. Tickets from 85 % on, pages from 95 % on, or when it is full within four hours.'),
  graph('Time that disks are busy', 6, 'percentunit', [['rate(node_disk_io_time_seconds_total[$__rate_interval])', '{{instance}} {{device}}']]),
]

const databases = [
  graph('WAL written', 6, 'Bps', [['max by (source) (delta(cdc_relay_wal_position_bytes[1m])) / 60', '{{source}}']], 'As the relay sees it.'),
  graph('WAL retained for the slot', 6, 'bytes', [['max by (source) (cdc_relay_wal_retained_bytes)', '{{source}}']]),
  graph('WAL that is not emitted', 6, 'bytes', [['max by (source) (cdc_relay_lag_bytes)', '{{source}}']]),
  graph('Last answer', 6, 's', [['time() - max by (source) (cdc_relay_slot_watched_timestamp_seconds)', '{{source}}']], 'The relay asks every five seconds.'),
]

const postgres = [
  graph('Connections', 6, 'short', [
    ['sum by (database) (postgres_connections_count)', '{{database}}'],
    ['max(postgres_limits_connections)', 'the most'],
  ]),
  graph('WAL on disk', 6, 'bytes', [
    ['max(postgres_wal_bytes)', 'WAL'],
    ['max by (slot_name) (postgres_slot_retained_bytes)', 'for {{slot_name}}'],
    ['max(postgres_limits_wal_bytes)', 'max_wal_size'],
  ]),
  graph('Size of databases', 6, 'bytes', [['max by (database) (postgres_size_bytes)', '{{database}}']]),
  graph('Transactions', 6, 'ops', [rate('postgres_database_commits_total', 'database')], 'Commits.'),
  graph('Found in shared buffers', 6, 'percentunit', [
    [
      'sum by (database) (rate(postgres_database_blocks_hit_total[$__rate_interval])) / sum by (database) (rate(postgres_database_blocks_hit_total[$__rate_interval]) + rate(postgres_database_blocks_read_total[$__rate_interval]))',
      '{{database}}',
    ],
  ]),
  graph('Locks', 6, 'short', [
    ['max(postgres_locks_held)', 'held'],
    ['max(postgres_locks_awaited)', 'awaited'],
  ]),
  graph('Oldest open transaction', 6, 's', [['max(postgres_transactions_oldest_seconds)', 'open for']], 'Vacuum removes nothing that it may still see.'),
  graph('Age of the oldest row that is not frozen', 6, 'short', [
    ['max by (database) (postgres_database_transaction_age)', '{{database}}'],
  ], 'In transactions. Autovacuum freezes from 200,000,000 on.'),
]

const kafka = [
  number('Partitions without a leader', 4, 'short', 'sum(kafka_offline_partitions)', good(1), { description: 'Nobody can write or read them.' }),
  number('Partitions that cannot be written to', 4, 'short', 'sum(kafka_under_min_isr_partitions)', good(1), {
    description: 'Too few replicas are in step.',
  }),
  number('Partitions that lack a replica', 4, 'short', 'sum(kafka_under_replicated_partitions)', [['green'], ['orange', 1]]),
  number('Idle request threads', 4, 'percentunit', 'min(kafka_request_handlers_idle_ratio)', [['red'], ['orange', 0.3], ['green', 0.5]]),
  number('On disk', 8, 'bytes', 'sum(kafka_log_bytes)', [['green']]),
  graph('Records', 6, 'ops', [['sum by (instance) (rate(kafka_messages_in_total[$__rate_interval]))', '{{instance}}']], 'Produced.'),
  graph('Bytes', 6, 'Bps', [
    ['sum(rate(kafka_bytes_in_total[$__rate_interval]))', 'in'],
    ['sum(rate(kafka_bytes_out_total[$__rate_interval]))', 'out'],
  ]),
  graph('Time of a request, p99', 6, 's', [['max by (request) (kafka_request_p99_seconds)', '{{request}}']], 'A fetch waits for records, up to its own limit.'),
  graph('The largest topics', 6, 'bytes', [['topk(5, sum by (topic) (kafka_log_bytes))', '{{topic}}']]),
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

const redis = [
  graph('Memory', 6, 'bytes', [
    ['redis_memory_used_bytes', 'used'],
    ['redis_memory_max_bytes', 'the most'],
  ]),
  graph('Commands', 6, 'ops', [['rate(redis_commands_processed_total[$__rate_interval])', '{{instance}}']]),
  graph('Keys', 6, 'short', [['sum by (instance) (redis_db_keys)', '{{instance}}']], 'Ids of charges that ended.'),
  graph('Evicted keys, in an hour', 6, 'short', [['increase(redis_evicted_keys_total[1h])', '{{instance}}']], 'The memory is full. That costs time, and nothing else.'),
]

// An exporter's figures of a process are those of its own.
const own = (query) =>
  [['!~', '{{instance}}'], ['=~', 'exporter of {{instance}}']].map(([is, legend]) => [query(`{job${is}"node|postgres|redis"}`), legend])

const processes = [
  graph('CPU', 6, 'percentunit', own((jobs) => `rate(process_cpu_seconds_total${jobs}[$__rate_interval])`), 'Of one core.'),
  graph('Memory', 6, 'bytes', own((jobs) => `process_resident_memory_bytes${jobs}`)),
  graph('Open files', 6, 'short', own((jobs) => `process_open_fds${jobs}`)),
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
  description: 'Machines, the edge, Postgres, Kafka, RabbitMQ, Redis, processes. Much of it comes from exporters.',
  rows: [
    { title: 'Up', panels: up },
    { title: 'Machines', panels: machines },
    { title: 'The edge', panels: edge },
    { title: 'Databases, as the relay sees them', panels: databases },
    { title: 'Postgres', panels: postgres },
    { title: 'Kafka', panels: kafka },
    { title: 'RabbitMQ', panels: rabbitmq },
    { title: 'Redis', panels: redis },
    { title: 'Processes', panels: processes },
    { title: 'Prometheus', panels: scraping },
  ],
}
