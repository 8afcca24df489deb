//! Releases halted keys, at the position in the stream where it was ordered. What is decided, and why it holds: see
//! `release`. Meanwhile nothing is read from the stream; Postgres is still answered.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::message::Message;

use super::Stream;
use crate::dead_letter::halts::{change_destination, table_destination};
use crate::dead_letter::record::DeadLetter;
use crate::dead_letter::release::{ReleaseOrder, ReleasePass, ReleaseRecord};
use crate::postgres::decode::relation::Relation;
use crate::postgres::decode::row_builder::RowBuilder;
use crate::postgres::lsn::PgTime;
use crate::routes::problem::Problem;
use crate::routes::route::Plan;
use crate::routes::row::Row;
use crate::sinks::emit::{EmitOutcome, Emitter, OpenTransaction, PlannedRow, ReEmission};
use crate::sinks::topics::Step;
use crate::source::backfill::current_row::{CurrentRows, is_same_version};

/// Between two looks at what the sinks and the server want.
const SINK_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// So many tables' plans are kept; a table has a new one for every change of its columns.
const PLANS_MAX: usize = 64;

/// What it takes to emit dead letters.
struct ReleaseContext<'a> {
    current_rows: CurrentRows<'a>,
    builder: RowBuilder,
    plans: Vec<(Relation, Rc<Plan>)>,
}

impl ReleaseContext<'_> {
    /// The routes for a table as it was.
    fn plan(&mut self, emitter: &mut Emitter, relation: &Relation) -> Result<Rc<Plan>> {
        if let Some((_, plan)) = self.plans.iter().find(|(known, _)| known == relation) {
            return Ok(Rc::clone(plan));
        }
        if self.plans.len() == PLANS_MAX {
            self.plans.clear();
        }
        let plan = Rc::new(emitter.wal_plan(relation)?);
        self.plans.push((relation.clone(), Rc::clone(&plan)));
        Ok(plan)
    }
}

impl Stream<'_> {
    /// Emits the dead letters that the order names, and writes to their topic what became of it.
    pub(super) fn release(&mut self, order: &ReleaseOrder) -> Result<()> {
        if order.source != self.emitter.source().name.get_ref().as_str() {
            return Ok(()); // another slot of this database is meant
        }
        // From here on every dead letter of an earlier row stands in the topic.
        self.await_acks()?;
        let mut pass = ReleasePass::new(order, self.emitter.halted());
        if let Some(from) = pass.from() {
            self.emitter.set_large_batches();
            self.emit_dead_letters(&mut pass, from)?;
            // A key is released only when its dead letters are where they belong.
            self.await_acks()?;
        }
        for note in pass.records() {
            self.note(&note)?;
            self.make_room()?;
        }
        self.await_acks()?;
        // A key that is halted again has its dead letters from here on.
        let end = self.release_input.reader.open(self.release_input.topic, i64::MAX)?.end();
        self.emitter.set_dead_letter_offset(end);
        self.release_input.reader.disconnect();
        Ok(())
    }

    fn emit_dead_letters(&mut self, pass: &mut ReleasePass<'_>, from: i64) -> Result<()> {
        let release_input = self.release_input;
        let publication = self.emitter.source().publication.get_ref().clone();
        let current_rows = CurrentRows::new(release_input.database, &publication);
        let mut context = ReleaseContext { current_rows, builder: RowBuilder::default(), plans: Vec::new() };
        let mut reading = release_input.reader.open(release_input.topic, from)?;
        loop {
            self.make_room()?;
            let message = match reading.next(SINK_POLL_INTERVAL)? {
                Step::Record(message) => message,
                Step::Wait => continue,
                Step::End => return Ok(()),
            };
            let (offset, Some(value)) = (message.offset(), message.payload()) else { continue };
            let Some(dead_letter) = DeadLetter::read(value).context("a dead letter is not readable")? else {
                continue;
            };
            if !pass.wants(offset, &dead_letter) {
                continue;
            }
            let at = message.timestamp().to_millis().map_or_else(PgTime::now, PgTime::from_unix_millis);
            match self.emit_dead_letter(&dead_letter, at, &mut context)? {
                Ok(()) => pass.emitted(&dead_letter),
                Err(problem) => pass.failed(offset, &dead_letter, &problem.0),
            }
        }
    }

    /// Emits a dead letter's row from the dead letter, or, if that cannot be, from its table.
    fn emit_dead_letter(
        &mut self,
        dead_letter: &DeadLetter,
        at: PgTime,
        context: &mut ReleaseContext<'_>,
    ) -> Result<Result<(), Problem>> {
        if dead_letter.destination == change_destination(&dead_letter.table) {
            return Ok(Err(Problem(dead_letter.reason.clone())));
        }
        let relation = match context.current_rows.relation_of(dead_letter)? {
            Ok(relation) => relation,
            Err(problem) => return Ok(Err(problem)),
        };
        let plan = context.plan(self.emitter, &relation)?;
        if let Err(problem) = check_destination(&plan, dead_letter) {
            return Ok(Err(problem));
        }
        dead_letter.fill(&plan.shape, &mut context.builder);
        let row = dead_letter.row(context.builder.tuple()?);
        let Err(problem) = self.again(dead_letter, at, (&plan, &row))? else { return Ok(Ok(())) };
        Ok(self
            .emit_current_row(dead_letter, at, context)?
            .map_err(|why| if why == problem { why } else { Problem(format!("{}; {}", problem.0, why.0)) }))
    }

    /// Emits the row that the table has now, if it is the same version as the dead letter's.
    fn emit_current_row(
        &mut self,
        dead_letter: &DeadLetter,
        at: PgTime,
        context: &mut ReleaseContext<'_>,
    ) -> Result<Result<(), Problem>> {
        let relation = match context.current_rows.fill(dead_letter, &mut context.builder)? {
            Ok(relation) => relation,
            Err(problem) => return Ok(Err(problem)),
        };
        let plan = context.plan(self.emitter, &relation)?;
        let row = Row::insert(context.builder.tuple()?);
        let id = self.emitter.id(
            PlannedRow { plan: &plan, row: &row },
            &dead_letter.destination,
            &dead_letter.transaction(at),
        );
        if !is_same_version(dead_letter, id.as_deref(), (&plan.shape, &row)) {
            return Ok(Err(Problem("the row has changed since, so its table cannot help".to_owned())));
        }
        self.again(dead_letter, at, (&plan, &row))
    }

    fn again(
        &mut self,
        dead_letter: &DeadLetter,
        at: PgTime,
        (plan, row): (&Plan, &Row<'_>),
    ) -> Result<Result<(), Problem>> {
        let transaction_seq = self.open.context("no transaction is open")?;
        let mut transaction = dead_letter.transaction(at);
        let (transaction, progress) = (&mut transaction, &mut self.progress);
        let mut open = OpenTransaction { transaction, transaction_seq, progress, again: false };
        let to = if dead_letter.destination == table_destination(&dead_letter.table) {
            ReEmission::All
        } else {
            ReEmission::Destination(&dead_letter.destination)
        };
        Ok(match self.emitter.re_emit(PlannedRow { plan, row }, to, &mut open)? {
            EmitOutcome::Emitted => Ok(()),
            EmitOutcome::Failed(problem) => Err(problem),
        })
    }

    /// Writes what became of a key, and goes by it from now on.
    fn note(&mut self, note: &ReleaseRecord) -> Result<()> {
        let transaction_seq = self.open.context("no transaction is open")?;
        let value = serde_json::to_vec(note)?;
        let (transaction, progress) = (&mut self.transaction, &mut self.progress);
        let again = transaction.commit_lsn < self.start.sent_lsn;
        let mut open = OpenTransaction { transaction, transaction_seq, progress, again };
        self.emitter.write_release(&note.halts, &value, &mut open)?;
        self.emitter.apply_release(&value)?;
        let ReleaseRecord { source, destination, halts, emitted, skipped, .. } = note;
        match &note.reason {
            _ if note.done => tracing::info!(source, emitted, skipped, "the order to release is done"),
            Some(reason) => tracing::warn!(source, destination, emitted, "{halts} stays halted: {reason}"),
            None => tracing::info!(source, destination, emitted, skipped, "{halts} released"),
        }
        Ok(())
    }

    /// Waits until every sink has acknowledged all that it got, and saves it.
    fn await_acks(&mut self) -> Result<()> {
        loop {
            self.tend()?;
            if self.progress.is_acknowledged() {
                return Ok(());
            }
            self.acks.wake_at(0);
            self.sleep(SINK_POLL_INTERVAL)?;
            self.acks.no_wake();
        }
    }

    /// Waits while too much is in flight.
    fn make_room(&mut self) -> Result<()> {
        self.tend()?;
        while self.full().is_some() {
            self.acks.wake_at(self.start.in_flight_bytes / 2);
            self.sleep(SINK_POLL_INTERVAL)?;
            self.acks.no_wake();
            self.tend()?;
        }
        Ok(())
    }

    /// Looks after what does not wait for us: reports of the sinks, the checkpoint, the server's time-out.
    fn tend(&mut self) -> Result<()> {
        if self.acks.stopping() {
            bail!("stopped in the middle of a release, which begins again at the next start");
        }
        self.last_received_at = Instant::now();
        self.collect()?;
        self.apply_notices()?;
        self.note_snapshots()?;
        self.save(false)?;
        self.confirm()?;
        self.watch();
        Ok(())
    }
}

/// Whether the dead letter has anywhere to go.
fn check_destination(plan: &Plan, dead_letter: &DeadLetter) -> Result<(), Problem> {
    let DeadLetter { destination, table, .. } = dead_letter;
    if plan.unknown {
        return Err(Problem(format!("the routes neither tell nor ignore {table}")));
    }
    let all = *destination == table_destination(table);
    let mut routes = plan.routes.iter().filter(|route| all || route.leads_to == *destination).peekable();
    if !all && routes.peek().is_none() {
        return Err(Problem(format!("no route of {table} leads to {destination} any more")));
    }
    if !dead_letter.has_ordinal() && routes.any(|route| !route.has_id()) {
        let why = "the dead letter is an older one, without what the event's id is made of";
        return Err(Problem(format!("{why}: give {table} an `id`")));
    }
    Ok(())
}
