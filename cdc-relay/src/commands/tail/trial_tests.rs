//! Tests which tables a tail publishes, by the rights of its role.

use super::*;

fn table(name: &str, owned: bool, identity: bool) -> Table {
    Table { oid: 1, schema: "public".to_owned(), name: name.to_owned(), owned, identity, key: Vec::new() }
}

fn facts(superuser: bool, may_publish: bool, tables: &[Table]) -> Facts {
    Facts {
        version: 150_000,
        wal_level: "logical".to_owned(),
        standby: false,
        role: "ann".to_owned(),
        superuser,
        replication: true,
        may_publish,
        free_slots: 1,
        tables: tables.to_vec(),
        leftovers: Vec::new(),
    }
}

#[test]
fn publishing_for_a_look_never_makes_anybodys_updates_fail() {
    let tables = [table("keyed", true, true), table("keyless", true, false)];
    for superuser in [true, false] {
        let plan = plan(&facts(superuser, true, &tables), &[], "x").expect("a plan");
        let changes: Vec<&String> = plan.statements.iter().filter(|sql| sql.contains("update")).collect();
        assert_eq!(changes.len(), 1);
        assert!(changes[0].contains(".keyed ") && !changes[0].contains("keyless"), "{}", changes[0]);
        assert!(!changes[0].contains("all tables"), "a table made later may have no key");
        assert_eq!(plan.statements[0].contains("for all tables"), superuser);
        assert_eq!(plan.names, ["x", "x_u"]);
        assert!(plan.notes[0].contains("keyless"));
    }
}

#[test]
fn what_a_role_does_not_own_is_left_out_and_said() {
    let tables = [table("mine", true, true), table("theirs", false, true)];
    let made = plan(&facts(false, true, &tables), &[], "x").expect("a plan");
    assert!(made.statements.iter().all(|sql| sql.contains("mine") && !sql.contains("theirs")));
    assert!(made.notes[0].contains("theirs"), "{:?}", made.notes);
    let only = plan(&facts(true, true, &tables), &["theirs".parse().expect("a name")], "x").expect("a plan");
    assert!(only.statements[0].contains("for table public.theirs"), "{}", only.statements[0]);
    for (may, tables, wanted, said) in [
        (false, &tables[..], "mine", "may not create a publication"),
        (true, &tables[1..], "theirs", "owns none of the tables"),
        (true, &tables[..], "nobodys", "there is no table public.nobodys"),
    ] {
        let error =
            plan(&facts(false, may, tables), &[wanted.parse().expect("a name")], "x").expect_err("no plan");
        assert!(format!("{error:#}").contains(said), "{error:#}");
    }
}

#[test]
fn what_stands_in_the_way_is_said_with_what_to_do() {
    let fine = facts(false, true, &[]);
    assert_eq!(obstacle(&fine, true), None);
    for (facts, said) in [
        (Facts { wal_level: "replica".to_owned(), ..fine.clone() }, "alter system set wal_level = logical;"),
        (Facts { replication: false, ..fine.clone() }, "alter role ann replication;"),
        (Facts { free_slots: 0, ..fine.clone() }, "max_replication_slots"),
        (Facts { standby: true, ..fine.clone() }, "--publication"),
        (Facts { version: 90_600, ..fine.clone() }, "Postgres 13 or newer is needed; this is 9"),
    ] {
        let obstacle = obstacle(&facts, true).expect("an obstacle");
        assert!(obstacle.contains(said), "{obstacle}");
    }
}
