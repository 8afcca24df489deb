//! Fills in environment variables.

/// Replaces `${NAME}` and `${NAME:-default}`; `$${` stands for `${`.
pub fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        out.push_str(before);
        if before.ends_with('$') {
            out.push('{');
            rest = after;
            continue;
        }
        let (inside, tail) = after.split_once('}').ok_or("`${` without `}`")?;
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default.to_owned())),
            None => (inside, None),
        };
        let value = env(name).filter(|value| !value.is_empty()).or(default);
        out.push_str(&value.ok_or_else(|| format!("the environment variable {name} is not set"))?);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}
