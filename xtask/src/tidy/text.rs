//! Rules about any text file.

use super::Finding;
use super::code::{blank, has_word};
use super::tree::{File, Tree};

const TEXT: &[&str] = &[".rs", ".md", ".toml", ".sh", ".c", ".h", ".yml", ".py", ".ci/run", ".gitignore"];
const MAX_BYTES: u64 = 1 << 20;

fn texts(tree: &Tree) -> impl Iterator<Item = &File> {
    tree.files.iter().filter(|file| TEXT.iter().any(|ending| file.is(ending)))
}

/// No tab (but in shell, whose here-documents need them), no trailing blank, no carriage return, exactly one
/// newline at the end.
pub(super) fn whitespace(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in texts(tree).filter(|file| !file.text.is_empty()) {
        for (at, line) in file.text.split('\n').enumerate() {
            let mut say = |what: &str| findings.push(Finding::new(&file.path, at + 1, what));
            if line.contains('\r') {
                say("carriage return");
            } else if line.ends_with([' ', '\t']) {
                say("trailing blank");
            }
            if line.contains('\t') && !file.is(".sh") {
                say("tab");
            }
        }
        if !file.text.ends_with('\n') || file.text.ends_with("\n\n") {
            findings.push(Finding::new(&file.path, 0, "does not end in one newline"));
        }
    }
    findings
}

/// Marks for later, placeholders and debug prints. The words are put together here so that this file does not
/// object to itself.
pub(super) fn leftovers(tree: &Tree) -> Vec<Finding> {
    let marks = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat()];
    let macros = ["todo", "unimplemented", "dbg"];
    let mut findings = Vec::new();
    for file in texts(tree) {
        let code = if file.is(".rs") { blank(&file.text) } else { String::new() };
        for (at, line) in file.text.lines().enumerate() {
            for mark in marks.iter().filter(|mark| has_word(line, mark)) {
                findings.push(Finding::new(&file.path, at + 1, mark.as_str()));
            }
        }
        for (at, line) in code.lines().enumerate() {
            let squeezed: String = line.chars().filter(|c| !c.is_whitespace()).collect();
            let called = |name: &&&str| has_word(line, name) && squeezed.contains(&format!("{name}!"));
            findings.extend(
                macros.iter().filter(called).map(|name| Finding::new(&file.path, at + 1, format!("{name}!"))),
            );
        }
    }
    findings
}

/// No file over 1 MiB.
pub(super) fn size(tree: &Tree) -> Vec<Finding> {
    let large = tree.files.iter().filter(|file| file.bytes > MAX_BYTES);
    large.map(|file| Finding::new(&file.path, 0, format!("{} bytes, over {MAX_BYTES}", file.bytes))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(findings: &[Finding]) -> Vec<(usize, &str)> {
        findings.iter().map(|finding| (finding.line, finding.what.as_str())).collect()
    }

    #[test]
    fn blanks_are_found() {
        let tree = Tree::of(&[("a.rs", "a\tb\nc \nd\r\ne"), ("b.md", "fine\n"), ("c.bin", "x\ty ")]);
        let findings = whitespace(&tree);
        let expected =
            [(1, "tab"), (2, "trailing blank"), (3, "carriage return"), (0, "does not end in one newline")];
        assert_eq!(lines(&findings), expected);
        assert_eq!(whitespace(&Tree::of(&[("a.rs", "a\n\n")])).len(), 1);
        assert_eq!(whitespace(&Tree::of(&[("a.sh", "\tcat <<-END\n")])), []);
    }

    #[test]
    fn leftovers_are_found_in_comments_and_in_code() {
        let mark = ["TO", "DO"].concat();
        let text = format!(
            "// {mark}: later\nlet x = dbg!(1);\n// dbg! in a comment is fine\ntodo !()\n\"todo!\"\n"
        );
        let tree = Tree::of(&[("a.rs", &text), ("b.md", "MASTODON\n")]);
        assert_eq!(lines(&leftovers(&tree)), [(1, mark.as_str()), (2, "dbg!"), (4, "todo!")]);
    }

    #[test]
    fn a_large_file_is_found() {
        let mut tree = Tree::of(&[("a.png", ""), ("b.png", "")]);
        tree.files[1].bytes = MAX_BYTES + 1;
        let findings = size(&tree);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].path, "b.png");
    }
}
