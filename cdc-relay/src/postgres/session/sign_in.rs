//! Signs a session in, by whichever method the server asks for.
//!
//! * SCRAM is bound to the server's certificate if both sides support it.
//! * With `channel_binding=require` the server must prove that it knows the password, and never receives it.

use std::io::Write;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio_postgres::config::ChannelBinding as Binding;

use super::{Backend, Session, server_error};
use crate::postgres::connection_url::Database;
use crate::postgres::error::{Result, protocol};

impl Session {
    pub(super) fn authenticate(&mut self, user: &str, database: &Database) -> Result<()> {
        let password = &database.current_password()[..];
        let required = database.get_channel_binding() == Binding::Require;
        let (mut scram, mut proved, mut signed_in) = (None, false, false);
        loop {
            let mut out = BytesMut::new();
            match self.message()? {
                // Only the server's signature, which covers the binding, proves who it is.
                Message::AuthenticationOk if required && !proved => {
                    return protocol(
                        "channel_binding=require, and the server signs in without proving that it knows the password",
                    );
                }
                Message::AuthenticationOk => signed_in = true,
                Message::AuthenticationCleartextPassword | Message::AuthenticationMd5Password(_)
                    if required =>
                {
                    return protocol(
                        "channel_binding=require, and the server asks for the password itself: let it use scram-sha-256",
                    );
                }
                Message::AuthenticationCleartextPassword => frontend::password_message(password, &mut out)?,
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(user.as_bytes(), password, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut out)?;
                }
                Message::AuthenticationSasl(body) => {
                    let offered = body.mechanisms().map(|name| Ok(name.to_owned())).collect::<Vec<_>>()?;
                    let end_point = self.socket.end_point();
                    let (mechanism, binding) =
                        mechanism(&offered, end_point, database.get_channel_binding())?;
                    let start = sasl::ScramSha256::new(password, binding);
                    frontend::sasl_initial_response(mechanism, start.message(), &mut out)?;
                    (scram, proved) = (Some(start), false);
                }
                Message::AuthenticationSaslContinue(body) => {
                    let Some(scram) = &mut scram else { return protocol("SASL continued before it began") };
                    scram.update(body.data())?;
                    frontend::sasl_response(scram.message(), &mut out)?;
                }
                Message::AuthenticationSaslFinal(body) => {
                    let Some(scram) = &mut scram else { return protocol("SASL ended before it began") };
                    scram.finish(body.data())?;
                    proved = true;
                }
                Message::ErrorResponse(body) => return Err(server_error(body.fields())),
                Message::ReadyForQuery(_) if signed_in => return Ok(()),
                Message::ParameterStatus(body) if body.name()? == "server_version" => {
                    self.version = major(body.value()?);
                }
                Message::BackendKeyData(body) => {
                    self.backend = Backend { process_id: body.process_id(), secret_key: body.secret_key() };
                }
                Message::ParameterStatus(_) | Message::NoticeResponse(_) => {}
                _ => return protocol("unexpected message while signing in"),
            }
            self.socket.write_all(&out)?;
        }
    }
}

/// Chooses the SASL mechanism: bound to the server's certificate if both sides support it.
pub(super) fn mechanism(
    offered: &[String],
    end_point: Option<Vec<u8>>,
    wanted: Binding,
) -> Result<(&'static str, sasl::ChannelBinding)> {
    let offers = |mechanism: &str| offered.iter().any(|name| name == mechanism);
    match end_point.filter(|_| wanted != Binding::Disable) {
        Some(end_point) if offers(sasl::SCRAM_SHA_256_PLUS) => {
            Ok((sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(end_point)))
        }
        _ if wanted == Binding::Require => {
            protocol("channel_binding=require needs TLS and a server that offers SCRAM-SHA-256-PLUS")
        }
        _ if !offers(sasl::SCRAM_SHA_256) => protocol("the server offers no SCRAM-SHA-256"),
        // This flag shows the server that we support binding, so that nobody in between can remove it from the offer.
        Some(_) => Ok((sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested())),
        None => Ok((sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported())),
    }
}

/// `15.8 (Debian 15.8-1)` is 15; an unreadable version is 0.
pub(super) fn major(version: &str) -> u32 {
    let digits = version.split(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
