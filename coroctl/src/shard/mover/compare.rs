//! Compares the rows of a move on both shards, by count and checksum of each bucket.
//!
//! * Rows change while they are compared. A bucket that differs is compared again; it has to agree once with both read at
//!   nearly the same time.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use postgres_protocol::escape::escape_identifier;
use tokio_postgres::Client;

use super::Mover;

/// Rows of a bucket in a table: how many, and the sum of their hashes.
type Sums = BTreeMap<(String, i16), (i64, String)>;

impl Mover {
    /// Compares once, if the target has caught up; the buckets that have agreed before are not compared again.
    pub(super) async fn compare(&mut self) -> Result<()> {
        if self.progress.has_compared || !self.may_compare().await? {
            return Ok(());
        }
        let mut left: BTreeSet<i16> = self.moved.numbers().into_iter().collect();
        for _ in 0..ROUNDS_MAX {
            let numbers: Vec<i16> = left.iter().copied().collect();
            let (source, target) = tokio::try_join!(
                sums(&self.source.client, &self.moved.tables, &numbers),
                sums(&self.target.client, &self.moved.tables, &numbers)
            )?;
            left = differing(&source, &target);
            if left.is_empty() {
                self.progress.has_compared = true;
                return Ok(());
            }
        }
        (self.report)(&format!("{} buckets differ still; they are compared again", left.len()));
        Ok(())
    }
}

const ROUNDS_MAX: usize = 5;

async fn sums(client: &Client, tables: &[String], buckets: &[i16]) -> Result<Sums> {
    let mut sums = Sums::new();
    for table in tables {
        let select = format!(
            "select bucket(user_id), count(*), sum(hashtextextended(t::text, 0)::numeric)::text
               from {} t where bucket(user_id) = any ($1::int2[]) group by 1",
            escape_identifier(table)
        );
        for row in
            client.query(&select, &[&buckets]).await.with_context(|| format!("cannot compare {table}"))?
        {
            sums.insert((table.clone(), row.try_get(0)?), (row.try_get(1)?, row.try_get(2)?));
        }
    }
    Ok(sums)
}

/// The buckets that are not the same on both.
fn differing(source: &Sums, target: &Sums) -> BTreeSet<i16> {
    let lacks = |one: &Sums, other: &Sums| -> Vec<i16> {
        one.iter().filter(|(key, sum)| other.get(key) != Some(sum)).map(|((_, bucket), _)| *bucket).collect()
    };
    lacks(source, target).into_iter().chain(lacks(target, source)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_differs_by_a_row_a_count_or_a_checksum() {
        let sums = |rows: &[(&str, i16, i64, &str)]| -> Sums {
            rows.iter().map(|(t, b, n, s)| (((*t).to_owned(), *b), (*n, (*s).to_owned()))).collect()
        };
        let one = sums(&[("a", 1, 5, "x"), ("a", 2, 5, "y"), ("b", 2, 1, "z")]);
        assert_eq!(differing(&one, &one), BTreeSet::new());
        for (other, expected) in [
            (sums(&[("a", 1, 5, "x"), ("a", 2, 5, "y")]), [2]),
            (sums(&[("a", 1, 4, "x"), ("a", 2, 5, "y"), ("b", 2, 1, "z")]), [1]),
            (sums(&[("a", 1, 5, "x"), ("a", 2, 5, "other"), ("b", 2, 1, "z")]), [2]),
            (sums(&[("a", 1, 5, "x"), ("a", 2, 5, "y"), ("b", 2, 1, "z"), ("b", 3, 1, "z")]), [3]),
        ] {
            assert_eq!(differing(&one, &other), BTreeSet::from(expected));
            assert_eq!(differing(&other, &one), BTreeSet::from(expected));
        }
    }
}
