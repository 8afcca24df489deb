//! Splits Rust source into code, strings and comments, which the rules treat differently.

/// A piece of source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An identifier, a keyword or a lifetime's name.
    Name,
    /// One character of punctuation, or a character literal's quote.
    Punctuation,
    /// The content of a string literal, without its quotes.
    Text,
    /// A comment, with its slashes.
    Comment,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token<'s> {
    pub kind: Kind,
    pub text: &'s str,
    /// Counted from 1.
    pub line: usize,
}

/// All tokens of `source`, in order.
pub fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut lexer = Lexer { source, at: 0, line: 1, tokens: Vec::new() };
    while lexer.at < source.len() {
        lexer.next();
    }
    lexer.tokens
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    line: usize,
    tokens: Vec<Token<'s>>,
}

impl<'s> Lexer<'s> {
    fn next(&mut self) {
        let rest = &self.source[self.at..];
        if rest.starts_with("//") {
            self.push(Kind::Comment, 0, rest.find('\n').unwrap_or(rest.len()), 0);
        } else if rest.starts_with("/*") {
            self.push(Kind::Comment, 0, block_comment(rest), 0);
        } else if let Some((open, hashes)) = raw_string(rest) {
            let close = format!("\"{}", "#".repeat(hashes));
            let length = rest[open..].find(&close).unwrap_or(rest.len() - open);
            self.push(Kind::Text, open, length, close.len());
        } else if let Some(content) = rest.strip_prefix('"') {
            self.push(Kind::Text, 1, quoted(content), 1);
        } else if let Some(length) = character(rest) {
            self.push(Kind::Punctuation, 0, length, 0);
        } else {
            let name = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            match name {
                0 => {
                    let first = rest.chars().next().map_or(1, char::len_utf8);
                    let kind =
                        if rest.starts_with(char::is_whitespace) { None } else { Some(Kind::Punctuation) };
                    match kind {
                        Some(kind) => self.push(kind, 0, first, 0),
                        None => self.skip(first),
                    }
                }
                // A prefix as in b"…" belongs to no name.
                _ => self.push(Kind::Name, 0, name, 0),
            }
        }
    }

    /// Takes `open` bytes, then the token's `length`, then `close` bytes.
    fn push(&mut self, kind: Kind, open: usize, length: usize, close: usize) {
        let begin = self.at + open;
        let end = (begin + length).min(self.source.len());
        self.tokens.push(Token { kind, text: &self.source[begin..end], line: self.line });
        self.skip((end + close).min(self.source.len()) - self.at);
    }

    fn skip(&mut self, bytes: usize) {
        self.line += self.source[self.at..self.at + bytes].matches('\n').count();
        self.at += bytes;
    }
}

/// The length of a block comment, nested ones included.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// Where the content of a raw string begins, and the hashes that close it.
fn raw_string(rest: &str) -> Option<(usize, usize)> {
    let prefix = ["br", "cr", "r"].into_iter().find(|prefix| rest.starts_with(prefix))?;
    let hashes = rest[prefix.len()..].bytes().take_while(|byte| *byte == b'#').count();
    let open = prefix.len() + hashes;
    rest[open..].starts_with('"').then_some((open + 1, hashes))
}

/// The length of a string's content.
fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at,
            _ => {}
        }
    }
    rest.len()
}

/// The length of a character literal; a lifetime is none.
fn character(rest: &str) -> Option<usize> {
    let inner = rest.strip_prefix('\'')?;
    if let Some(escape) = inner.strip_prefix('\\') {
        let first = escape.chars().next()?.len_utf8();
        return Some(2 + first + escape[first..].find('\'')? + 1);
    }
    let first = inner.chars().next()?.len_utf8();
    inner[first..].starts_with('\'').then_some(first + 2)
}

#[test]
fn code_strings_and_comments_are_separated() {
    let source = "let a = \"x \\\" // no\"; // yes 'tis\n/* a /* b */ c */ fn f<'a>(c: char) -> r#\"raw \" \"# { '\"' }";
    let of = |kind: Kind| -> Vec<&str> {
        let tokens = tokens(source);
        tokens.iter().filter(|token| token.kind == kind).map(|token| token.text).collect()
    };
    assert_eq!(of(Kind::Text), ["x \\\" // no", "raw \" "]);
    assert_eq!(of(Kind::Comment), ["// yes 'tis", "/* a /* b */ c */"]);
    assert_eq!(of(Kind::Name), ["let", "a", "fn", "f", "a", "c", "char"]);
    assert_eq!(tokens(source).last().map(|token| token.line), Some(2));
}
