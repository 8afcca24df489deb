//! The shards of payments and balance (`up --shards 2`), each with a Postgres of its own.
//!
//! * The first shard's is the Postgres that every stack has. The processor's database is there, and so is everything else.
//! * Before the first service starts the buckets are shared out (`coroctl shard distribute`). A shard that is added later owns none until
//!   some are moved to it (`coroctl shard move`). None is taken away before `clean`. [`kept`]: how far it has come.
//! * The relay reads each shard as a source of its own: its routes file is the repository's, with more sources.

pub mod kept;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::database_url::{postgres_url, postgres_url_at};
use crate::layout::{Layout, Port, write_private};
use crate::login::Login;
use kept::Kept;

pub const SHARDS_MAX: i64 = 4;
/// The databases that several shards have.
pub const DATABASES: [&str; 2] = ["payments", "balance"];
/// The name of the first shard, and of its server.
const FIRST: &str = "one";
const FIRST_SERVER: &str = "postgres";
/// A shard that has a server of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FurtherShard {
    Two,
    Three,
    Four,
}

impl FurtherShard {
    const ALL: [Self; 3] = [Self::Two, Self::Three, Self::Four];

    /// Those of a stack.
    pub fn of(layout: &Layout) -> Vec<Self> {
        Self::first(Kept::of(layout).count)
    }

    /// Those that services know.
    fn known(layout: &Layout) -> Vec<Self> {
        let kept = Kept::of(layout);
        // None is known before the first service starts, and all of them then.
        Self::first(if kept.known == 0 { kept.count } else { kept.known })
    }

    /// Those that operators know.
    fn introduced(layout: &Layout) -> Vec<Self> {
        let kept = Kept::of(layout);
        Self::first(if kept.introduced == 0 { kept.count } else { kept.introduced })
    }

    /// Those of the first `count` shards.
    fn first(count: usize) -> Vec<Self> {
        Self::ALL.into_iter().take(count.saturating_sub(1)).collect()
    }

    /// Those of a stack that are not among its first `count` shards.
    pub fn after(layout: &Layout, count: usize) -> Vec<Self> {
        Self::of(layout).into_iter().skip(count.saturating_sub(1)).collect()
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Two => "two",
            Self::Three => "three",
            Self::Four => "four",
        }
    }

    /// Whether a process of a stack is the server of a shard, of the first one too.
    pub fn is_server(name: &str) -> bool {
        name == FIRST_SERVER || Self::ALL.iter().any(|shard| shard.server() == name)
    }

    /// The name of its server.
    pub fn server(self) -> &'static str {
        match self {
            Self::Two => "postgres-two",
            Self::Three => "postgres-three",
            Self::Four => "postgres-four",
        }
    }

    pub fn port(self) -> Port {
        match self {
            Self::Two => Port::PostgresTwo,
            Self::Three => Port::PostgresThree,
            Self::Four => Port::PostgresFour,
        }
    }

    /// The relay's names of its sources, in the order of [`DATABASES`].
    pub fn sources(self) -> [String; 2] {
        DATABASES.map(|database| format!("{database}-{}", self.name()))
    }

    /// The variables of the relay's routes file with its URLs, in the order of [`DATABASES`].
    fn relay_variables(self) -> [&'static str; 2] {
        match self {
            Self::Two => ["PAYMENTS_TWO_RELAY_URL", "BALANCE_TWO_RELAY_URL"],
            Self::Three => ["PAYMENTS_THREE_RELAY_URL", "BALANCE_THREE_RELAY_URL"],
            Self::Four => ["PAYMENTS_FOUR_RELAY_URL", "BALANCE_FOUR_RELAY_URL"],
        }
    }
}

/// Whether services know several shards.
fn are_several(layout: &Layout) -> bool {
    !FurtherShard::known(layout).is_empty()
}

/// Keeps the number of shards that is wanted, on a stack that is to be highly available or encrypted, or neither.
///
/// # Errors
/// When the stack has data of more, or is not finished, or something is wanted that does not go together with several; nothing was changed
/// then.
pub fn choose(layout: &Layout, wanted: Option<usize>, ha: bool, tls: bool) -> Result<()> {
    Kept::ensure_readable(layout)?;
    let kept = Kept::of(layout);
    let wanted = wanted.unwrap_or(kept.count);
    if wanted > 1 {
        ensure!(!(ha || layout.is_ha()), "`--ha` and several shards do not go together yet");
        ensure!(!(tls || layout.is_encrypted()), "`--tls` and several shards do not go together yet");
    }
    if wanted == kept.count {
        return Ok(());
    }
    if !(layout.postgres_data().exists() || layout.is_ha()) {
        return Kept::new(wanted).keep(layout);
    }
    ensure!(
        kept.known > 0,
        "the buckets of this stack are not shared out among its {} shards yet: `cargo stack up` without --shards does that",
        kept.count
    );
    ensure!(
        wanted > kept.count,
        "this stack has {} shards, and none is taken away: `cargo stack clean`, then `cargo stack up --shards {wanted}`",
        kept.count
    );
    Kept { count: wanted, ..kept }.keep(layout)
}

/// Refuses a command that knows one Postgres.
///
/// # Errors
/// When the stack has several shards.
pub fn ensure_one(layout: &Layout, command: &str) -> Result<()> {
    ensure!(
        layout.shard_count() == 1,
        "`cargo stack {command}` knows one Postgres, and this stack has {} shards: it needs a stack without --shards",
        layout.shard_count()
    );
    Ok(())
}

/// The value of `PAYMENTS_DATABASE_URL` and its like, for operators.
///
/// # Errors
/// As [`Login::password`].
pub fn tools_url(layout: &Layout, database: &str) -> Result<String> {
    url_or_list(layout, &FurtherShard::introduced(layout), database)
}

/// The same for the auditor, which knows what the services know.
///
/// # Errors
/// As [`Login::password`].
pub fn auditor_url(layout: &Layout, database: &str) -> Result<String> {
    url_or_list(layout, &FurtherShard::known(layout), database)
}

fn url_or_list(layout: &Layout, further: &[FurtherShard], database: &str) -> Result<String> {
    match further {
        [] => postgres_url(layout, database, Login::Checker),
        _ => list_of(layout, further, database, Login::Checker),
    }
}

/// The shards of a database that operators know, as `SHARDS` takes them: `NAME=URL` of each.
///
/// # Errors
/// As [`Login::password`].
pub fn list(layout: &Layout, database: &str, role: Login) -> Result<String> {
    list_of(layout, &FurtherShard::introduced(layout), database, role)
}

/// The first shard and these, as [`list`].
///
/// # Errors
/// As [`Login::password`].
pub fn list_of(layout: &Layout, further: &[FurtherShard], database: &str, role: Login) -> Result<String> {
    let mut shards = vec![format!("{FIRST}={}", postgres_url(layout, database, role)?)];
    for shard in further {
        shards.push(format!("{}={}", shard.name(), postgres_url_at(layout, shard.port(), database, role)?));
    }
    Ok(shards.join(" "))
}

/// The setting by which a service knows its shards, where it has several.
///
/// # Errors
/// As [`Login::password`].
pub fn setting(layout: &Layout, database: &str, role: Login) -> Result<Option<(&'static str, String)>> {
    match are_several(layout) {
        true => Ok(Some(("SHARDS", list_of(layout, &FurtherShard::known(layout), database, role)?))),
        false => Ok(None),
    }
}

/// The address of each server with databases of the services.
pub fn addresses(layout: &Layout) -> String {
    let further = FurtherShard::of(layout).into_iter().map(FurtherShard::port);
    let ports = [Port::Postgres].into_iter().chain(further);
    ports.map(|port| format!("127.0.0.1:{}", layout.port(port))).collect::<Vec<_>>().join(", ")
}

/// The superuser's URL of each server, for `migrate`.
///
/// # Errors
/// As [`Login::password`].
pub fn admin_urls(layout: &Layout) -> Result<Vec<String>> {
    let further = FurtherShard::of(layout).into_iter().map(FurtherShard::port);
    let ports = [Port::Postgres].into_iter().chain(further);
    ports.map(|port| postgres_url_at(layout, port, "postgres", Login::Superuser)).collect()
}

/// The URLs of the relay's further sources, by the variables of its routes file. Shards that may be added are among them: a process gets its
/// variables once.
///
/// # Errors
/// As [`Login::password`].
pub fn relay_urls(layout: &Layout) -> Result<Vec<(&'static str, String)>> {
    let mut urls = Vec::new();
    if !are_several(layout) {
        return Ok(urls);
    }
    for shard in FurtherShard::ALL {
        for (database, variable) in DATABASES.into_iter().zip(shard.relay_variables()) {
            urls.push((variable, postgres_url_at(layout, shard.port(), database, Login::Relay)?));
        }
    }
    Ok(urls)
}

/// The relay's routes file: that of these sources, or one of the stack's own that has the further shards as well.
pub fn routes_file(layout: &Layout, sources: &Path) -> PathBuf {
    match are_several(layout) {
        true => layout.dir.join("relay.toml"),
        false => sources.join(ROUTES),
    }
}

const ROUTES: &str = "cdc-relay/relay.toml";
/// The partitions of the topics of the saga, which are chosen when these are made.
const PARTITIONS_OF_ONE: &str = "\npartitions = 4\n";
const PARTITIONS_OF_SEVERAL: &str = "\npartitions = 64\n";

/// Writes the stack's own routes file, from that of these sources, where the stack has several shards.
///
/// # Errors
/// When that one cannot be read, or the new one not written.
pub fn write_routes(layout: &Layout, sources: &Path) -> Result<()> {
    if !are_several(layout) {
        return Ok(());
    }
    let path = sources.join(ROUTES);
    let mut text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if Kept::of(layout).born > 1 {
        text = text.replace(PARTITIONS_OF_ONE, PARTITIONS_OF_SEVERAL);
    }
    text.push_str(&further_sources(&FurtherShard::known(layout)));
    write_private(&routes_file(layout, sources), &text)
}

/// Another shard of a kind emits the same events: topics, `ce_source` and ids are the kind's.
fn further_sources(shards: &[FurtherShard]) -> String {
    let mut text =
        "\n# --- The further shards of this stack, which `cargo stack up --shards` added.\n".to_owned();
    for shard in shards {
        let of_kinds = DATABASES.into_iter().zip(shard.sources());
        for ((kind, source), variable) in of_kinds.zip(shard.relay_variables()) {
            let name = shard.name();
            text.push_str(&format!(
                "\n[[sources]]\nname = \"{source}\"\nkind = \"{kind}\"\nurl = \"${{{variable}}}\"\n\
                 synchronous = \"${{RELAY_SYNCHRONOUS:-off}}\"\nslot = \"cdc_relay_{kind}_{name}\"\n"
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::Instance;

    /// An empty stack in a folder of its own.
    fn layout(name: &str) -> Layout {
        let dir = std::env::temp_dir().join(format!("stack-shards-{name}-{}", std::process::id()));
        let layout = Layout::new(Some(dir.clone()), 22_000).unwrap();
        Layout { data: dir.join("data"), uid: None, ..layout }
    }

    fn chosen(layout: &Layout, wanted: Option<usize>) -> Result<()> {
        choose(layout, wanted, false, false)
    }

    #[test]
    fn a_stack_keeps_its_shards_and_gets_more_of_them() {
        let layout = layout("kept");
        chosen(&layout, None).unwrap();
        assert_eq!((layout.shard_count(), layout.shards_file().exists()), (1, false));
        chosen(&layout, Some(3)).unwrap();
        chosen(&layout, None).unwrap();
        assert_eq!(FurtherShard::of(&layout), [FurtherShard::Two, FurtherShard::Three]);
        // Nothing has been stored yet.
        chosen(&layout, Some(2)).unwrap();
        fs::create_dir_all(layout.postgres_data()).unwrap();
        chosen(&layout, Some(2)).unwrap();
        // Interrupted before the buckets were shared out: some may have been given up for a plan of two.
        let refused = chosen(&layout, Some(3)).unwrap_err().to_string();
        assert!(refused.contains("not shared out"), "{refused}");
        Kept { known: 2, introduced: 2, ..Kept::of(&layout) }.keep(&layout).unwrap();
        let refused = chosen(&layout, Some(1)).unwrap_err().to_string();
        assert!(refused.contains("has 2 shards") && refused.contains("cargo stack clean"), "{refused}");
        chosen(&layout, Some(3)).unwrap();
        assert_eq!(Kept::of(&layout), Kept { count: 3, known: 2, introduced: 2, born: 2 });
        // Its server is there, though nobody knows it.
        assert!(chosen(&layout, Some(2)).is_err() && ensure_one(&layout, "rotate").is_err());
        fs::remove_dir_all(&layout.dir).unwrap();
    }

    #[test]
    fn services_know_a_shard_that_has_given_up_its_buckets_and_operators_one_that_the_relay_reads() {
        let layout = layout("added");
        let known = || {
            write_routes(&layout, &layout.root).unwrap();
            let routes = fs::read_to_string(routes_file(&layout, &layout.root)).unwrap();
            let env = |name: &str| Instance::named(name).unwrap().spec(&layout).unwrap().env;
            let of_service = env("payments-svc").get("SHARDS").map_or(1, |shards| shards.split(' ').count());
            let of_auditor = env("auditor")["PAYMENTS_DATABASE_URL"].split(' ').count();
            let of_operators = list(&layout, "payments", Login::Superuser).unwrap().split(' ').count();
            assert_eq!(tools_url(&layout, "payments").unwrap().split(' ').count(), of_operators);
            assert_eq!(routes.matches("kind = \"payments\"").count(), of_service, "{routes}");
            assert_eq!(routes.matches(PARTITIONS_OF_SEVERAL).count(), 0, "it was born with one");
            [of_service, of_auditor, of_operators]
        };
        assert_eq!(known(), [1, 1, 1]);
        fs::create_dir_all(layout.postgres_data()).unwrap();
        for (wanted, added) in [(2, FurtherShard::Two), (3, FurtherShard::Three)] {
            chosen(&layout, Some(wanted)).unwrap();
            // An `up` that names no number goes on with it.
            chosen(&layout, None).unwrap();
            assert_eq!((layout.shard_count(), known()), (wanted, [wanted - 1; 3]));
            assert_eq!(FurtherShard::after(&layout, wanted - 1), [added]);
            Kept { known: wanted, ..Kept::of(&layout) }.keep(&layout).unwrap();
            assert_eq!(known(), [wanted, wanted, wanted - 1]);
            Kept { introduced: wanted, ..Kept::of(&layout) }.keep(&layout).unwrap();
            assert_eq!(known(), [wanted; 3]);
        }
        fs::remove_dir_all(&layout.dir).unwrap();
    }

    #[test]
    fn what_does_not_go_together_with_shards_is_refused_and_changes_nothing() {
        let layout = layout("refused");
        for (ha, tls, word) in [(true, false, "--ha"), (false, true, "--tls")] {
            let reason = choose(&layout, Some(2), ha, tls).unwrap_err().to_string();
            assert!(reason.contains(word), "{reason}");
            assert!(!layout.shards_file().exists());
        }
        chosen(&layout, Some(2)).unwrap();
        assert!(choose(&layout, None, true, false).is_err());
        assert!(layout.choose_ha().is_err());
        fs::remove_dir_all(&layout.dir).unwrap();
    }

    #[test]
    fn tools_get_a_list_of_several_shards_and_what_knows_one_postgres_refuses() {
        let layout = layout("commands");
        ensure_one(&layout, "rotate").unwrap();
        assert!(tools_url(&layout, "payments").unwrap().starts_with("postgres://"));
        chosen(&layout, Some(2)).unwrap();
        let refused = ensure_one(&layout, "rotate").unwrap_err().to_string();
        assert!(refused.contains("cargo stack rotate") && refused.contains("2 shards"), "{refused}");
        assert!(tools_url(&layout, "payments").unwrap().contains(" two=postgres://"));
        fs::remove_dir_all(&layout.dir).unwrap();
    }

    #[test]
    fn services_and_relay_know_every_shard() {
        let layout = layout("services");
        let env = |name: &str| Instance::named(name).unwrap().spec(&layout).unwrap().env;
        assert_eq!(env("payments-svc").get("SHARDS"), None, "a stack without shards is as it was");
        assert!(env("cdc-relay")["RELAY_ROUTES"].ends_with("cdc-relay/relay.toml"));
        chosen(&layout, Some(4)).unwrap();
        for (name, role) in [("payments-svc", "payments_svc"), ("balance-svc", "balance_svc")] {
            let shards = env(name)["SHARDS"].clone();
            let names: Vec<&str> =
                shards.split(' ').filter_map(|shard| Some(shard.split_once('=')?.0)).collect();
            assert_eq!(names, ["one", "two", "three", "four"]);
            let urls = shards.split(' ').filter_map(|shard| Some(shard.split_once('=')?.1));
            assert!(urls.clone().all(|url| url.starts_with(&format!("postgres://{role}:"))));
            let mut distinct: Vec<&str> = urls.collect();
            distinct.dedup();
            assert_eq!(distinct.len(), 4);
        }
        write_routes(&layout, &layout.root).unwrap();
        let relay = env("cdc-relay");
        let routes = fs::read_to_string(&relay["RELAY_ROUTES"]).unwrap();
        for shard in FurtherShard::ALL {
            for variable in shard.relay_variables() {
                assert!(relay.contains_key(variable) && routes.contains(&format!("${{{variable}}}")));
            }
        }
        let slots = routes.lines().filter(|line| line.starts_with("slot = ")).collect::<Vec<_>>();
        assert_eq!(slots.len(), 3 + 6, "{slots:?}");
        let saga_topics = routes.matches(PARTITIONS_OF_SEVERAL).count();
        assert_eq!((saga_topics, routes.matches(PARTITIONS_OF_ONE).count()), (3, 0), "{routes}");
        fs::remove_dir_all(&layout.dir).unwrap();
    }
}
