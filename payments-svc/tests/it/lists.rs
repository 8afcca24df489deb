//! Pages of a user's payments on a real Postgres.

use std::collections::BTreeSet;

use payments_svc::saga::Status;
use payments_svc::store::{self, Filter, NewPayment, SCANNED_MAX};
use uuid::Uuid;

use crate::{Payments, new_payment};

fn all() -> Filter {
    Filter { status: None, service_id: None, from: Uuid::nil(), before: Uuid::max() }
}

/// Accepts `count` payments of a user; returns their ids, newest first.
async fn accepted(payments: &Payments, user_id: Uuid, count: usize) -> Vec<Uuid> {
    let new: Vec<NewPayment> = (0..count).map(|n| new_payment(user_id, &n.to_string())).collect();
    for batch in new.chunks(500) {
        payments.accept(batch).await;
    }
    let mut ids: Vec<Uuid> = new.iter().map(|payment| payment.payment_id).collect();
    ids.sort_unstable();
    ids.reverse();
    ids
}

/// The ids of each page, until the list ends.
async fn pages(payments: &Payments, user_id: Uuid, mut filter: Filter, limit: u64) -> Vec<Vec<Uuid>> {
    let mut pages = Vec::new();
    loop {
        let page = store::page(&payments.owned(user_id).await, user_id, &filter, limit).await.unwrap();
        pages.push(page.payments.iter().map(|payment| payment.accepted.payment_id).collect());
        let Some(next) = page.next else { return pages };
        assert!(next < filter.before, "each page goes further");
        filter.before = next;
    }
}

#[tokio::test]
async fn pages_hold_every_payment_once_newest_first() {
    let payments = Payments::new().await;
    let (user, other) = (Uuid::now_v7(), Uuid::now_v7());
    let ids = accepted(&payments, user, 7).await;
    accepted(&payments, other, 3).await;
    for (limit, sizes) in [(3, vec![3, 3, 1]), (7, vec![7]), (8, vec![7]), (1, vec![1; 7])] {
        let pages = pages(&payments, user, all(), limit).await;
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), sizes, "limit {limit}");
        assert_eq!(pages.concat(), ids, "limit {limit}");
    }
    assert_eq!(pages(&payments, Uuid::now_v7(), all(), 5).await, [Vec::<Uuid>::new()]);
    payments.finish().await;
}

#[tokio::test]
async fn a_payment_that_is_made_meanwhile_moves_no_other() {
    let payments = Payments::new().await;
    let user = Uuid::now_v7();
    let ids = accepted(&payments, user, 4).await;
    let first = store::page(&payments.owned(user).await, user, &all(), 2).await.unwrap();
    payments.accept(&[new_payment(user, "later")]).await;
    let rest = Filter { before: first.next.unwrap(), ..all() };
    assert_eq!(pages(&payments, user, rest, 2).await, [ids[2..].to_vec()]);
    payments.finish().await;
}

#[tokio::test]
async fn bounds_and_filters_choose() {
    let payments = Payments::new().await;
    let user = Uuid::now_v7();
    let ids = accepted(&payments, user, 5).await;
    let bounded = Filter { from: ids[3], before: ids[1], ..all() };
    assert_eq!(pages(&payments, user, bounded, 9).await, [vec![ids[2], ids[3]]]);
    let client = payments.pool.get().await.unwrap();
    let reject = "update payments set status = 'rejected', event = 'rejected', reason = 'no_account',
                  rejected_at = now(), version = version + 1 where payment_id = $1";
    client.execute(reject, &[&ids[4]]).await.unwrap();
    let rejected = Filter { status: Some(Status::Rejected), ..all() };
    assert_eq!(pages(&payments, user, rejected, 9).await, [vec![ids[4]]]);
    let gas = Filter { service_id: Some("gas".into()), ..all() };
    assert_eq!(pages(&payments, user, gas, 9).await, [Vec::<Uuid>::new()]);
    payments.finish().await;
}

/// The filter finds the oldest payment only, after two pages that examined as many rows as a page may.
#[tokio::test]
async fn a_filter_that_finds_little_answers_short_pages() {
    let payments = Payments::new().await;
    let user = Uuid::now_v7();
    let scanned = usize::try_from(SCANNED_MAX).unwrap();
    let ids = accepted(&payments, user, 2 * scanned + 1).await;
    let oldest = ids[2 * scanned];
    let client = payments.pool.get().await.unwrap();
    client.execute("update payments set service_id = 'gas' where payment_id = $1", &[&oldest]).await.unwrap();
    let gas = Filter { service_id: Some("gas".into()), ..all() };
    assert_eq!(pages(&payments, user, gas, 20).await, [vec![], vec![], vec![oldest]]);
    payments.finish().await;
}

#[tokio::test]
async fn a_key_finds_its_payment() {
    let payments = Payments::new().await;
    let (user, other) = (Uuid::now_v7(), Uuid::now_v7());
    let ids = accepted(&payments, user, 2).await;
    let found = store::payment_by_key(&payments.owned(user).await, user, "1").await.unwrap();
    let known: BTreeSet<Uuid> = ids.into_iter().collect();
    assert!(known.contains(&found.unwrap().accepted.payment_id));
    for (user, key) in [(user, "2"), (other, "1")] {
        assert_eq!(store::payment_by_key(&payments.owned(user).await, user, key).await.unwrap(), None);
    }
    payments.finish().await;
}
