//! `cargo xtask tidy`: the rules that keep the repository in order.
//!
//! A rule is a function from the [`Tree`] to findings, and [`RULES`] lists them all; each has its tests on
//! small inputs beside it. Nothing here changes a file.

use std::process::ExitCode;

use anyhow::bail;

use self::tree::Tree;

mod arrows;
pub(crate) mod code;
mod links;
pub(crate) mod rust;
mod text;
pub(crate) mod tree;

/// Something that a rule objects to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    /// The line, from 1; 0 when it is about the whole file.
    line: usize,
    what: String,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, what: what.into() }
    }
}

type Rule = fn(&Tree) -> Vec<Finding>;

/// Every rule, with what it asks for.
const RULES: &[(&str, Rule)] = &[
    (
        "text files have no tab, no trailing blank, no carriage return, and end in one newline",
        text::whitespace,
    ),
    ("nothing is left for later: no mark, no placeholder, no debug print", text::leftovers),
    ("no file over 1 MiB", text::size),
    ("Rust files have at most 800 lines", rust::file_length),
    ("functions have at most 100 lines", rust::function_length),
    ("modules begin with what they are for", rust::module_docs),
    ("unsafe code lies in few named files", rust::unsafe_files),
    ("every other crate forbids unsafe code", rust::forbid_unsafe),
    ("dependencies between crates run one way", arrows::arrows),
    ("local links in documents lead somewhere", links::links),
];

/// Checks every rule and prints what each objects to.
///
/// # Errors
/// When a rule objects, or the tree cannot be read.
pub(crate) fn check() -> anyhow::Result<()> {
    let tree = Tree::read()?;
    let mut sum = 0;
    for (name, rule) in RULES {
        let mut findings = rule(&tree);
        findings.sort();
        sum += findings.len();
        if !findings.is_empty() {
            println!("  not so: {name}");
        }
        for Finding { path, line, what } in findings {
            println!("    {path}:{line}: {what}");
        }
    }
    println!("  {} files, {} rules, {sum} findings", tree.files.len(), RULES.len());
    if sum > 0 {
        bail!("tidy has {sum} findings");
    }
    Ok(())
}

/// The task itself.
///
/// # Errors
/// As [`check`].
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    check()?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_passes_on_an_empty_tree() {
        for (name, rule) in RULES {
            assert_eq!(rule(&Tree::default()), [], "{name}");
        }
    }
}
