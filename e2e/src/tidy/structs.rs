//! Refuses structs with many fields: such an object holds too much.

use super::lexer::{Kind, Token, tokens};
use super::sources;

const FIELDS_MAX: usize = 15;

/// Derives of configuration: each field of it is a flag, a variable or a key of a file.
const CONFIGURATION: [&str; 3] = ["Args", "Parser", "Deserialize"];

/// Structs that may have more, each with the reason.
const EXCEPTIONS: &[(&str, &str)] = &[
    (
        "coroctl/src/stack.rs:Stack",
        "the environment of a stack, one field a variable: configuration without flags",
    ),
    (
        "cdc-relay/src/routes.rs:Route",
        "a route of the routes file, one field a key: configuration that keeps its ranges",
    ),
];

/// A struct with named fields.
#[derive(Debug, PartialEq, Eq)]
struct Struct<'s> {
    name: &'s str,
    fields: usize,
    derives: Vec<&'s str>,
    line: usize,
}

/// The structs of a file. Attributes are those since the last item's end.
fn structs<'s>(source: &'s str) -> Vec<Struct<'s>> {
    let code: Vec<Token<'s>> = tokens(source)
        .into_iter()
        .filter(|token| matches!(token.kind, Kind::Name | Kind::Punctuation))
        .collect();
    let mut found = Vec::new();
    for (at, token) in code.iter().enumerate() {
        if token.text != "struct" {
            continue;
        }
        let Some(name) = code.get(at + 1) else { continue };
        let rest = &code[at + 1..];
        // `;` ends a unit or a tuple struct, `(` opens one.
        let Some(open) = rest.iter().position(|token| matches!(token.text, "{" | ";" | "(")) else {
            continue;
        };
        if rest[open].text != "{" {
            continue;
        }
        let before = &code[..at];
        let item = before.iter().rposition(|token| matches!(token.text, "}" | ";")).map_or(0, |end| end + 1);
        let derives = before[item..].iter().filter(|token| token.kind == Kind::Name).map(|token| token.text);
        let (name, line) = (name.text, token.line);
        found.push(Struct { name, fields: fields(&rest[open + 1..]), derives: derives.collect(), line });
    }
    found
}

/// How many fields stand between here and the closing brace.
fn fields(code: &[Token<'_>]) -> usize {
    let (mut depth, mut count) = (0_i32, 0);
    for (at, token) in code.iter().enumerate() {
        let next = code.get(at + 1).map_or("", |token| token.text);
        let after = code.get(at + 2).map_or("", |token| token.text);
        match token.text {
            "}" if depth == 0 => break,
            "{" | "(" | "[" | "<" => depth += 1,
            "}" | ")" | "]" => depth -= 1,
            // Not the arrow of a function type.
            ">" if at == 0 || code[at - 1].text != "-" => depth -= 1,
            _ if token.kind == Kind::Name && depth == 0 && next == ":" && after != ":" => {
                // `a::b: T` is no field; a path's last part follows a colon.
                count += usize::from(at == 0 || code[at - 1].text != ":");
            }
            _ => {}
        }
    }
    count
}

#[test]
fn a_struct_has_few_fields() {
    let mut wrong = Vec::new();
    let mut used = Vec::new();
    for (path, text) in sources("rs") {
        for Struct { name, fields, derives, line } in structs(&text) {
            if fields <= FIELDS_MAX || CONFIGURATION.iter().any(|derive| derives.contains(derive)) {
                continue;
            }
            let place = format!("{path}:{name}");
            if EXCEPTIONS.iter().any(|(excepted, _)| *excepted == place) {
                used.push(place);
            } else {
                wrong.push(format!(
                    "{path}:{line}: {name} has {fields} fields, at most {FIELDS_MAX}: split it"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (excepted, _) in EXCEPTIONS {
        assert!(used.iter().any(|used| used == excepted), "{excepted} needs no exception any more");
    }
}

#[test]
fn fields_are_counted_without_those_of_their_types() {
    let source = "#[derive(Args)] pub struct A<T: B> where T: C { pub a: std::u8, b: fn(x: i8) -> Vec<i8>, #[x(c = 1)] d: (E, F) }
                  struct U; struct T(i8, i8); struct G { /* h: i8 */ }";
    let found = structs(source);
    let counts: Vec<(&str, usize)> = found.iter().map(|found| (found.name, found.fields)).collect();
    assert_eq!(counts, [("A", 3), ("G", 0)]);
    assert!(found[0].derives.contains(&"Args") && !found[1].derives.contains(&"Args"));
}
