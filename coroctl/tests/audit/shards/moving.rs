//! A mover on real servers, killed, hindered and aborted at each of its steps.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coroctl::shard::mover::record::{self, Move};
use coroctl::shard::mover::{Mover, RelayListener, Shard, ShardUrl, observe};
use coroctl::shard::moves::{Attempt, Outcome, Step};
use coroctl::shard::replication;
use saga::shards::bucket::Bucket;
use sql::harness::Harness;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::relay::{Relay, drop_slot, make_slot};
use super::{Pair, account, deposit, json, superuser_url, users};
use crate::fixture::superuser;

/// More than a step takes on a busy machine.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);

/// A move of one bucket between two databases that have not begun it.
pub async fn described(from: &Harness, to: &Harness, move_id: Uuid, bucket: Bucket) -> Move {
    let (source, target) = (superuser(from).await, superuser(to).await);
    let buckets = [bucket.number()];
    let epoch = async |client: &Client| record::ownership(client, &buckets).await.unwrap()[0].epoch;
    let incarnation = async |client: &Client| -> String {
        client.query_one("select incarnation()", &[]).await.unwrap().get(0)
    };
    Move {
        move_id,
        buckets: vec![bucket],
        attempts: vec![Attempt { source_epoch: epoch(&source).await, target_epoch: epoch(&target).await }],
        incarnations: [incarnation(&source).await, incarnation(&target).await],
        operator: "ada".to_owned(),
        relay_slots: observe::relay_slots(&source).await.unwrap(),
        tables: vec!["accounts".to_owned(), "ledger".to_owned()],
        schema_version: source.query_one(record::SCHEMA_VERSION, &[]).await.unwrap().get(0),
    }
}

/// A mover of one bucket between two databases, as a new process would begin or resume it. The relay is that of the stack.
pub async fn mover(from: &Harness, to: &Harness, move_id: Uuid, bucket: Bucket) -> Mover {
    let relay = std::env::var("RELAY_ADMIN_URL").expect("RELAY_ADMIN_URL");
    mover_with(Some(relay), [from, to], described(from, to, move_id, bucket).await).await
}

async fn mover_with(url: Option<String>, [from, to]: [&Harness; 2], moved: Move) -> Mover {
    let relay = RelayListener { url, source: None };
    let shard = async |name: &str, harness: &Harness| {
        let url = ShardUrl { name: name.to_owned(), url: superuser_url(harness) };
        Shard::connect(&url).await.unwrap()
    };
    // The session of a mover that was killed may live a moment longer.
    for _ in 0..100 {
        let shards = (shard("from", from).await, shard("to", to).await);
        if let Ok(mover) = Mover::new(shards.0, shards.1, moved.clone(), relay.clone(), report).await {
            return mover;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the shards stay locked");
}

static REPORTED: Mutex<String> = Mutex::new(String::new());

fn report(line: &str) {
    eprintln!("{line}");
    let mut reported = REPORTED.lock().unwrap();
    reported.push_str(line);
}

/// Lets the mover begin so many different steps, one after the other, and carry out all of them.
async fn until_step(mover: &mut Mover, steps: u128) -> Option<Outcome> {
    let (mut begun, mut last) = (0, None);
    while begun < steps {
        let ended = mover.advance().await.unwrap();
        if ended.is_some() {
            return ended;
        }
        if mover.last() != last {
            (begun, last) = (begun + 1, mover.last());
        }
    }
    None
}

/// Lets the mover go on until it has carried out the step.
pub async fn advance_to(mover: &mut Mover, step: Step) {
    let advances = async {
        while mover.last() != Some(step) {
            assert_eq!(mover.advance().await.unwrap(), None, "ended before {step:?}");
        }
    };
    tokio::time::timeout(STEP_TIMEOUT, advances).await.unwrap_or_else(|_| panic!("never {step:?}"));
}

pub async fn owns(harness: &Harness, bucket: Bucket) -> bool {
    let select = "select owned from owned_buckets where bucket = $1";
    superuser(harness).await.query_one(select, &[&bucket.number()]).await.unwrap().get(0)
}

/// A service that adds to an account without pause, wherever its bucket is. Returns how often it was answered.
async fn writes(urls: [String; 2], user: Uuid, stops: Arc<AtomicBool>) -> i64 {
    let mut shards = Vec::new();
    for url in urls {
        shards.push(sql::connect(&url).await.unwrap());
    }
    let bucket = Bucket::of(user).number();
    let (mut at, mut epoch, mut written) = (0, 0_i64, 0);
    while !stops.load(Ordering::Relaxed) {
        let update = "update accounts set available = available + 1
                       where user_id = $1 and require_ownership(array[$2::int2], array[$3::int8])";
        match shards[at].execute(update, &[&user, &bucket, &epoch]).await {
            Ok(rows) => {
                assert_eq!(rows, 1, "fewer rows than there are");
                written += 1;
            }
            Err(error) => {
                assert_eq!(error.code().map(|code| code.code()), Some("SB001"), "{error:?}");
                let owned = "select epoch from owned_buckets where bucket = $1 and owned";
                for (shard, client) in shards.iter().enumerate() {
                    if let Some(row) = client.query_opt(owned, &[&bucket]).await.unwrap()
                        && row.get::<_, i64>(0) > epoch
                    {
                        (at, epoch) = (shard, row.get(0));
                    }
                }
                // While nobody owns the bucket.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }
    written
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_killed_before_any_step_is_resumed_and_no_write_is_lost() {
    let Some((_turn, pair)) = Pair::moving().await else { return };
    let [user, other] = users();
    let bucket = Bucket::of(user);
    deposit(&superuser(&pair.one).await, user, 0).await;
    deposit(&superuser(&pair.one).await, other, 7).await;
    let stops = Arc::new(AtomicBool::new(false));
    let urls = [pair.one.service_url().unwrap(), pair.two.service_url().unwrap()];
    let writer = tokio::spawn(writes(urls, user, stops.clone()));
    let (mut from, mut to) = (&pair.one, &pair.two);
    // There and back, each time killed one step later.
    for killed in 0.. {
        let move_id = Uuid::new_v4();
        let mut first = mover(from, to, move_id, bucket).await;
        let ended = until_step(&mut first, killed).await;
        drop(first);
        if ended.is_some() {
            break;
        }
        let mut second = mover(from, to, move_id, bucket).await;
        assert_eq!(second.run().await.unwrap(), Outcome::Moved, "killed before step {killed}");
        assert_eq!(account(from, user).await, None, "killed before step {killed}");
        drop(second);
        (from, to) = (to, from);
    }
    stops.store(true, Ordering::Relaxed);
    let written = writer.await.unwrap();
    let found = pair.accounts(user).await;
    assert!(written > 0 && found.contains(&Some(written)) && found.contains(&None), "{written}, {found:?}");
    assert_eq!(account(&pair.one, other).await, Some(7));
    let verified = pair.shard(&["verify", "--json"]);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    assert_eq!(json(&verified)["replication"].as_array().unwrap().len(), 0, "{verified:?}");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aborted_move_leaves_everything_as_it_was() {
    let Some((_turn, pair)) = Pair::moving().await else { return };
    let [user, _] = users();
    deposit(&superuser(&pair.one).await, user, 5).await;
    for aborted in 1.. {
        let move_id = Uuid::new_v4();
        let mut first = mover(&pair.one, &pair.two, move_id, Bucket::of(user)).await;
        assert_eq!(until_step(&mut first, aborted).await, None);
        drop(first);
        if !record::request_abort(&superuser(&pair.one).await, move_id).await.unwrap() {
            // A fence that was lifted takes steps too: with fewer of them this one had ended before it was aborted.
            let moved = pair.accounts(user).await;
            assert_eq!(moved, [None, Some(5)], "aborted after step {aborted}");
            break;
        }
        let mut second = mover(&pair.one, &pair.two, move_id, Bucket::of(user)).await;
        let outcome = second.run().await.unwrap();
        let moved = pair.accounts(user).await;
        if outcome == Outcome::Moved {
            // The grant had come.
            assert_eq!(moved, [None, Some(5)], "aborted after step {aborted}");
            break;
        }
        assert_eq!(moved, [Some(5), None], "aborted after step {aborted}");
    }
    pair.finish().await;
}

/// A mover that is killed under the fence leaves no word of when it came up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fence_that_a_killed_mover_left_is_lifted_while_a_slot_does_not_move() {
    let Some((_turn, pair)) = Pair::moving().await else { return };
    let [user, _] = users();
    let bucket = Bucket::of(user);
    deposit(&superuser(&pair.one).await, user, 5).await;
    let move_id = Uuid::new_v4();
    let mut first = mover(&pair.one, &pair.two, move_id, bucket).await;
    advance_to(&mut first, Step::Fence).await;
    drop(first);
    let source = superuser(&pair.one).await;
    let still = format!("{}_still", pair.one.name());
    make_slot(&source, &still).await;
    assert!(!owns(&pair.one, bucket).await && !owns(&pair.two, bucket).await);

    let mut second = mover(&pair.one, &pair.two, move_id, bucket).await;
    advance_to(&mut second, Step::TakeBack).await;
    assert!(owns(&pair.one, bucket).await);
    drop_slot(&source, &still).await;
    assert_eq!(second.run().await.unwrap(), Outcome::Moved);
    assert_eq!(account(&pair.two, user).await, Some(5));
    drop((second, source));
    pair.finish().await;
}

/// A service that stands still in a transaction while its bucket is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_outlives_the_fence_is_ended_and_its_write_is_on_no_shard() {
    let Some((_turn, pair)) = Pair::moving().await else { return };
    let [user, _] = users();
    deposit(&superuser(&pair.one).await, user, 5).await;
    let service = sql::connect(&pair.one.service_url().unwrap()).await.unwrap();
    let mut mover = mover(&pair.one, &pair.two, Uuid::new_v4(), Bucket::of(user)).await;
    advance_to(&mut mover, Step::Fence).await;
    service.batch_execute("begin").await.unwrap();
    let update = "update accounts set available = available + 1 where user_id = $1";
    assert_eq!(service.execute(update, &[&user]).await.unwrap(), 1);
    advance_to(&mut mover, Step::EndTransactions).await;
    let ended = service.batch_execute("commit").await.unwrap_err();
    assert!(ended.is_closed() || ended.code() == Some(&SqlState::ADMIN_SHUTDOWN), "{ended:?}");
    assert_eq!(mover.run().await.unwrap(), Outcome::Moved);
    assert_eq!(pair.accounts(user).await, [None, Some(5)]);
    drop((mover, service));
    pair.finish().await;
}

/// A server that restarts, a proxy that gives up: what was sent is done or not, and the rows say which.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_under_the_fence_end_no_move() {
    let Some((_turn, pair)) = Pair::moving().await else { return };
    let [user, _] = users();
    deposit(&superuser(&pair.one).await, user, 5).await;
    let mut mover = mover(&pair.one, &pair.two, Uuid::new_v4(), Bucket::of(user)).await;
    advance_to(&mut mover, Step::Fence).await;
    assert!(mover.is_fenced());
    for harness in [&pair.one, &pair.two] {
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                    where application_name = 'coro-move' and datname = current_database()";
        let ended: i64 = superuser(harness).await.query_one(end, &[]).await.unwrap().get(0);
        assert_eq!(ended, 1);
    }
    assert_eq!(mover.run().await.unwrap(), Outcome::Moved);
    assert!(!mover.is_fenced());
    assert_eq!(pair.accounts(user).await, [None, Some(5)]);
    drop(mover);
    pair.finish().await;
}

/// The grant finds it gone. The buckets are taken back, and the rows are copied anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_loses_its_subscription_under_the_fence_is_barred() {
    let Some((_turn, pair)) = Pair::moving().await else { return };
    let [user, _] = users();
    let move_id = Uuid::new_v4();
    deposit(&superuser(&pair.one).await, user, 5).await;
    let mut mover = mover(&pair.one, &pair.two, move_id, Bucket::of(user)).await;
    advance_to(&mut mover, Step::Fence).await;
    let unsubscribe = replication::drop_subscription(move_id).join("; ");
    superuser(&pair.two).await.batch_execute(&format!("begin; {unsubscribe}; commit")).await.unwrap();
    advance_to(&mut mover, Step::TakeBack).await;
    assert!(owns(&pair.one, Bucket::of(user)).await);
    assert_eq!(mover.run().await.unwrap(), Outcome::Moved);
    assert_eq!(pair.accounts(user).await, [None, Some(5)]);
    drop(mover);
    pair.finish().await;
}

/// Its later rows would be emitted at the target before those that wait for their release.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fence_comes_up_while_it_is_not_known_whether_keys_are_halted() {
    let Some((_turn, pair)) = Pair::moving().await else { return };
    let [user, _] = users();
    let bucket = Bucket::of(user);
    deposit(&superuser(&pair.one).await, user, 5).await;
    let move_id = Uuid::new_v4();
    REPORTED.lock().unwrap().clear();
    let moved = described(&pair.one, &pair.two, move_id, bucket).await;
    let mut unasked = mover_with(None, [&pair.one, &pair.two], moved).await;
    let says = "does not say whether keys are halted";
    tokio::time::timeout(STEP_TIMEOUT, async {
        while !REPORTED.lock().unwrap().contains(says) {
            assert_eq!(unasked.advance().await.unwrap(), None);
        }
    })
    .await
    .expect("it never asked");
    assert!(owns(&pair.one, bucket).await);
    drop(unasked);
    let mut mover = mover(&pair.one, &pair.two, move_id, bucket).await;
    assert_eq!(mover.run().await.unwrap(), Outcome::Moved);
    drop(mover);
    pair.finish().await;
}

/// A fence would have to wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fence_comes_up_while_a_slot_of_the_relay_is_missing() {
    let Some((_turn, pair)) = Pair::moving().await else { return };
    let [user, _] = users();
    let bucket = Bucket::of(user);
    let source = superuser(&pair.one).await;
    deposit(&source, user, 5).await;
    REPORTED.lock().unwrap().clear();
    let gone = format!("{}_gone", pair.one.name());
    make_slot(&source, &gone).await;
    let mut mover = mover(&pair.one, &pair.two, Uuid::new_v4(), bucket).await;
    advance_to(&mut mover, Step::Subscribe).await;
    drop_slot(&source, &gone).await;
    let says = "its relay an unknown distance";
    let follows = "select coalesce(bool_and(srsubstate = 'r'), false)::text from pg_subscription_rel";
    let target = superuser(&pair.two).await;
    tokio::time::timeout(STEP_TIMEOUT, async {
        while !REPORTED.lock().unwrap().contains(says)
            || target.query_one(follows, &[]).await.unwrap().get::<_, String>(0) != "true"
        {
            assert_eq!(mover.advance().await.unwrap(), None);
        }
    })
    .await
    .expect("it never said so");
    for _ in 0..4 {
        mover.advance().await.unwrap();
        assert_eq!(mover.last(), Some(Step::AwaitCopy));
    }
    let relay = Relay::named(&pair.one, &gone).await;
    assert_eq!(mover.run().await.unwrap(), Outcome::Moved);
    relay.end().await;
    drop((mover, source, target));
    pair.finish().await;
}

/// A restore may take it away. Nothing bars a target without a record, whatever was applied to it meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_loses_its_record_under_the_fence_gets_one() {
    let Some((_turn, pair)) = Pair::moving().await else { return };
    let [user, _] = users();
    let move_id = Uuid::new_v4();
    deposit(&superuser(&pair.one).await, user, 5).await;
    let mut mover = mover(&pair.one, &pair.two, move_id, Bucket::of(user)).await;
    advance_to(&mut mover, Step::Fence).await;
    let target = superuser(&pair.two).await;
    let lose = "delete from moving_buckets;
                delete from moves;
                insert into refinery_schema_history (version, name, applied_on, checksum) values (99, 'test', '', '')";
    target.batch_execute(lose).await.unwrap();
    assert_eq!(mover.run().await.unwrap(), Outcome::Moved);
    assert!(record::read(&target, move_id).await.unwrap().is_some());
    assert_eq!(pair.accounts(user).await, [None, Some(5)]);
    drop((mover, target));
    pair.finish().await;
}
