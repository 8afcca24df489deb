//! A mail server that takes its time, and one that refuses: what is delivered is what was accepted.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::receiver::{Behaviour, Receiver};

/// The reply to the final dot of an e-mail.
#[derive(Clone)]
enum Reply {
    /// Accepts it, and says so once it is allowed to.
    Later(Arc<Semaphore>),
    Refuse(&'static str),
}

/// An SMTP server whose replies a test chooses. An e-mail without a reply of its own is accepted.
#[derive(Clone)]
struct SlowSmtp {
    port: u16,
    /// By recipient, and used once.
    replies: Arc<Mutex<HashMap<String, Reply>>>,
    /// The e-mails that were accepted.
    mailbox: Arc<Mutex<Vec<String>>>,
}

impl SlowSmtp {
    async fn start() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let smtp = Self { port, replies: Arc::default(), mailbox: Arc::default() };
        let server = smtp.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = socket.accept().await.unwrap();
                let server = server.clone();
                tokio::spawn(async move { server.serve(stream).await });
            }
        });
        smtp
    }

    fn flag(&self) -> String {
        format!("--smtp-url=smtp://127.0.0.1:{}", self.port)
    }

    fn reply(&self, recipient: &str, reply: Reply) {
        self.replies.lock().unwrap().insert(recipient.to_owned(), reply);
    }

    /// How many of the recipients have an e-mail.
    fn recipients(&self) -> usize {
        let mailbox = self.mailbox.lock().unwrap();
        mailbox
            .iter()
            .filter_map(|mail| mail.lines().find(|line| line.starts_with("To: ")))
            .collect::<BTreeSet<_>>()
            .len()
    }

    async fn serve(&self, stream: TcpStream) -> Option<()> {
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        let mut recipient = String::new();
        writer.write_all(b"220 ready\r\n").await.ok()?;
        loop {
            let line = lines.next_line().await.ok()??;
            let reply = match line.split(' ').next().unwrap() {
                "RCPT" => {
                    recipient = line.trim_start_matches("RCPT TO:<").trim_end_matches('>').to_owned();
                    "250 ok"
                }
                "DATA" => {
                    writer.write_all(b"354 go ahead\r\n").await.ok()?;
                    let mut mail = String::new();
                    loop {
                        let line = lines.next_line().await.ok()??;
                        if line == "." {
                            break;
                        }
                        mail = mail + &line + "\n";
                    }
                    let reply = self.replies.lock().unwrap().remove(&recipient);
                    self.end(mail, reply).await
                }
                _ => "250 ok",
            };
            writer.write_all(format!("{reply}\r\n").as_bytes()).await.ok()?;
        }
    }

    async fn end(&self, mail: String, reply: Option<Reply>) -> &'static str {
        if let Some(Reply::Refuse(reply)) = reply {
            return reply;
        }
        self.mailbox.lock().unwrap().push(mail);
        if let Some(Reply::Later(allowed)) = reply {
            let _permit = allowed.acquire().await.unwrap();
        }
        "250 accepted"
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_timed_out_leaves_no_reply_to_the_next() {
    let (harness, smtp) = (Harness::new().await, SlowSmtp::start().await);
    let allowed = Arc::new(Semaphore::new(0));
    smtp.reply("slow@example.org", Reply::Later(allowed.clone()));
    smtp.reply("next@example.org", Reply::Refuse("451 4.3.0 later"));
    let notifier = harness.notifier(&[&smtp.flag(), "--mail-attempt-s=5", "--retries-s=3,1,1,1,1"]).await;
    let (slow, next) = (Uuid::now_v7(), Uuid::now_v7());
    notifier.contact(slow, "slow@example.org").await;
    notifier.contact(next, "next@example.org").await;
    harness.end_payment(slow, "completed");
    harness.until("last_error = 'timed out'", 1).await;
    // Now the server says that it has the first one; whoever reads that for the second one is wrong.
    allowed.add_permits(100);
    harness.end_payment(next, "completed");
    harness.until("delivered_at is not null", 2).await;
    assert_eq!(smtp.recipients(), 2, "what is recorded as delivered was accepted");
    harness
        .until(&format!("user_id = '{next}' and attempts = 2 and last_error = 'not accepted: 451'"), 1)
        .await;
    notifier.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_server_may_take_longer_than_a_webhook() {
    let (harness, smtp) = (Harness::new().await, SlowSmtp::start().await);
    let (receiver, allowed) = (Receiver::start().await, Arc::new(Semaphore::new(0)));
    receiver.set("/", Behaviour::Hang);
    smtp.reply("slow@example.org", Reply::Later(allowed.clone()));
    let flags = [&smtp.flag(), "--attempt-s=1", "--lease-grace-s=1", "--retries-s=1,1,1,1,1,1"];
    let notifier = harness.notifier(&flags).await;
    notifier.endpoint("hang", receiver.url("/")).await;
    let user = Uuid::now_v7();
    notifier.contact(user, "slow@example.org").await;
    harness.end_payment(user, "completed");
    // The lease of a webhook is two seconds: after three attempts it would have lapsed.
    harness.until("channel = 'hang' and attempts >= 3", 1).await;
    allowed.add_permits(1);
    harness.until("channel = 'email' and attempts = 1 and delivered_at is not null", 1).await;
    assert_eq!(smtp.mailbox.lock().unwrap().len(), 1);
    notifier.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_stop_an_e_mail_that_hangs_is_dropped_after_the_time_of_a_webhook() {
    let (harness, smtp) = (Harness::new().await, SlowSmtp::start().await);
    smtp.reply("slow@example.org", Reply::Later(Arc::new(Semaphore::new(0))));
    let notifier = harness.notifier(&[&smtp.flag(), "--attempt-s=1", "--mail-attempt-s=600"]).await;
    let user = Uuid::now_v7();
    notifier.contact(user, "slow@example.org").await;
    harness.end_payment(user, "completed");
    eventually("it was sent", async || (smtp.recipients() == 1).then_some(())).await;
    notifier.stop().await;
    assert_eq!(harness.count("delivered_at is null and failed_at is null and attempts = 1").await, 1);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_sender_gives_no_e_mail_up() {
    let (harness, smtp) = (Harness::new().await, SlowSmtp::start().await);
    let notifier = harness.notifier(&[&smtp.flag(), "--retries-s=1,3600"]).await;
    for (recipient, reply) in [
        ("policy@example.org", "550 5.7.1 sender refused by policy"),
        ("plain@example.org", "550 go away"),
        ("nobody@example.org", "550 5.1.1 no such person"),
    ] {
        smtp.reply(recipient, Reply::Refuse(reply));
        let user = Uuid::now_v7();
        notifier.contact(user, recipient).await;
        harness.end_payment(user, "completed");
    }
    harness.until("delivered_at is not null and attempts = 2", 2).await;
    harness.until("failed_at is not null and attempts = 1 and last_error = 'no recipient'", 1).await;
    notifier.stop().await;
    harness.finish().await;
}
