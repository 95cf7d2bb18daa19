//! Rust source with its comments and literals blanked out, so that a rule sees code only.

/// `text` with every comment, string and character literal replaced by blanks; lines stay where they are.
pub(crate) fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let len = literal_len(bytes, at);
        if len == 0 {
            out.push(if bytes[at].is_ascii() { bytes[at] } else { b'_' });
            at += 1;
        } else {
            out.extend(bytes[at..at + len].iter().map(|&b| if b == b'\n' { b'\n' } else { b' ' }));
            at += len;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The length of the comment or literal that begins at `at`; 0 when none does.
fn literal_len(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let joined = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    match rest {
        [b'/', b'/', ..] => rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment_len(rest),
        [b'"', ..] => string_len(rest),
        [b'r', b'"' | b'#', ..] if !joined => raw_string_len(rest, 1),
        [b'b' | b'c', b'r', b'"' | b'#', ..] if !joined => raw_string_len(rest, 2),
        [b'\'', ..] => char_len(rest),
        _ => 0,
    }
}

fn block_comment_len(rest: &[u8]) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn string_len(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn raw_string_len(rest: &[u8], prefix: usize) -> usize {
    let hashes = rest[prefix..].iter().take_while(|&&b| b == b'#').count();
    if rest.get(prefix + hashes) != Some(&b'"') {
        return 0;
    }
    let mut end = vec![b'#'; hashes + 1];
    end[0] = b'"';
    let body = prefix + hashes + 1;
    let found = rest[body..].windows(end.len()).position(|window| window == end);
    found.map_or(rest.len(), |found| body + found + end.len())
}

/// A character literal; 0 for a lifetime.
fn char_len(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        let close = rest.iter().skip(3).position(|&b| b == b'\'');
        return close.map_or(rest.len(), |close| close + 4);
    }
    let close = rest.iter().skip(1).take(5).position(|&b| b == b'\'');
    let Some(close) = close else { return 0 };
    let inner = std::str::from_utf8(&rest[1..=close]).unwrap_or("");
    if inner.chars().count() == 1 { close + 2 } else { 0 }
}

/// True when `word` stands in `line` by itself, not as part of a longer name.
pub(crate) fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(part)
            && !line[at + word.len()..].chars().next().is_some_and(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        let cases = [
            ("let a = 1; // unsafe", "let a = 1;          "),
            ("a /* x /* y */ z */ b", "a                   b"),
            (r#"f("a \" {", 'x')"#, "f(        ,    )"),
            ("r#\"un\"safe\"# + b", "             + b"),
            ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
            (r"('\'', '\n', '{')", "(    ,     ,    )"),
            ("br\"{\" c", "      c"),
        ];
        for (text, blanked) in cases {
            assert_eq!(blank(text).trim_end(), blanked.trim_end(), "{text}");
        }
    }

    #[test]
    fn lines_stay_where_they_are() {
        let text = "one\n/* a\nb */ two\n\"x\ny\" three\n";
        let blanked = blank(text);
        assert_eq!(blanked.lines().count(), text.lines().count());
        assert_eq!(blanked.lines().nth(2).map(str::trim), Some("two"));
        assert_eq!(blanked.lines().nth(4).map(str::trim), Some("three"));
    }

    #[test]
    fn a_word_is_not_part_of_another() {
        assert!(has_word("pub unsafe fn", "unsafe"));
        assert!(!has_word("forbid(unsafe_code)", "unsafe"));
        assert!(!has_word("not_unsafe", "unsafe"));
    }
}
