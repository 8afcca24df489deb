//! The password of a database is changed while a pool uses it.

use std::path::Path;
use std::time::Duration;

use saga::postgres::{Client, pool};
use uuid::Uuid;

/// Shorter than a login that is refused is tried again, and long enough for a few tries.
const REFUSED: Duration = Duration::from_millis(500);

/// The database of the stack's superuser, for another role.
fn url(role: &str, password: &str) -> String {
    let admin = std::env::var("POSTGRES_ADMIN_URL").expect("POSTGRES_ADMIN_URL is not set: . .stack/env");
    let (_, address) = admin.rsplit_once('@').unwrap();
    format!("postgres://{role}:{password}@{address}")
}

async fn admin() -> Client {
    let url = std::env::var("POSTGRES_ADMIN_URL").unwrap();
    pool(&url, 1, "test").unwrap().get().await.unwrap()
}

async fn role_of(client: &Client) -> String {
    client.query_one("select current_user::text", &[]).await.unwrap().get(0)
}

/// Replaces a file as a whole.
fn replace(file: &Path, text: &str) {
    let other = file.with_extension("new");
    std::fs::write(&other, text).unwrap();
    std::fs::rename(other, file).unwrap();
}

#[tokio::test]
async fn a_password_is_changed_on_the_server_and_then_in_the_file_and_no_connection_fails() {
    let (admin, role) = (admin().await, format!("test_login_{}", Uuid::new_v4().simple()));
    admin.batch_execute(&format!("create role {role} login password 'one'")).await.unwrap();
    let file = std::env::temp_dir().join(&role);
    replace(&file, &url(&role, "one"));
    let at_start = secret_files::take("DATABASE_URL_FILE", &file).unwrap();
    let pool = pool(&at_start, 3, "test").unwrap();
    let first = pool.get().await.unwrap();

    admin.batch_execute(&format!("alter role {role} password 'two'")).await.unwrap();
    assert_eq!(role_of(&first).await, role, "an open connection outlives its password");
    let mut second = Box::pin(pool.get());
    let refused = tokio::time::timeout(REFUSED, &mut second).await;
    assert!(refused.is_err(), "the server has another password than the file: {refused:?}");
    replace(&file, &url(&role, "two"));
    let second = second.await.expect("a login that was refused is tried again with the file as it is then");

    let third = pool.get().await.expect("later connections have the new one");
    for client in [&second, &third] {
        assert_eq!(role_of(client).await, role);
    }
    drop((first, second, third));
    pool.close();
    std::fs::remove_file(file).unwrap();
    admin.batch_execute(&format!("drop role {role}")).await.unwrap();
}

#[tokio::test]
async fn a_password_that_stays_wrong_is_an_error() {
    let (admin, role) = (admin().await, format!("test_login_{}", Uuid::new_v4().simple()));
    admin.batch_execute(&format!("create role {role} login password 'one'")).await.unwrap();
    let file = std::env::temp_dir().join(&role);
    replace(&file, &url(&role, "another"));
    let at_start = secret_files::take("DATABASE_URL_FILE", &file).unwrap();
    for url in [at_start, url(&role, "wrong")] {
        let error = pool(&url, 1, "test").unwrap().get().await.map(drop).unwrap_err();
        assert!(format!("{error:?}").contains("password authentication failed"), "{error:?}");
    }
    std::fs::remove_file(file).unwrap();
    admin.batch_execute(&format!("drop role {role}")).await.unwrap();
}
