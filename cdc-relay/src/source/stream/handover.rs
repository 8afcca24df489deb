//! Hands the slot over to a relay that asks for it and comes before this one in the order of the source.
//!
//! * The session ends after the transaction of the request, whatever it has received of later ones, and waits for what is in flight, so that nothing is repeated.

use std::fmt;

use crate::postgres::lsn::PgTime;
use crate::source::succession::{Candidate, Request};

/// Ends a session whose slot another relay is to have.
#[derive(Debug)]
pub struct HandedOver;

impl fmt::Display for HandedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another relay asked for the slot")
    }
}

impl std::error::Error for HandedOver {}

pub struct Handover {
    candidate: Candidate,
    is_asked: bool,
}

impl Handover {
    pub fn new(candidate: Candidate) -> Handover {
        Handover { candidate, is_asked: false }
    }

    /// A request of a transaction that was committed, and sent, at these times of the server. `None`: it is not readable.
    pub fn received(&mut self, request: Option<&Request>, committed_at: PgTime, sent_at: PgTime) {
        self.is_asked |=
            request.is_some_and(|request| self.candidate.yields_to(request, committed_at, sent_at));
    }

    pub fn is_asked(&self) -> bool {
        self.is_asked
    }
}
