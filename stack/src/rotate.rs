//! `cargo stack rotate`: another secret for every login of a running stack, while it works.
//!
//! * For each server: new files of secrets, then the server, then at once the files that clients read. A client that connects in
//!   between is refused, and tries again with the file as it is then. A server that refuses leaves all as it was.
//! * Open connections outlive the password that they were made with.
//! * Redis and admin listeners take two secrets: the old ones hold until `rotate --end`. Elsewhere they end at once.
//! * Clients of Kafka read their file at the start, and so do exporters: they are restarted, exporters here, services by whoever
//!   rotates, one after the other (docs/runbooks/rotation.md).
//! * The broker of Kafka signs in to itself by a secret that it reads at its start. It stays as it is.
//! * Nothing is replaced while the secrets of the last rotation still hold: three would, and those before would end early.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::control::{Client, Request};
use crate::database_url::postgres_url;
use crate::layout::{ADMIN_TOKEN, Layout, Port, write_private};
use crate::login::Login;
use crate::output::{Progress, Step};
use crate::servers::{Node, Server, kafka, rabbitmq, redis};
use crate::{environment, link, secrets, shards, workspace};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Gives every login another secret.
///
/// # Errors
/// When the stack is not up, or at the first server that refuses.
pub fn begin(layout: &Layout) -> Result<()> {
    let mut lock = fd_lock::RwLock::new(fs::File::create(layout.dir.join("command.lock"))?);
    let _alone = lock.try_write().context("another `up`, `down` or `rotate` of this stack is under way")?;
    ensure!(
        !layout.is_ha(),
        "Patroni keeps the superuser's password in its own configuration, which this command does not change yet"
    );
    shards::ensure_one(layout, "rotate")?;
    ensure!(
        !layout.admin_token_before().is_file(),
        "the secrets of the last rotation still hold beside the new ones: cargo stack rotate --end"
    );
    let mut client = Client::of_running(layout)?;
    ensure!(
        kafka::Users::of(layout) == kafka::Users::Kept,
        "Kafka runs with the settings of an earlier version, which list its users: cargo stack down, then up again"
    );
    let progress = Progress::default();
    progress.step("postgres", |_| {
        let (old_url, mut names) = (superuser_url(layout)?, vec![Login::Superuser.secret()]);
        names.extend(Login::ROLES.map(|(role, _)| role.secret()));
        renewed(layout, &names, || set_roles(layout, &old_url))?;
        client_files(layout)?;
        Ok(format!("{} roles", names.len()))
    })?;
    progress.step("rabbitmq", |_| {
        let names = rabbitmq::USERS.map(Login::secret);
        let admin = Login::QueueAdministrator;
        let old_password = admin.password(layout)?;
        renewed(layout, &names, || set_queue_users(layout, &old_password))?;
        for node in Node::all(layout) {
            Server::RabbitMq(*node).prepare(layout, &Step::silent())?;
        }
        client_files(layout)?;
        Ok(format!("{} users", names.len()))
    })?;
    progress.step("redis", |_| {
        let names = redis::USERS.map(Login::secret);
        let old_password = Login::CacheAdministrator.password(layout)?;
        renewed(layout, &names, || set_cache_users(layout, &old_password, ">"))?;
        Server::Redis.prepare(layout, &Step::silent())?;
        client_files(layout)?;
        Ok(format!("{} users; the old passwords hold until --end", names.len()))
    })?;
    progress.step("kafka", |_| {
        let users: Vec<&str> = kafka::USERS.into_iter().chain([kafka::ADMIN]).collect();
        let names: Vec<String> = users.iter().map(|user| kafka::secret_name(user)).collect();
        renewed(layout, &names, || kafka::scram::set_users(layout, Node::One))?;
        client_files(layout)?;
        Ok(format!("{} users", names.len()))
    })?;
    progress.step("admin listeners", |_| {
        write_private(&layout.admin_token_before(), &layout.admin_token()?)?;
        layout.renew_secret(ADMIN_TOKEN)?;
        client_files(layout)?;
        Ok("a token; the old one holds until --end".to_owned())
    })?;
    exporters(layout, &mut client, &progress)
}

/// Ends the time in which two secrets hold.
///
/// # Errors
/// When the stack is not up, or Redis refuses.
pub fn end(layout: &Layout) -> Result<()> {
    Client::of_running(layout)?;
    let progress = Progress::default();
    progress.step("redis", |_| {
        set_cache_users(layout, &Login::CacheAdministrator.password(layout)?, "resetpass >")?;
        Ok("the old passwords are refused".to_owned())
    })?;
    progress.step("admin listeners", |_| {
        match fs::remove_file(layout.admin_token_before()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        client_files(layout)?;
        Ok("the old token is refused".to_owned())
    })
}

/// Makes these secrets anew and has the server take them; if it does not, they are as before.
fn renewed(layout: &Layout, names: &[String], set: impl FnOnce() -> Result<()>) -> Result<()> {
    let renew = |name: &String| Ok((name.clone(), layout.renew_secret(name)?));
    let old = names.iter().map(renew).collect::<Result<Vec<_>>>()?;
    let outcome = set();
    if outcome.is_err() {
        for (name, secret) in &old {
            write_private(&layout.secrets().join(name), secret)?;
        }
    }
    outcome
}

/// Writes every file that clients read.
fn client_files(layout: &Layout) -> Result<()> {
    environment::write(layout)?;
    secrets::write(layout)
}

fn superuser_url(layout: &Layout) -> Result<String> {
    postgres_url(layout, "postgres", Login::Superuser)
}

/// `migrate` sets the passwords of the roles, and that of the superuser whom it signs in as.
fn set_roles(layout: &Layout, old_url: &str) -> Result<()> {
    let mut command = workspace::command(layout, &workspace::binary(layout, "migrate").display().to_string());
    command.arg("--passwords").env("ADMIN_DATABASE_URL", old_url);
    command.env("ADMIN_NEW_PASSWORD", Login::Superuser.password(layout)?);
    let output = command.envs(environment::role_passwords(layout)?).output().context("cannot run migrate")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// All users at once, as the administrator with the password before.
fn set_queue_users(layout: &Layout, old_password: &str) -> Result<()> {
    let body = rabbitmq::definitions(layout)?.to_string();
    let login = BASE64_STANDARD.encode(format!("{}:{old_password}", Login::QueueAdministrator.user()));
    let request = format!(
        "POST /api/definitions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {login}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let answer = ask(layout, Port::RabbitManagement, &request, "HTTP/1.1 204".len())?;
    ensure!(answer.starts_with("HTTP/1.1 2"), "RabbitMQ answered {answer:?} to its new users");
    Ok(())
}

/// As the administrator with this password; `how` is what a password of Redis' access control lists begins with.
fn set_cache_users(layout: &Layout, admin_password: &str, how: &str) -> Result<()> {
    let mut request = format!("AUTH {} {admin_password}\r\n", Login::CacheAdministrator.user());
    let mut expected = "+OK\r\n".to_owned();
    for login in redis::USERS {
        request.push_str(&format!("ACL SETUSER {} {how}{}\r\n", login.user(), login.password(layout)?));
        expected.push_str("+OK\r\n");
    }
    let answer = ask(layout, Port::Redis, &request, expected.len())?;
    if answer != expected {
        bail!("Redis answered {answer:?} to its new passwords");
    }
    Ok(())
}

/// The first bytes of the answer to a request.
fn ask(layout: &Layout, port: Port, request: &str, bytes: usize) -> Result<String> {
    let describe = || format!("cannot ask port {}", layout.port(port));
    let mut stream = link::open(layout, layout.port(port), None, TIMEOUT).with_context(describe)?;
    stream.write_all(request.as_bytes()).with_context(describe)?;
    let mut answer = vec![0; bytes];
    stream.read_exact(&mut answer).with_context(describe)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Exporters are no part of anything that is paid for: they are started anew.
fn exporters(layout: &Layout, client: &mut Client, progress: &Progress) -> Result<()> {
    for server in [Server::PostgresExporter, Server::RedisExporter] {
        if Server::of(layout).contains(&server) {
            progress.step(server.name(), |step| {
                client.send(&Request::Stop { name: server.name().to_owned() })?;
                for spec in server.prepare(layout, step)? {
                    client.send(&Request::Run { spec })?;
                }
                Ok("started anew".to_owned())
            })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(name: &str) -> Layout {
        let dir = std::env::temp_dir().join(format!("stack-rotate-{name}-{}", std::process::id()));
        Layout::new(Some(dir), 22_000).unwrap()
    }

    #[test]
    fn secrets_are_replaced_unless_the_server_refuses() {
        let layout = layout("refused");
        let names = [Login::Relay.secret(), Login::Checker.secret()];
        let now = || names.each_ref().map(|name| layout.secret(name).unwrap());
        let first = now();
        let refused = renewed(&layout, &names, || bail!("refused")).unwrap_err();
        assert_eq!((refused.to_string(), now()), ("refused".to_owned(), first.clone()));
        renewed(&layout, &names, || Ok(())).unwrap();
        assert!(now().iter().zip(&first).all(|(new, old)| new != old && new.len() == old.len()));
        fs::remove_dir_all(&layout.dir).unwrap();
    }

    #[test]
    fn no_rotation_begins_before_the_end_of_the_last_one() {
        let layout = layout("twice");
        let names = [Login::Relay.secret(), Login::CacheProcessor.secret(), ADMIN_TOKEN.to_owned()];
        let now = || names.each_ref().map(|name| layout.secret(name).unwrap());
        let first = now();
        write_private(&layout.admin_token_before(), "before").unwrap();
        let refused = begin(&layout).unwrap_err().to_string();
        assert!(refused.contains("rotate --end"), "{refused}");
        assert_eq!(now(), first);
        fs::remove_file(layout.admin_token_before()).unwrap();
        let refused = begin(&layout).unwrap_err().to_string();
        assert!(refused.contains("not up"), "{refused}");
        assert_eq!(now(), first, "nor does one of a stack that is not up");
        fs::remove_dir_all(&layout.dir).unwrap();
    }

    #[test]
    fn two_tokens_hold_until_the_end() {
        let layout = layout("token");
        let old = layout.admin_token().unwrap();
        assert_eq!(layout.admin_tokens().unwrap(), old);
        write_private(&layout.admin_token_before(), &old).unwrap();
        assert_eq!(layout.renew_secret(ADMIN_TOKEN).unwrap(), old);
        let new = layout.admin_token().unwrap();
        assert_eq!(layout.admin_tokens().unwrap(), format!("{new},{old}"));
        fs::remove_file(layout.admin_token_before()).unwrap();
        assert_eq!(layout.admin_tokens().unwrap(), new);
        fs::remove_dir_all(&layout.dir).unwrap();
    }
}
