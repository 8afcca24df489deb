//! Whether routes and tables still fit each other, and rows still have the key that the session names them by.
//!
//! * It is asked beside the looks, so that none of them waits for the answer.
//! * It is asked when a session begins, which checked its contract before anybody watched, and whenever columns or
//!   identities are found to be others.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::JoinHandle;

use super::{Notice, Outage};
use crate::checkpoint::refusal::Refusal;
use crate::postgres::session::Session;
use crate::source::context::SourceContext;
use crate::source::contract::{self, Checked, Keys};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Fit {
    context: Arc<SourceContext>,
    /// The session's.
    keys: Keys,
    /// To be asked.
    due: bool,
    asking: Option<JoinHandle<Result<Result<Checked, Refusal>>>>,
    outage: Outage,
}

impl Fit {
    pub fn new(context: &Arc<SourceContext>, keys: Keys) -> Fit {
        let outage = Outage::new(context, "whether the routes still fit the tables cannot be asked");
        Fit { context: Arc::clone(context), keys, due: true, asking: None, outage }
    }

    /// Columns or identities are others than before.
    pub fn doubt(&mut self) {
        self.due = true;
    }

    /// Asks, if that is due and no question is open.
    pub fn ask(&mut self) {
        if !self.due || self.asking.is_some() {
            return;
        }
        self.due = false;
        let context = Arc::clone(&self.context);
        self.asking = Some(tokio::task::spawn_blocking(move || {
            let mut session = Session::connect_to_read(&context.database)?;
            // The end of the process waits for this thread.
            session.set_silence_timeout(ANSWER_TIMEOUT)?;
            Ok(contract::still_fits(&mut session, &context.routes, &context.source)?)
        }));
    }

    /// Waits for the answer to an open question, for ever without one. `Some`: why the stream must not go on as it is.
    pub async fn answer(&mut self) -> Option<Notice> {
        let Some(asking) = &mut self.asking else { return std::future::pending().await };
        let answer = asking.await.context("the check ended").and_then(|answer| answer);
        self.asking = None;
        match answer {
            Ok(Ok(checked)) => {
                self.outage.is_over();
                self.keys.changed(&Keys::of(&checked.facts, &self.context.source)).map(Notice::Rekeyed)
            }
            Ok(Err(refusal)) => Some(Notice::Refused(refusal)),
            Err(error) => {
                self.outage.goes_on(&error);
                self.due = true;
                None
            }
        }
    }
}
