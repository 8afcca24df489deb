//! A stack with one database of each service gets a second and a third shard while payments are made: nobody sees that they come, and they
//! take their parts of the buckets while processes are killed, and movers at their steps.

use std::process::Stdio;
use std::time::Duration;

use coroctl::stack::Stack;
use e2e::chaos::view::View;
use e2e::chaos::{self, Options};
use futures_util::future::join_all;
use serde_json::Value;
use stack::environment;
use stack::layout::Layout;
use stack::shards::kept::Kept;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::harness::{Harness, WAIT_TIMEOUT, binary};
use crate::sharded::{
    BALANCE, DISKS, MOVE_TIMEOUT, PAYMENTS, Service, all_complete_once, load, until, users_on,
};

/// 200 payments a second.
const INTERVAL: Duration = Duration::from_millis(5);
/// How long payments are made at that rate while buckets move.
const LOAD_SECONDS: u64 = 150;
const CHAOS: Options = Options {
    seed: 17,
    payments: 200 * LOAD_SECONDS as usize,
    kills: 16,
    rate: 200.0,
    users: 200,
    outage: Vec::new(),
    crash: Vec::new(),
    pause: Vec::new(),
};
/// Buckets of a move: few, so that there are more moves than places at which movers are killed.
const AT_A_TIME: usize = 40;
/// The beginnings of what a mover says before steps that every move has. It is killed when it has said so for the first time.
const KILLED_AT: [&str; 13] = [
    "the record is written",
    "rows of the buckets are removed from the target",
    "publication and slot are made",
    "the target subscribes",
    "rows are copied",
    "fence",
    "transactions at the source end",
    "the position of the source",
    "grant",
    "the source records the grant",
    "the subscription is removed",
    "rows of the buckets are removed from the source",
    "the record is closed",
];
/// A move is refused while the relay is away, and is asked for again.
const AGAIN_PAUSE: Duration = Duration::from_secs(1);

/// A run of a mover.
#[derive(Debug, PartialEq, Eq)]
enum Run {
    /// It said so, and was killed.
    Killed,
    Ended,
    /// It gave up, for a while or for good.
    Failed(String),
}

/// The moves of a service, each killed at another place.
struct Moves {
    service: Service,
    began: Instant,
    /// How many movers were killed at each place.
    killed: [usize; KILLED_AT.len()],
    /// How many of all of them while payments were made.
    under_load: usize,
}

impl Moves {
    /// The moves that are still to be made.
    async fn plan(&self) -> Vec<Value> {
        let plan = self.service.shard_command(&["plan", "--json"]).output().await.unwrap();
        assert!(plan.status.success(), "{plan:?}");
        serde_json::from_slice(&plan.stdout).unwrap()
    }

    /// Brings every bucket to where the plan has it.
    async fn all(&mut self) {
        let plan = self.plan().await;
        let mut places = (0..KILLED_AT.len()).cycle();
        for planned in &plan {
            let name = |key: &str| planned[key].as_str().unwrap().to_owned();
            for buckets in planned["buckets"].as_array().unwrap().chunks(AT_A_TIME) {
                let buckets = buckets.iter().map(Value::to_string).collect::<Vec<_>>().join(",");
                let place = places.next().unwrap();
                let shards = [name("from"), name("to")];
                let moved = self.one(&shards, &buckets, place);
                timeout(MOVE_TIMEOUT, moved).await.expect("a move does not end");
            }
        }
    }

    /// A move to its end, by movers of which the first is killed at this place.
    async fn one(&mut self, [from, to]: &[String; 2], buckets: &str, place: usize) {
        let begin = ["move", "--from", from, "--to", to, "--buckets", buckets];
        let mut end_at = Some(KILLED_AT[place]);
        let mut arguments: Vec<String> =
            [&begin[..], &DISKS].concat().iter().map(ToString::to_string).collect();
        let mut move_id = None;
        loop {
            let (run, named) = self.mover(&arguments, end_at).await;
            match run {
                Run::Ended => return,
                Run::Killed => {
                    self.killed[place] += 1;
                    self.under_load += usize::from(self.began.elapsed().as_secs() < LOAD_SECONDS);
                    end_at = None;
                }
                Run::Failed(why) => {
                    eprintln!("{why}");
                    sleep(AGAIN_PAUSE).await;
                }
            }
            move_id = named.or(move_id);
            // The records say whether it has begun, and whether it has ended.
            let open = self.service.shard_command(&["moves"]).output().await.unwrap();
            assert!(open.status.success(), "{open:?}");
            let open = String::from_utf8(open.stdout).unwrap();
            match &move_id {
                Some(id) if open.contains(id.as_str()) => {
                    arguments = vec!["resume".to_owned(), id.clone()];
                }
                Some(_) if self.has(to, buckets).await => return,
                _ => {}
            }
        }
    }

    /// Whether a shard has these buckets.
    async fn has(&self, shard: &str, buckets: &str) -> bool {
        let owners = self.service.owners().await;
        buckets.split(',').all(|bucket| owners[&bucket.parse::<i16>().unwrap()] == shard)
    }

    /// Runs a mover, which is killed when it says this. Returns the id of the move that it has begun, too.
    async fn mover(&self, arguments: &[String], end_at: Option<&str>) -> (Run, Option<String>) {
        let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let options = self.service.mover();
        // Whoever resumes a move is in its record.
        arguments.extend(if arguments[0] == "move" { &options[..] } else { &options[2..] });
        let mut command = self.service.shard_command(&arguments);
        let mut mover = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(mover.stdout.take().unwrap()).lines();
        let mut move_id = None;
        while let Some(line) = said.next_line().await.unwrap() {
            if let Some(begun) = line.strip_prefix("move ") {
                move_id = begun.split(' ').next().map(str::to_owned);
            }
            if end_at.is_some_and(|place| line.starts_with(place)) {
                mover.kill().await.unwrap();
                return (Run::Killed, move_id);
            }
        }
        let output = mover.wait_with_output().await.unwrap();
        let run = match output.status.success() {
            true => Run::Ended,
            false => Run::Failed(String::from_utf8_lossy(&output.stderr).into_owned()),
        };
        (run, move_id)
    }
}

/// The stack as it is now.
fn as_it_is() -> Stack {
    let variables = environment::variables(&Layout::from_env().unwrap()).unwrap();
    Stack::read(|name| Ok(variables.get(name).cloned())).unwrap()
}

/// `cargo stack up` with so many shards.
fn up(shards: usize) -> Command {
    let mut up = Command::new(binary("stack"));
    up.args(["up", "--yes", "--no-payment", "--shards", &shards.to_string(), "--programs"]).arg(binary(""));
    up.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    up
}

/// It is killed as soon as services may know the new shard, and operators do not yet.
async fn interrupted_up(shards: usize) {
    let mut up = up(shards).spawn().unwrap();
    let kept = || Kept::of(&Layout::from_env().unwrap());
    until("the shard is known", WAIT_TIMEOUT, || kept().known == shards).await;
    up.kill().await.unwrap();
    assert_eq!((kept().introduced, kept().count), (shards - 1, shards), "it was killed too late");
}

#[tokio::test]
#[ignore = "makes three shards of a stack without: cargo stack test --only shards --all"]
async fn shards_are_added_under_load_and_take_their_parts_while_processes_are_killed() {
    let harness = Harness::alone().await;
    let users = users_on(&harness, "one", 20).await;
    let paid = load(&harness, &users, INTERVAL);
    let added = async {
        let more = async || {
            let count = paid.accepted_count() + 200;
            until("payments are accepted", WAIT_TIMEOUT, || paid.accepted_count() >= count).await;
        };
        more().await;
        interrupted_up(2).await;
        for shards in [2, 3] {
            let up = up(shards).output().await.unwrap();
            assert!(up.status.success(), "{up:?}");
            more().await;
        }
        paid.stop();
    };
    tokio::join!(paid.run(), added);
    assert_eq!(paid.failed(), [""; 0]);
    all_complete_once(&harness, &users, &paid.accepted()).await;

    let (stack, began) = (as_it_is(), Instant::now());
    let moves = |service| Moves { service, began, killed: [0; KILLED_AT.len()], under_load: 0 };
    let mut services = [PAYMENTS, BALANCE].map(moves);
    let (chaos, view) = (CHAOS, View::of(CHAOS.payments));
    let moved = join_all(services.iter_mut().map(Moves::all));
    let (report, _) = tokio::join!(chaos::report(&stack, &chaos, &view), moved);
    let report = report.unwrap();
    report.print();
    report.verdict().unwrap();
    for moves in services {
        assert!(moves.killed.iter().all(|times| *times > 0), "{:?}", moves.killed);
        // How many depends on the machine.
        assert!(moves.under_load > KILLED_AT.len() / 2, "{} of {:?}", moves.under_load, moves.killed);
        assert_eq!(moves.plan().await, [Value::Null; 0]);
        moves.service.verifies().await;
    }
    let audited = Command::new(binary("stack")).arg("audit").output().await.unwrap();
    assert!(audited.status.success(), "{}", String::from_utf8_lossy(&audited.stdout));
}
