//! Tests that a connection string means what libpq says, to both kinds of connection that `run` opens.

use std::os::unix::fs::PermissionsExt as _;

use crate::harness::Harness;

const PASSWORD: &str = r"it's: a\ word";

/// The role's name, and where the server is: host, port.
async fn role(harness: &Harness) -> (String, String, String) {
    let name = format!("{}_role", harness.name);
    let make = format!("create role {name} superuser login password '{}'", PASSWORD.replace('\'', "''"));
    harness.sql.batch_execute(&make).await.expect("a role");
    let (_, server) = harness.url.rsplit_once('@').expect("a login");
    let (server, _) = server.split_once('/').expect("a database");
    let (host, port) = server.rsplit_once(':').expect("a port");
    (name, host.to_owned(), port.to_owned())
}

async fn end(harness: &Harness, role: &str) {
    harness.slot_is_free().await;
    harness
        .sql
        .batch_execute(&format!("reassign owned by {role} to current_user; drop role {role}"))
        .await
        .expect("drop");
}

#[tokio::test]
async fn a_parameter_missing_in_the_string_comes_from_where_libpq_takes_it() {
    let mut harness = Harness::new("connection").await;
    let (role, host, port) = role(&harness).await;
    let database = harness.name.clone();
    let passfile = std::env::temp_dir().join(format!("{}.pgpass", harness.name));
    let line = format!(
        "# ours\n{host}:{port}:{database}:{role}:{}\n",
        PASSWORD.replace('\\', r"\\").replace(':', r"\:")
    );
    std::fs::write(&passfile, line).expect("passfile");
    std::fs::set_permissions(&passfile, std::fs::Permissions::from_mode(0o600)).expect("permissions");
    let passfile = passfile.display().to_string();
    let quoted = PASSWORD.replace('\\', r"\\").replace('\'', r"\'");
    let cases: Vec<(String, Vec<(&str, &str)>)> = vec![
        (
            format!("postgres://{role}@{host}:{port}/{database}?gssencmode=disable"),
            vec![("PGPASSWORD", PASSWORD)],
        ),
        (
            format!("postgresql://{host}:{port}/{database}"),
            vec![("PGUSER", &role), ("PGPASSFILE", &passfile)],
        ),
        (format!("postgres://{host}:{port}/{database}?user={role}&passfile={passfile}"), vec![]),
        (
            format!(
                "host={host} port = {port} dbname={database} user={role} password='{quoted}' sslmode=prefer"
            ),
            vec![],
        ),
        (
            format!("postgres:///?user={role}&application_name=x"),
            vec![("PGHOST", &host), ("PGPORT", &port), ("PGDATABASE", &database), ("PGPASSWORD", PASSWORD)],
        ),
    ];
    for (url, environment) in cases {
        let mut environment = environment;
        environment.push(("IT_URL", &url));
        let relay = harness.start_with(&[], &environment);
        relay.streams().await;
        assert_eq!(relay.stop().await, Some(0), "{url}");
    }
    end(&harness, &role).await;
    let _ = std::fs::remove_file(passfile);
}

/// A file that others may read holds no secret, and is not used.
#[tokio::test]
async fn a_passfile_that_others_may_read_is_not_used() {
    let harness = Harness::new("passfile").await;
    let (role, host, port) = role(&harness).await;
    let passfile = std::env::temp_dir().join(format!("{}.pgpass", harness.name));
    std::fs::write(&passfile, "*:*:*:*:secret\n").expect("passfile");
    std::fs::set_permissions(&passfile, std::fs::Permissions::from_mode(0o644)).expect("permissions");
    let url = format!("postgres://{role}@{host}:{port}/{}", harness.name);
    let output = harness.command("doctor").arg(url).env("PGPASSFILE", &passfile).output().expect("doctor");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("may be read by others"), "{stderr}");
    let _ = std::fs::remove_file(passfile);
    end(&harness, &role).await;
}

/// A parameter that the relay ignored would mislead whoever relies on it.
#[tokio::test]
async fn an_unsupported_parameter_is_refused_and_named() {
    let harness = Harness::new("refused_parameters").await;
    for (parameter, stderr) in [
        ("service=shop", "service"),
        ("gssencmode=require", "gssencmode"),
        ("sslcrl=/etc/crl.pem", "sslcrl"),
        ("require_auth=scram-sha-256", "require_auth"),
        ("target_session_attrs=standby", "target_session_attrs"),
        ("sslmod=require", "did you mean `sslmode`"),
    ] {
        let output =
            harness.command("doctor").arg(format!("postgres://u@h/d?{parameter}")).output().expect("doctor");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{parameter}: {error}");
        assert!(error.contains(stderr), "{parameter}: {error}");
    }
    let output =
        harness.command("doctor").arg("postgres://u@h/d").env("PGSERVICE", "shop").output().expect("doctor");
    assert_eq!(output.status.code(), Some(64));
}
