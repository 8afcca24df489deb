use super::*;

fn read_with(text: &str, environment: &[(&str, &str)]) -> Result<String> {
    let env = |name: &str| {
        environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    };
    let read = read(text, &env)?;
    Ok(read.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" "))
}

#[test]
fn a_string_is_read_as_libpq_reads_it() {
    for (text, expected) in [
        ("postgres://u:p@h:5433/d", "dbname=d host=h password=p port=5433 user=u"),
        ("postgresql://h", "host=h"),
        ("postgres://", ""),
        ("postgres:///d?host=/var/run&user=a@b", "dbname=d host=/var/run user=a@b"),
        ("postgres://%2Ftmp/d", "dbname=d host=/tmp"),
        ("postgres://h1:1,h2:2/d", "dbname=d host=h1,h2 port=1,2"),
        ("postgres://[::1]:5433/d", "dbname=d host=::1 port=5433"),
        ("postgres://h/d?user=a@b", "dbname=d host=h user=a@b"),
        ("postgres://u:p%40%2F%3A@h/d", "dbname=d host=h password=p@/: user=u"),
        // Forms that other clients accept and libpq does not.
        ("postgres://u:p/w?x@h/d", "dbname=d host=h password=p/w?x user=u"),
        ("postgres://h/d?ssl=true&gssencmode=disable", "dbname=d host=h sslmode=require"),
        ("postgres://h/d?ssl%6Dode=require&application_name=x", "dbname=d host=h sslmode=require"),
        ("", ""),
        (
            "host=h dbname = 'my db' user='it\\'s' password=a\\ b\\\\c",
            "dbname=my db host=h password=a b\\c user=it's",
        ),
        ("host=h password=a?sslmode=x sslmode=require", "host=h password=a?sslmode=x sslmode=require"),
        ("host='' user=u user=v", "user=v"),
    ] {
        assert_eq!(read_with(text, &[]).expect(text), expected, "{text}");
    }
}

#[test]
fn the_environment_fills_in_missing_parameters() {
    let environment = [("PGUSER", "env"), ("PGPASSWORD", "secret"), ("PGSSLMODE", "require"), ("PGHOST", "")];
    let found = read_with("postgres://u@h/d", &environment).expect("a string");
    assert_eq!(found, "dbname=d host=h password=secret sslmode=require user=u");
    assert_eq!(read_with("", &environment).expect("a string"), "password=secret sslmode=require user=env");
}

#[test]
fn unsupported_and_malformed_parameters_are_refused() {
    for (text, why) in [
        ("h", "neither a URL"),
        ("host h=1", "no `=` after it"),
        ("password='x", "does not end"),
        ("postgres://h/d?x", "has no `=`"),
        ("postgres://[::1/d", "without `]`"),
        ("postgres://h/d?sslmod=require", "did you mean `sslmode`"),
        ("service=x", "service=x (or PGSERVICE) is not supported here"),
        ("postgres://h/d?gssencmode=require", "gssencmode=require"),
        ("postgres://h/d?sslcrl=x", "sslcrl"),
        ("postgres://h/d?ssl_min_protocol_version=TLSv1.3", "ssl_min_protocol_version"),
    ] {
        let error = format!("{:#}", read_with(text, &[]).expect_err(text));
        assert!(error.contains(why), "{text}: {error}");
    }
    assert!(read_with("postgres://h/d", &[("PGSERVICE", "x")]).is_err());
    assert!(read_with("postgres://h/d", &[("PGGSSENCMODE", "prefer")]).is_ok());
}
