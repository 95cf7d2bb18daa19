//! The rule about links between documents.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::Finding;
use super::tree::Tree;

/// Every local link of every document leads to a file or folder of the repository, and its `#part` to a heading.
pub(super) fn links(tree: &Tree) -> Vec<Finding> {
    let mut known: BTreeSet<PathBuf> = BTreeSet::new();
    for file in &tree.files {
        known.extend(Path::new(&file.path).ancestors().map(Path::to_path_buf));
    }
    let mut findings = Vec::new();
    for file in tree.files.iter().filter(|file| file.is(".md")) {
        let folder = Path::new(&file.path).parent().unwrap_or(Path::new(""));
        for (line, target) in targets(&file.text) {
            let (path, part) = target.split_once('#').unwrap_or((&target, ""));
            let path = if path.is_empty() { PathBuf::from(&file.path) } else { plain(&folder.join(path)) };
            let text =
                tree.files.iter().find(|other| Path::new(&other.path) == path).map(|other| &other.text);
            let headed = part.is_empty() || text.is_some_and(|text| headings(text).any(|name| name == part));
            if !known.contains(&path) {
                findings.push(Finding::new(&file.path, line, format!("leads nowhere: {target}")));
            } else if !headed {
                findings.push(Finding::new(&file.path, line, format!("no such heading: {target}")));
            }
        }
    }
    findings
}

/// The local targets of inline links, with their lines; those in code are left out.
fn targets(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, line) in prose(text) {
        for part in without_code(line).split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            let target = target.split_whitespace().next().unwrap_or_default();
            let elsewhere = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
            if !elsewhere {
                found.push((at, target.to_owned()));
            }
        }
    }
    found
}

/// The lines outside fenced code.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(at, line)| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            return None;
        }
        (!fenced).then_some((at + 1, line))
    })
}

fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join(" ")
}

/// The headings of a document as links name them: small letters, blanks as `-`, no other signs.
fn headings(text: &str) -> impl Iterator<Item = String> {
    let heads = prose(text).filter(|(_, line)| line.starts_with('#'));
    heads.map(|(_, line)| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    })
}

/// `path` without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let text = "See [a](docs/A.md), [b](docs/B.md#how-it-works) and [c](https://example.com/x).\n\
            `[code](none.md)` [folder](docs) [lost](none.md)\n```\n[fenced](none.md)\n```\n[part](docs/B.md#gone)\n";
        let tree = Tree::of(&[
            ("README.md", text),
            ("docs/A.md", "[up](../README.md) [self](#top)\n# Top\n"),
            ("docs/B.md", "## How it works\n"),
        ]);
        let expected = [
            Finding::new("README.md", 2, "leads nowhere: none.md"),
            Finding::new("README.md", 6, "no such heading: docs/B.md#gone"),
        ];
        assert_eq!(links(&tree), expected);
    }
}
