//! Checks while a session streams whether routes and tables still fit each other, and whether the keys are unchanged.
//!
//! * It runs beside the checks of the coverage, so that none of them waits for it.
//! * It runs once when a session begins, since the contract was checked before the watch began, and again whenever columns
//!   or identities changed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::JoinHandle;

use super::{Notice, Outage};
use crate::postgres::session::Session;
use crate::source::context::SourceContext;
use crate::source::contract::{Checked, Contract, ContractError, Keys};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Fit {
    context: Arc<SourceContext>,
    /// The keys at the start of the session.
    keys: Keys,
    /// Whether a check is due.
    due: bool,
    asking: Option<JoinHandle<Result<Checked, ContractError>>>,
    outage: Outage,
}

impl Fit {
    pub fn new(context: &Arc<SourceContext>, keys: Keys) -> Fit {
        let outage = Outage::new(context, "the routes cannot be checked against the tables");
        Fit { context: Arc::clone(context), keys, due: true, asking: None, outage }
    }

    /// Records that columns or identities changed.
    pub fn doubt(&mut self) {
        self.due = true;
    }

    /// Starts a check if one is due and none runs.
    pub fn ask(&mut self) {
        if !self.due || self.asking.is_some() {
            return;
        }
        self.due = false;
        let context = Arc::clone(&self.context);
        self.asking = Some(tokio::task::spawn_blocking(move || {
            let mut session = Session::connect_to_read(&context.database)?;
            // The process cannot end before this thread does.
            session.set_silence_timeout(ANSWER_TIMEOUT)?;
            Contract { routes: &context.routes, source: &context.source }.check_streaming(&mut session)
        }));
    }

    /// Waits for the running check, for ever without one. Returns a notice if the session must not go on.
    pub async fn answer(&mut self) -> Option<Notice> {
        let Some(asking) = &mut self.asking else { return std::future::pending().await };
        let answer = asking.await.context("the check of the routes ended unexpectedly");
        self.asking = None;
        let error = match answer {
            Ok(Ok(checked)) => {
                self.outage.is_over();
                return self
                    .keys
                    .changed(&Keys::of(&checked.facts, &self.context.source))
                    .map(Notice::Rekeyed);
            }
            Ok(Err(ContractError::Refused(refusal))) => return Some(Notice::Refused(refusal)),
            Ok(Err(ContractError::Postgres(error))) => error.into(),
            Err(error) => error,
        };
        self.outage.goes_on(&error);
        self.due = true;
        None
    }
}
