-- What can be paid leaves this database: ServiceTopic names the services for subscribers and for search.
--
-- Services are changed by hand, so the database itself makes each update a transition: version + 1, and the event. An
-- operator cannot forget it, and no two contents have the same event id.
alter table services
    add column event   text    not null default 'added',
    add column version integer not null default 1,
    add constraint services_version_positive check (version >= 1),
    add constraint services_event_known check (event = case version when 1 then 'added' else 'changed' end);
comment on column services.service_id is 'The service as payments name it; it never changes.';
comment on column services.name is 'What people call it: shown by apps, and found by search.';
comment on column services.event is 'What happened last: the event this version of the row emits.';
comment on column services.version is '1, 2, 3 ... without gaps: every update is a transition.';

create function services_transition() returns trigger language plpgsql as $$
begin
    if new.service_id <> old.service_id then
        raise exception 'a service keeps its service_id'
            using errcode = 'integrity_constraint_violation',
                  hint = 'Payments name it. Add another service, and disable this one.';
    end if;
    new.version := old.version + 1;
    new.event := 'changed';
    return new;
end
$$;
comment on function services_transition() is 'Makes each update of a service a transition.';
create trigger services_transition before update on services
    for each row execute function services_transition();

-- The topic keeps the last version of each service. One that was removed and added again would begin at version 1, with
-- another content under an id that is known already, and subscribers would keep the old one.
create function services_stay() returns trigger language plpgsql as $$
begin
    raise exception 'services are not removed'
        using errcode = 'integrity_constraint_violation',
              hint = 'Payments and events name them. Disable it: update services set enabled = false.';
end
$$;
comment on function services_stay() is 'Keeps every service that was ever added.';
create trigger services_stay before delete or truncate on services
    for each statement execute function services_stay();

grant select on services to coro_relay;
alter publication coro_events add table services (service_id, name, enabled, event, version);
