//! Executes an order to release halted keys, at the order's position in the stream.
//!
//! * `dead_letter::release` holds the decisions, and explains why they are safe.
//! * Until the order is executed the stream reads nothing; Postgres still gets its status messages.

mod context;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::message::Message;

use self::context::ReleaseContext;
use super::{ReleaseInput, Stream};
use crate::dead_letter::halts::{change_destination, table_destination};
use crate::dead_letter::record::DeadLetter;
use crate::dead_letter::release::{ReleaseOrder, ReleasePass, ReleaseRecord};
use crate::postgres::lsn::PgTime;
use crate::routes::problem::Problem;
use crate::routes::route::Plan;
use crate::routes::row::Row;
use crate::sinks::emit::{EmitOutcome, PlannedRow, ReEmission};
use crate::sinks::topics::Step;
use crate::source::backfill::current_row::{CurrentRows, DeadLetterError, is_same_version};

/// How often sinks and server are attended to during a release.
const TEND_INTERVAL: Duration = Duration::from_millis(50);

impl Stream<'_> {
    /// Emits the dead letters that the order names, and writes the results to their topic.
    pub(super) fn release(&mut self, order: &ReleaseOrder) -> Result<()> {
        if order.source != self.emitter.source().name.get_ref().as_str() {
            return Ok(()); // The order is for another source of this database.
        }
        // From here on the topic has every dead letter of an earlier row.
        self.await_acks()?;
        let mut pass = ReleasePass::new(order, self.emitter.halted());
        if let Some(from) = pass.from() {
            self.emitter.set_large_batches();
            self.emit_dead_letters(&mut pass, from)?;
            // A key is released only after every sink has acknowledged its dead letters.
            self.await_acks()?;
        }
        for record in pass.records() {
            self.write_release_record(&record)?;
            self.make_room()?;
        }
        self.await_acks()?;
        // If a key is halted again, its dead letters begin here.
        let ReleaseInput { reader, topic, .. } = self.release_input;
        let end = self.replication.confirm_while(|| reader.open(topic, i64::MAX))?.end();
        self.emitter.set_dead_letter_offset(end);
        self.release_input.reader.disconnect();
        Ok(())
    }

    fn emit_dead_letters(&mut self, pass: &mut ReleasePass<'_>, from: i64) -> Result<()> {
        let input = self.release_input;
        let publication = self.emitter.source().publication.get_ref().clone();
        let mut context = ReleaseContext::new(CurrentRows::new(input.database, &publication));
        let mut reading = self.replication.confirm_while(|| input.reader.open(input.topic, from))?;
        loop {
            self.make_room()?;
            let message = match reading.next(TEND_INTERVAL)? {
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
            match self.emit_dead_letter(&dead_letter, at, &mut context) {
                Ok(()) => pass.emitted(&dead_letter),
                Err(DeadLetterError::Row(problem)) => pass.failed(offset, &dead_letter, &problem.0),
                Err(DeadLetterError::Session(error)) => return Err(error),
            }
        }
    }

    /// Emits the row of a dead letter, or, if that is not possible, the current row of its table.
    fn emit_dead_letter(
        &mut self,
        dead_letter: &DeadLetter,
        at: PgTime,
        context: &mut ReleaseContext<'_>,
    ) -> Result<(), DeadLetterError> {
        if dead_letter.destination == change_destination(&dead_letter.table) {
            return Err(Problem(dead_letter.reason.clone()).into());
        }
        let rows = &mut context.current_rows;
        let relation = match dead_letter.has_types() {
            true => rows.relation_of(dead_letter)?,
            false => self.replication.confirm_while(|| rows.relation_of(dead_letter))?,
        };
        let plan = context.plan(self.emitter, &relation)?;
        check_destination(&plan, dead_letter)?;
        dead_letter.fill(&plan.shape, &mut context.builder);
        let row = dead_letter.row(context.builder.tuple()?);
        let problem = match self.re_emit(dead_letter, at, PlannedRow { plan: &plan, row: &row }) {
            Err(DeadLetterError::Row(problem)) => problem,
            emitted_or_failed => return emitted_or_failed,
        };
        match self.emit_current_row(dead_letter, at, context) {
            Err(DeadLetterError::Row(why)) if why != problem => {
                Err(Problem(format!("{}; {}", problem.0, why.0)).into())
            }
            result => result,
        }
    }

    /// Emits the current row of the table if it is the same version as the dead letter's row.
    fn emit_current_row(
        &mut self,
        dead_letter: &DeadLetter,
        at: PgTime,
        context: &mut ReleaseContext<'_>,
    ) -> Result<(), DeadLetterError> {
        let ReleaseContext { current_rows, builder, .. } = context;
        let relation = self.replication.confirm_while(|| current_rows.fill(dead_letter, builder))?;
        let plan = context.plan(self.emitter, &relation)?;
        let row = Row::insert(context.builder.tuple()?);
        let planned = PlannedRow { plan: &plan, row: &row };
        let id = self.emitter.id(planned, &dead_letter.destination, &dead_letter.transaction(at));
        if !is_same_version(dead_letter, id.as_deref(), &plan.shape, &row) {
            let why = "the row has changed since, so the current row cannot replace it";
            return Err(Problem(why.to_owned()).into());
        }
        self.re_emit(dead_letter, at, planned)
    }

    fn re_emit(
        &mut self,
        dead_letter: &DeadLetter,
        at: PgTime,
        row: PlannedRow<'_>,
    ) -> Result<(), DeadLetterError> {
        let mut transaction = dead_letter.transaction(at);
        let open = self.current.open_as(&mut transaction, &mut self.acks.progress);
        let mut open = open.context("no transaction is open")?;
        let to = if dead_letter.destination == table_destination(&dead_letter.table) {
            ReEmission::All
        } else {
            ReEmission::Destination(&dead_letter.destination)
        };
        match self.emitter.re_emit(row, to, &mut open)? {
            EmitOutcome::Emitted => Ok(()),
            EmitOutcome::Failed(problem) => Err(problem.into()),
        }
    }

    /// Writes the result for a key, and applies it to the halted keys.
    fn write_release_record(&mut self, record: &ReleaseRecord) -> Result<()> {
        let value = serde_json::to_vec(record)?;
        let mut open = self.current.open(&mut self.acks.progress).context("no transaction is open")?;
        self.emitter.write_release(&record.halts, &value, &mut open)?;
        self.emitter.apply_release(&value)?;
        let ReleaseRecord { source, destination, halts, emitted, skipped, .. } = record;
        match &record.reason {
            _ if record.done => tracing::info!(source, emitted, skipped, "the order to release is done"),
            Some(reason) => tracing::warn!(source, destination, emitted, "{halts} stays halted: {reason}"),
            None => tracing::info!(source, destination, emitted, skipped, "{halts} released"),
        }
        Ok(())
    }

    /// Waits until every sink has acknowledged everything.
    fn await_acks(&mut self) -> Result<()> {
        let acks = self.acks.shared();
        acks.wait_until(0, TEND_INTERVAL, || {
            self.tend()?;
            Ok(self.acks.progress.is_acknowledged())
        })
    }

    /// Waits until no sink has its maximum in flight.
    fn make_room(&mut self) -> Result<()> {
        let acks = self.acks.shared();
        acks.wait_until(self.acks.resume_bytes(), TEND_INTERVAL, || {
            self.tend()?;
            Ok(self.acks.full_sink().is_none())
        })
    }

    /// Attends to everything that must not wait for a release: acknowledgements, notices, the checkpoint, the server.
    fn tend(&mut self) -> Result<()> {
        if self.acks.stopping() {
            bail!("the relay stopped during a release, which begins again at the next start");
        }
        // The stream reads nothing, so a silent server is no sign of a dead connection.
        self.slot.received(Instant::now());
        self.acks.collect(&self.metrics)?;
        self.apply_notices()?;
        self.save_snapshot_progress()?;
        self.save(false)?;
        self.confirm()?;
        self.check_stall();
        Ok(())
    }
}

/// Fails if the dead letter has no destination.
fn check_destination(plan: &Plan, dead_letter: &DeadLetter) -> Result<(), Problem> {
    let DeadLetter { destination, table, .. } = dead_letter;
    if plan.unknown {
        return Err(Problem(format!("{table} is neither routed nor ignored. Give it routes")));
    }
    let all = *destination == table_destination(table);
    let mut routes = plan.routes.iter().filter(|route| all || route.leads_to == *destination).peekable();
    if !all && routes.peek().is_none() {
        return Err(Problem(format!("no route of {table} leads to {destination} any more")));
    }
    if !dead_letter.has_ordinal() && routes.any(|route| !route.has_id()) {
        return Err(Problem(format!(
            "the dead letter is of an older release, which did not save the parts of the event's id. Give {table} an `id`"
        )));
    }
    Ok(())
}
