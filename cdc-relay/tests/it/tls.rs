//! Tests TLS to Postgres, by every parameter of libpq, and to the brokers. Each test has its own servers and certificates.

use cdc_relay::postgres::connection_url::Database;
use cdc_relay::postgres::session::Session;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use stack::servers::{Node, Server};

use crate::harness::{Harness, Servers, connect, eventually};
use crate::load::under_load;
use crate::servers::{PrivateServer, permits};

/// An authority and its certificates, as files that clients read.
struct Certificates {
    folder: std::path::PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Certificates {
    fn new(authority: &str) -> Certificates {
        let folder = std::env::temp_dir().join(format!("it-tls-{}", uuid::Uuid::now_v7().simple()));
        std::fs::create_dir_all(&folder).expect("folder");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, authority);
        let key = KeyPair::generate().expect("key");
        let own = params.self_signed(&key).expect("the authority's certificate");
        std::fs::write(folder.join("ca.pem"), own.pem()).expect("ca.pem");
        Certificates { folder, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key, kept as `{name}.pem` and `{name}.key` too. A server has a host name, a client a user's.
    fn sign(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("name");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("key");
        let signed = params.signed_by(&key, &self.issuer).expect("certificate").pem();
        let key = key.serialize_pem();
        std::fs::write(self.file(&format!("{name}.pem")), &signed).expect("certificate");
        std::fs::write(self.file(&format!("{name}.key")), &key).expect("key");
        (signed, key)
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A Postgres with a certificate for `localhost`, and `access` before everything else that its `pg_hba.conf` says.
async fn encrypting(certificates: &Certificates, access: &str) -> PrivateServer {
    let postgres = PrivateServer::start(Server::Postgres).await;
    let (certificate, key) = certificates.sign("localhost");
    postgres.put("server.crt", &certificate);
    postgres.put("server.key", &key);
    let authority = std::fs::read_to_string(certificates.file("ca.pem")).expect("ca.pem");
    postgres.put("root.crt", &authority);
    postgres.put("pg_hba.conf", &format!("{access}\nhost all all 127.0.0.1/32 scram-sha-256\n"));
    let sql = connect(&postgres.address()).await;
    for setting in ["ssl = on", "ssl_ca_file = 'root.crt'"] {
        sql.batch_execute(&format!("alter system set {setting}")).await.expect(setting);
    }
    sql.execute("select pg_reload_conf()", &[]).await.expect("reload");
    eventually("TLS", || async {
        let on: String = sql.query_one("show ssl", &[]).await.ok()?.get(0);
        (on == "on").then_some(())
    })
    .await;
    postgres
}

/// Whether both kinds of the relay's connections are encrypted, or the error of a refused one.
async fn encrypted(url: &str) -> Result<bool, String> {
    let database: Database = url.parse().map_err(|error| format!("{error:#}"))?;
    let query = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    let ordinary =
        async { Ok::<bool, anyhow::Error>(database.connect().await?.query_one(query, &[]).await?.get(0)) };
    let ordinary = ordinary.await.map_err(|error| format!("{error:#}"));
    let ask = move || Session::connect(&database)?.query(query);
    let session = tokio::task::spawn_blocking(ask).await.expect("session");
    let session = session.map(|rows| rows[0][0].as_deref() == Some("t")).map_err(|error| error.to_string());
    match (&session, &ordinary) {
        (Ok(session), Ok(ordinary)) => assert_eq!(session, ordinary, "{url}"),
        (Err(_), Err(_)) => {}
        _ => panic!("{url}: the replication session: {session:?}, an ordinary connection: {ordinary:?}"),
    }
    session
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_encrypted_and_the_server_checked_as_the_url_asks() {
    let (ours, others) = (Certificates::new("ours"), Certificates::new("others"));
    let postgres = encrypting(&ours, "").await;
    let by_number = postgres.address();
    let by_name = by_number.replace("127.0.0.1", "localhost");
    let (ca, other) = (ours.file("ca.pem"), others.file("ca.pem"));
    let own = ours.file("localhost.pem");
    let plain = [("sslmode=disable", &by_name), (&format!("sslmode=disable&sslrootcert={ca}"), &by_name)]
        .map(|(query, url)| format!("{url}?{query}"));
    let secure = [
        (String::new(), &by_number),
        ("sslmode=prefer".to_owned(), &by_number),
        ("sslmode=require".to_owned(), &by_number),
        ("sslmode=require&channel_binding=require".to_owned(), &by_name),
        (format!("sslmode=require&sslrootcert={ca}"), &by_number),
        (format!("sslmode=verify-ca&sslrootcert={ca}"), &by_number),
        (format!("sslmode=verify-full&sslrootcert={ca}"), &by_name),
        (format!("sslmode=verify-full&sslrootcert={own}"), &by_name),
    ]
    .map(|(query, url)| format!("{url}?{query}"));
    let refused = [
        (format!("sslmode=require&sslrootcert={other}"), &by_name, "UnknownIssuer"),
        (format!("sslmode=verify-ca&sslrootcert={other}"), &by_name, "UnknownIssuer"),
        (format!("sslmode=verify-full&sslrootcert={other}"), &by_name, "UnknownIssuer"),
        (format!("sslmode=verify-full&sslrootcert={ca}"), &by_number, "not valid for name"),
        ("sslmode=disable&channel_binding=require".to_owned(), &by_name, "channel_binding"),
        (format!("sslmode=verify-full&sslrootcert={}", ours.file("none.pem")), &by_name, "none.pem"),
    ];
    for url in plain {
        assert_eq!(encrypted(&url).await, Ok(false), "{url}");
    }
    for url in secure {
        assert_eq!(encrypted(&url).await, Ok(true), "{url}");
    }
    for (query, url, why) in refused {
        let url = format!("{url}?{query}");
        let error = encrypted(&url).await.expect_err(&url);
        assert!(error.contains(why), "{url}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_taken_unless_the_url_asks_for_it() {
    let url = Servers::shared().postgres;
    assert_eq!(encrypted(&url).await, Ok(false));
    let error = encrypted(&format!("{url}?sslmode=require")).await.expect_err("no TLS");
    assert!(error.contains("the server has no TLS"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_fails_with_tls_goes_without_it_if_the_url_only_prefers_it() {
    let ours = Certificates::new("ours");
    let postgres = encrypting(&ours, "hostssl all all all reject").await;
    let url = postgres.address();
    assert_eq!(encrypted(&url).await, Ok(false));
    for strict in ["sslmode=require", "channel_binding=require"] {
        assert!(encrypted(&format!("{url}?{strict}")).await.is_err(), "{strict}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_wants_a_certificate_gets_it() {
    let ours = Certificates::new("ours");
    let postgres = encrypting(&ours, "hostssl all all 127.0.0.1/32 cert\nhost all all all reject").await;
    let url = postgres.address();
    ours.sign("postgres");
    let (cert, key) = (ours.file("postgres.pem"), ours.file("postgres.key"));
    assert_eq!(encrypted(&format!("{url}?sslcert={cert}&sslkey={key}")).await, Ok(true));
    assert!(encrypted(&url).await.is_err());
    let error = encrypted(&format!("{url}?sslcert={cert}")).await.expect_err("no key");
    assert!(error.contains("sslcert and sslkey go together"), "{error}");
}

/// Decrypted bytes that were not yet read are in no socket: a relay that polls only the socket would wait for ever.
#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_stream_loses_nothing_whether_it_trickles_or_floods() {
    let ours = Certificates::new("ours");
    let postgres = encrypting(&ours, "").await;
    let servers = Servers { postgres: postgres.address(), ..Servers::shared() };
    let mut harness = Harness::on(servers, "tls").await;
    let by_name = harness.url.replace("127.0.0.1", "localhost");
    let url = format!("{by_name}?sslmode=verify-full&sslrootcert={}", ours.file("ca.pem"));
    harness.overrides.push(("IT_URL", url));
    let (relay, oracle, load) = under_load(&mut harness, false).await;
    load.more(100).await;
    let unencrypted = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid)
                       where application_name like 'cdc-relay%' and not ssl";
    assert_eq!(harness.sql.query_one(unencrypted, &[]).await.expect("sessions").get::<_, i64>(0), 0);
    let rows = "insert into items (owner, id, version, note)
                select 'v' || n % 16, n, 1, repeat('y', 300) from generate_series(1, 50000) n";
    harness.sql.batch_execute(rows).await.expect("50,000 rows");
    // About as large as the relay's buffer: a full buffer must not make the relay wait for the socket.
    let rows = "insert into items (owner, id, version, note)
                select 'l', n, 1, repeat('z', 240000 + n * 1000) from generate_series(1, 40) n";
    harness.sql.batch_execute(rows).await.expect("large rows");
    load.more(100).await;
    assert!(harness.kill_walsender().await, "no relay streams");
    load.more(100).await;
    load.stop().await;
    for id in 0..20 {
        harness.row("slowly", id, 1, "made").await;
        harness.confirmed().await;
    }
    let report = oracle.judge(&harness).await;
    assert!(report.changes >= 50_000, "{report:?}");
    drop((relay, harness));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_sent_to_brokers_by_tls_arrive_as_ever() {
    let _permits = permits(2).await;
    let ours = Certificates::new("ours");
    let (mut kafka, mut rabbit) = (
        PrivateServer::start(Server::Kafka(Node::One)).await,
        PrivateServer::start(Server::RabbitMq(Node::One)).await,
    );
    let servers = Servers { kafka: kafka.address(), amqp: rabbit.address(), ..Servers::shared() };
    let mut harness = Harness::on(servers, "tls_brokers").await;
    let (certificate, key) = ours.sign("localhost");
    let brokers = kafka.encrypt(&certificate, &key).await;
    let queue = rabbit.encrypt(&certificate, &key).await;
    let ca = ours.file("ca.pem");
    let by_tls = format!("[kafka]\n\"security.protocol\" = \"ssl\"\n\"ssl.ca.location\" = \"{ca}\"\n[relay]");
    harness.routes(&harness.default_routes().replace("[relay]", &by_tls));
    // The authorities that the system trusts.
    harness.overrides.extend([("KAFKA_BROKERS", brokers), ("AMQP_URL", queue), ("SSL_CERT_FILE", ca)]);
    let (relay, oracle, load) = under_load(&mut harness, true).await;
    load.more(200).await;
    load.stop().await;
    oracle.judge(&harness).await.expect(100);
    drop((relay, harness));
}
