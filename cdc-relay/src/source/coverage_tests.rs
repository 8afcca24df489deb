//! Changes of a publication that are losses, and changes that are not.

use super::*;

fn source(deletes: bool) -> Source {
    let deletes = if deletes { "deletes = \"event\"" } else { "" };
    sourced(
        "",
        &format!("name = \"t\"\n[[sources.tables.routes]]\ntopic = \"x\"\ntype = \"y.{{@op}}\"\n{deletes}"),
    )
}

fn sourced(more: &str, table: &str) -> Source {
    let file = format!(
        "[[sources]]\nname = \"s\"\nurl = \"postgres://h/d\"\npublication = \"p\"\n{more}\n[[sources.tables]]\n{table}\n"
    );
    let routes = crate::routes::Routes::parse(&file, |_| None).expect("routes");
    routes.sources.into_iter().next().expect("a source")
}

fn member(oid: u32, transaction: &str) -> Member {
    Member { oid, of: "table public.t".to_owned(), transaction: transaction.to_owned(), ..Member::default() }
}

fn limited(member: Member, columns: Option<&[i32]>, filter: Option<&str>) -> Member {
    Member { columns: columns.map(<[i32]>::to_vec), filter: filter.map(str::to_owned), ..member }
}

fn part(oid: u32, transaction: &str) -> Part {
    Part { oid, name: format!("part_{oid}"), transaction: transaction.to_owned(), toast: oid + 1000 }
}

fn table(name: &str, members: Vec<Member>) -> Table {
    Table {
        schema: "public".to_owned(),
        name: name.to_owned(),
        oid: 100,
        schema_transaction: Some("5".to_owned()),
        shape: "s".to_owned(),
        toast: 1100,
        members,
        parts: vec![part(201, "7"), part(202, "8")],
        detached: vec![203],
    }
}

fn coverage(tables: Vec<Table>) -> Coverage {
    let publication = Publication {
        oid: 1,
        transaction: "10".to_owned(),
        command: 0,
        inserts: true,
        updates: true,
        deletes: true,
    };
    Coverage { publication: Some(publication), tables }
}

fn one(members: Vec<Member>) -> Coverage {
    coverage(vec![table("t", members)])
}

fn published(change: impl FnOnce(&mut Publication)) -> Coverage {
    let mut coverage = one(vec![member(11, "10")]);
    change(coverage.publication.as_mut().expect("a publication"));
    coverage
}

fn tabled(change: impl FnOnce(&mut Table)) -> Coverage {
    let mut coverage = one(vec![member(11, "10")]);
    change(&mut coverage.tables[0]);
    coverage
}

/// Returns the text of the losses; it is empty if there are none.
fn losses_text(before: &Coverage, after: &Coverage, replaced: &[(&str, &str)]) -> String {
    let command = |by: &str| Command { transaction: by.to_owned(), number: 0 };
    let replaced = replaced.iter().map(|(what, by)| ((*what).to_owned(), command(by))).collect();
    losses(before, after, &source(false), &Replaced(replaced)).join("; ")
}

#[test]
fn a_change_of_the_publication_is_a_loss_unless_it_is_one_and_takes_nothing_away() {
    let before = one(vec![member(11, "10")]);
    let altered =
        |transaction: &str| published(|publication| publication.transaction = transaction.to_owned());
    let nothing = Coverage { publication: None, tables: Vec::new() };
    for (after, replaced, expected) in [
        (before.clone(), vec![], ""),
        (nothing, vec![], "publication p was dropped"),
        (published(|publication| publication.oid = 2), vec![], "made again"),
        (published(|publication| publication.inserts = false), vec![], "inserts any more"),
        (published(|publication| publication.updates = false), vec![], "updates any more"),
        // No route takes them.
        (published(|publication| publication.deletes = false), vec![], ""),
        (altered("20"), vec![("publication 1", "20")], ""),
        (altered("20"), vec![("publication 1", "15")], "more than once"),
        (altered("20"), vec![], "while no relay watched it"),
    ] {
        let losses_text = losses_text(&before, &after, &replaced);
        assert!(
            if expected.is_empty() { losses_text.is_empty() } else { losses_text.contains(expected) },
            "{losses_text}; {expected}"
        );
    }
    let without = published(|publication| publication.deletes = false);
    assert!(losses(&before, &without, &source(true), &Replaced::default())[0].contains("deletes any more"));
}

#[test]
fn a_table_that_is_another_one_or_sent_for_another_reason_is_a_loss() {
    let before = one(vec![member(11, "10")]);
    let put_back = one(vec![member(12, "20")]);
    for (after, expected) in [
        (coverage(vec![]), "is not published any more"),
        (
            coverage(vec![Table { name: "u".to_owned(), ..before.tables[0].clone() }]),
            "not published any more",
        ),
        (tabled(|table| table.oid = 101), "dropped and made again"),
        (put_back.clone(), "taken out of the publication and put in again"),
        (one(vec![Member { of: "schema public".to_owned(), ..member(12, "20") }]), "was published by"),
        (
            tabled(|table| table.parts = vec![part(201, "9"), part(202, "8")]),
            "part_201 was detached from public.t",
        ),
        (tabled(|table| table.parts.push(part(203, "9"))), "part_203 was detached from public.t"),
    ] {
        let losses_text = losses_text(&before, &after, &[]);
        assert!(losses_text.contains(expected), "{losses_text}; {expected}");
    }
    // A table that is put back unchanged was away, even if one transaction did both.
    assert!(losses_text(&before, &put_back, &[("member 11", "20")]).contains("put in again"));
}

#[test]
fn what_is_added_is_no_loss() {
    let before = one(vec![member(11, "10")]);
    let by_schema = Member { of: "schema public".to_owned(), ..member(12, "20") };
    for after in [
        coverage(vec![before.tables[0].clone(), Table { oid: 300, ..table("u", vec![]) }]),
        tabled(|table| table.parts.push(part(204, "9"))),
        tabled(|table| table.parts.clear()),
        tabled(|table| table.shape = "other".to_owned()),
        tabled(|table| table.schema_transaction = Some("6".to_owned())),
        one(vec![member(11, "10"), by_schema.clone()]),
    ] {
        assert_eq!(losses_text(&before, &after, &[]), "", "{after:?}");
    }
    // Published twice, it is still sent when one of the two ends.
    assert_eq!(losses_text(&one(vec![member(11, "10"), by_schema]), &before, &[]), "");
    // Tables without routes are nobody's loss.
    let more = coverage(vec![before.tables[0].clone(), table("u", vec![])]);
    assert_eq!(losses_text(&more, &before, &[]), "");
    // Nothing was published before: nothing to compare with.
    assert_eq!(losses_text(&Coverage::default(), &before, &[]), "");
}

#[test]
fn a_wider_list_of_columns_is_an_addition_if_one_transaction_brought_it() {
    let of = |oid, transaction, columns: Option<&[i32]>, filter| {
        one(vec![limited(Member { command: 1, ..member(oid, transaction) }, columns, filter)])
    };
    let before = of(11, "10", Some(&[1, 2]), Some("(a > 1)"));
    let (at_once, later) = (vec![("member 11", "20")], vec![("member 11", "19")]);
    for (after, replaced, fine) in [
        (of(12, "20", Some(&[1, 2, 3]), Some("(a > 1)")), &at_once, true),
        (of(12, "20", None, Some("(a > 1)")), &at_once, true),
        (of(12, "20", Some(&[2, 1]), None), &at_once, true),
        (of(12, "20", None, None), &at_once, true),
        (of(12, "20", None, None), &later, false),
        (of(12, "20", None, None), &vec![], false),
        (of(12, "20", Some(&[1, 2]), Some("(a > 1)")), &at_once, false),
        (of(12, "20", Some(&[1]), None), &at_once, false),
        (of(12, "20", Some(&[1, 3]), Some("(a > 1)")), &at_once, false),
        (of(12, "20", Some(&[1, 2, 3]), Some("(a > 2)")), &at_once, false),
    ] {
        assert_eq!(losses_text(&before, &after, replaced).is_empty(), fine, "{after:?}");
    }
    let whole = one(vec![member(11, "10")]);
    for (columns, filter) in [(Some(&[1, 2][..]), None), (None, Some("(a > 1)"))] {
        let limited = one(vec![limited(member(12, "20"), columns, filter)]);
        assert!(!losses_text(&whole, &limited, &at_once).is_empty());
        // Besides what is there, it limits what is sent.
        let both = one(vec![member(11, "10"), limited.tables[0].members[0].clone()]);
        assert!(losses_text(&whole, &both, &[]).contains("limits public.t"));
    }
}

/// As the server numbers the commands of a transaction: `set table` takes all old ones away one by one, then brings
/// all new ones.
#[test]
fn a_statement_between_taking_out_and_putting_in_is_noticed() {
    let old = |oid, number| (format!("member {oid}"), Command { transaction: "20".to_owned(), number });
    let at_once = |taken: &[(u32, u32)], oid, brought| {
        let replaced = Replaced(taken.iter().map(|(oid, number)| old(*oid, *number)).collect());
        replaced.at_once(&member(oid, "10"), &Member { command: brought, ..member(99, "20") })
    };
    assert!(at_once(&[(11, 0)], 11, 1));
    assert!(!at_once(&[(11, 0)], 11, 2), "a row was written in between");
    assert!(at_once(&[(11, 4), (12, 6), (13, 5)], 12, 7));
    assert!(at_once(&[(11, 4), (12, 6), (13, 5)], 11, 7));
    assert!(!at_once(&[(11, 4), (12, 5)], 12, 7), "a row was written in between");
    assert!(!at_once(&[(12, 0)], 11, 1), "nobody saw it go");
    let publication =
        |command| Publication { transaction: "20".to_owned(), command, ..Publication::default() };
    let replaced =
        Replaced([("publication 0".to_owned(), Command { transaction: "20".to_owned(), number: 1 })].into());
    assert!(replaced.altered_once(&publication(0), &publication(1)));
    assert!(!replaced.altered_once(&publication(0), &publication(3)), "altered twice");
}

#[test]
fn a_table_that_is_published_by_its_schema_must_not_leave_it() {
    let by_schema = |schema_transaction: &str| {
        let mut coverage = one(vec![Member { of: "schema public".to_owned(), ..member(11, "10") }]);
        coverage.tables[0].schema_transaction = Some(schema_transaction.to_owned());
        coverage
    };
    assert_eq!(losses_text(&by_schema("5"), &by_schema("5"), &[]), "");
    assert!(losses_text(&by_schema("5"), &by_schema("6"), &[]).contains("out of its schema and back"));
}

#[test]
fn a_detached_partition_stays_known() {
    let before = one(vec![member(11, "10")]);
    let without = tabled(|table| table.parts = vec![part(202, "8")]);
    assert_eq!(without.detached_since(&before), ["part_201 of public.t"]);
    let now = without.after(&before);
    assert_eq!(now.tables[0].detached, [203, 201]);
    let back = tabled(|table| table.parts = vec![part(201, "30"), part(202, "8")]).after(&now);
    assert!(losses_text(&now, &back, &[]).contains("part_201 was detached"));
}

#[test]
fn another_shape_of_a_table_without_routes_is_nothing_to_look_at() {
    let before = coverage(vec![table("t", vec![]), table("u", vec![])]);
    let mut after = before.clone();
    after.tables[1].shape = "other".to_owned();
    assert!(!before.reshaped(&after, &source(false)));
    after.tables[0].shape = "other".to_owned();
    assert!(before.reshaped(&after, &source(false)));
    assert_eq!(before.watched(&source(false)), [100, 201, 202]);
}

fn names(coverage: &Coverage) -> Vec<&str> {
    coverage.tables.iter().map(|table| table.name.as_str()).collect()
}

/// The halt it prevents: a record that the state topic does not take, whatever the source is about.
#[test]
fn tables_without_routes_are_not_kept() {
    let other = |n| table(&format!("other_{n}"), vec![member(n, "10")]);
    let all = coverage((0..10_000).map(other).chain([table("t", vec![])]).collect());
    let answer = serde_json::to_string(&all).expect("JSON");
    let read = query::read(&answer, &source(false)).expect("a coverage");
    assert_eq!(names(&read), ["t"]);
    assert_eq!(read.publication, all.publication);
    assert!(serde_json::to_string(&read).expect("JSON").len() < 1000);
}

/// A table that a pattern matches may be made while a session streams, whose routes do not have it by its name.
#[test]
fn a_table_that_a_pattern_matches_has_routes() {
    let source = sourced("ignore = [\"orders_tmp*\"]", "name = \"orders_*\"\ntopic = \"x\"");
    let orders = |oid| table("orders_1", vec![member(oid, "10")]);
    let all = coverage(vec![orders(11), table("orders_tmp", vec![]), table("others", vec![])]);
    let before = all.of(&source);
    assert_eq!(names(&before), ["orders_1"]);
    let losses = |after: &Coverage| losses(&before, after, &source, &Replaced::default()).join("; ");
    assert_eq!(losses(&before), "");
    assert!(losses(&coverage(vec![orders(12)])).contains("put in again"));
    assert!(losses(&coverage(vec![])).contains("not published any more"));
}

#[test]
fn a_baseline_has_every_table_that_is_routed_by_its_name() {
    let (all, others) =
        (coverage(vec![table("u", vec![]), table("t", vec![])]), coverage(vec![table("u", vec![])]));
    assert_eq!(all.lacks(&source(false)), None);
    let elsewhere = tabled(|table| table.schema = "other".to_owned());
    for without in [&others, &elsewhere, &Coverage::default()] {
        assert_eq!(without.lacks(&source(false)).as_deref(), Some("public.t"));
    }
    // A pattern may match none now; the contract decides whether it may.
    let source = sourced("", "name = \"orders_*\"\ntopic = \"x\"");
    assert_eq!(others.lacks(&source), None);
}

#[test]
fn a_table_whose_rows_were_rewritten_may_have_been_unlogged_if_the_server_would_let_it() {
    let by_schema = || {
        let mut coverage = one(vec![Member { of: "schema public".to_owned(), ..member(11, "10") }]);
        coverage.tables[0].schema_transaction = Some("5".to_owned());
        coverage
    };
    let with = |mut coverage: Coverage, change: fn(&mut Table)| {
        change(&mut coverage.tables[0]);
        coverage
    };
    let everything = || coverage(vec![table("t", vec![])]);
    for before in [by_schema(), everything()] {
        let rewritten = with(before.clone(), |table| table.toast = 2100);
        assert!(losses_text(&before, &rewritten, &[]).contains("public.t was rewritten"));
        let part = with(before.clone(), |table| table.parts[1].toast = 2202);
        assert!(losses_text(&before, &part, &[]).contains("part_202 was rewritten"));
        for change in [
            |table: &mut Table| (table.toast, table.shape) = (2100, "other".to_owned()),
            |table: &mut Table| table.toast = 0,
            |table: &mut Table| table.parts[0].toast = 0,
        ] {
            assert_eq!(losses_text(&before, &with(before.clone(), change), &[]), "");
        }
        // An earlier release did not write it down.
        let earlier = with(before.clone(), |table| table.toast = 0);
        assert_eq!(losses_text(&earlier, &rewritten, &[]), "");
    }
    let by_name = one(vec![member(11, "10")]);
    assert_eq!(losses_text(&by_name, &with(by_name.clone(), |table| table.toast = 2100), &[]), "");
    assert!(
        losses_text(&by_name, &with(by_name.clone(), |table| table.parts[0].toast = 2201), &[])
            .contains("part_201")
    );
}
