//! Holds what a release keeps from one dead letter to the next: the database session, a row, and the plans of tables.

use std::rc::Rc;

use anyhow::Result;

use crate::postgres::decode::relation::Relation;
use crate::postgres::decode::row_builder::RowBuilder;
use crate::routes::route::Plan;
use crate::sinks::emit::Emitter;
use crate::source::backfill::current_row::CurrentRows;

/// A table has a new plan after each change of its columns.
const PLANS_MAX: usize = 64;

pub struct ReleaseContext<'a> {
    pub current_rows: CurrentRows<'a>,
    pub builder: RowBuilder,
    plans: Vec<(Relation, Rc<Plan>)>,
}

impl<'a> ReleaseContext<'a> {
    pub fn new(current_rows: CurrentRows<'a>) -> ReleaseContext<'a> {
        ReleaseContext { current_rows, builder: RowBuilder::default(), plans: Vec::new() }
    }

    /// Returns the routes of a table with these columns.
    pub fn plan(&mut self, emitter: &mut Emitter, relation: &Relation) -> Result<Rc<Plan>> {
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
