-- The notifier's database: whom to notify, and one row per terminal payment and channel.

create table contacts (
    user_id uuid        not null,
    email   text,
    since   timestamptz not null default now(),
    constraint contacts_pkey primary key (user_id),
    constraint contacts_since_address check (email is not null or since = 'infinity')
);
comment on table contacts is 'The e-mail address of a user. A person is erased by setting it to null.';
comment on column contacts.since is 'Payments that ended before this are not notified; infinity without an address.';

create table endpoints (
    channel         text        not null,
    url             text        not null,
    revision        integer     not null default 1,
    secret          text        not null,
    previous_secret text,
    previous_until  timestamptz,
    since           timestamptz not null default now(),
    failing_since   timestamptz,
    disabled_at     timestamptz,
    disabled_reason text,
    removed_at      timestamptz,
    constraint endpoints_pkey primary key (channel),
    constraint endpoints_channel_is_none_of_ours check (channel <> 'email'),
    constraint endpoints_previous_secret_ends check ((previous_secret is null) = (previous_until is null)),
    constraint endpoints_disabled_for_a_reason check ((disabled_at is null) = (disabled_reason is null)),
    constraint endpoints_disabled_reason_known check (disabled_reason in ('gone', 'failing'))
);
comment on table endpoints is 'URLs of app backends, each notified of every terminal payment by a signed webhook.';
comment on column endpoints.channel is 'The name that an operator gave it.';
comment on column endpoints.revision is
    'Increased by every PUT. The result of an attempt at an earlier revision says nothing about this one.';
comment on column endpoints.secret is 'whsec_…, which signs the webhooks. Nobody but the notifier reads this column.';
comment on column endpoints.previous_secret is
    'The one before the last rotation: until previous_until it signs as well.';
comment on column endpoints.since is 'Payments that ended before this are not notified.';
comment on column endpoints.failing_since is
    'The first failure after the last success; null while deliveries succeed.';
comment on column endpoints.disabled_at is
    'Set by a 410 or after days of failures: notifications wait until an operator enables the endpoint.';
comment on column endpoints.removed_at is
    'Set by an operator: there are no further notifications, and none that wait are delivered.';

create table notifications (
    payment_id   uuid        not null,
    channel      text        not null,
    user_id      uuid        not null,
    version      integer     not null,
    event        text        not null,
    service_id   text        not null,
    amount       bigint      not null,
    reason       text,
    ended_at     timestamptz not null,
    attempts     integer     not null default 0,
    due_at       timestamptz not null default now(),
    delivered_at timestamptz,
    failed_at    timestamptz,
    last_error   text,
    created_at   timestamptz not null default now(),
    constraint notifications_pkey primary key (payment_id, channel),
    constraint notifications_event_known check (event in ('completed', 'rejected', 'failed', 'cancelled')),
    constraint notifications_ended_once check (delivered_at is null or failed_at is null)
)
-- Most rows are history. The default would let dead entries of the work list's index wait for a fifth of all history.
with (autovacuum_vacuum_scale_factor = 0.01);
comment on table notifications is 'One row per terminal payment and channel, whatever is delivered how often.';
comment on column notifications.channel is '`email`, or the channel of an endpoint.';
comment on column notifications.version is
    'The payment''s last version. With payment_id it is the id of the message, the same at every attempt.';
comment on column notifications.attempts is
    'Attempts so far; the result of an attempt that failed is recorded by compare-and-set on it.';
comment on column notifications.due_at is 'The next attempt; while one is under way, the end of its lease.';
comment on column notifications.failed_at is 'It was given up: replay makes it due again.';
comment on column notifications.last_error is 'A category, never the receiver''s text: that may name a person.';

-- The work list. Its columns are updated, so these updates touch the indexes. That is the price of an order by due time
-- that instances share, and it is paid by deliveries, not by the saga. Rows that have ended are not in it.
create index notifications_due on notifications (channel, due_at) where delivered_at is null and failed_at is null;
-- Replay of what was given up.
create index notifications_failed on notifications (channel, ended_at) where failed_at is not null;

create table parked (
    parked_id   text        not null,
    source      text        not null,
    message_key text,
    type        text,
    headers     jsonb       not null,
    body        bytea       not null,
    reason      text        not null,
    parked_at   timestamptz not null default now(),
    constraint parked_pkey primary key (parked_id)
);
comment on table parked is
    'Messages that cannot be applied, inserted in the transaction of their batch. The saga does not wait for them.';
comment on column parked.parked_id is
    'Where it was read: topic/partition/offset. Parking the same message again changes nothing.';
comment on column parked.source is 'The topic it came from.';

-- What a payment was, and when a row was created, nobody changes.
grant select, insert on contacts, endpoints, notifications, parked to notifier;
grant update (email, since) on contacts to notifier;
grant update (url, revision, secret, previous_secret, previous_until, since, failing_since, disabled_at,
              disabled_reason, removed_at)
   on endpoints to notifier;
grant update (attempts, due_at, delivered_at, failed_at, last_error) on notifications to notifier;
-- The audit counts; it reads neither addresses nor secrets.
grant select on notifications, parked, refinery_schema_history to coro_checker;
grant select (user_id, since) on contacts to coro_checker;
grant select (channel, revision, since, failing_since, disabled_at, disabled_reason, removed_at)
   on endpoints to coro_checker;
