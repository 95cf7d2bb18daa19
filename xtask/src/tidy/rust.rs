//! Rules about Rust files: lengths, opening comments, and where unsafe code may be.

use std::path::Path;

use super::Finding;
use super::code::{blank, has_word};
use super::tree::{File, Tree};

const MAX_FILE_LINES: usize = 800;
const MAX_FUNCTION_LINES: usize = 100;

/// Where unsafe code may be: a file below a folder of this name, or of this name. Nowhere else.
pub(crate) const UNSAFE_FILES: &[&str] = &["ring/", "mem/", "sys.rs", "sys/"];

/// True when the file at `path` (from the root of the repository) may hold unsafe code.
pub(crate) fn may_hold_unsafe(path: &Path) -> bool {
    let listed = |name: &str| UNSAFE_FILES.contains(&name);
    let mut folders = path.parent().into_iter().flat_map(Path::components);
    let below = folders.any(|folder| listed(&format!("{}/", folder.as_os_str().to_string_lossy())));
    below || path.file_name().is_some_and(|name| listed(&name.to_string_lossy()))
}

/// At most 800 lines.
pub(super) fn file_length(tree: &Tree) -> Vec<Finding> {
    let lines = |file: &File| file.text.lines().count();
    let long = tree.rust().filter(|file| lines(file) > MAX_FILE_LINES);
    long.map(|file| Finding::new(&file.path, 0, format!("{} lines", lines(file)))).collect()
}

/// At most 100 lines from the line of the `fn` to its closing brace.
pub(super) fn function_length(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        for Function { name, line, lines } in functions(&blank(&file.text)) {
            if lines > MAX_FUNCTION_LINES {
                findings.push(Finding::new(&file.path, line, format!("fn {name} has {lines} lines")));
            }
        }
    }
    findings
}

struct Function {
    name: String,
    line: usize,
    lines: usize,
}

/// The functions with a body in code that was blanked.
fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let part = |c: char| c.is_alphanumeric() || c == '_';
        let name: String = code[at + 3..].trim_start().chars().take_while(|c| part(*c)).collect();
        if name.is_empty() || code[..at].chars().next_back().is_some_and(part) {
            continue;
        }
        if let Some(len) = body_end(&code[at..]) {
            let line = code[..at].matches('\n').count() + 1;
            found.push(Function { name, line, lines: code[at..at + len].matches('\n').count() + 1 });
        }
    }
    found
}

/// Where the body of the function that `code` begins with ends; nothing when it has none.
fn body_end(code: &str) -> Option<usize> {
    let (mut round, mut curly) = (0i32, 0i32);
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'(' | b'[' => round += 1,
            b')' | b']' => round -= 1,
            b';' if round == 0 && curly == 0 => return None,
            b'{' => curly += 1,
            b'}' => curly -= 1,
            _ => {}
        }
        if byte == b'}' && curly <= 0 && round <= 0 {
            return Some(at + 1);
        }
    }
    None
}

/// The first line that is no inner attribute opens with `//!`.
pub(super) fn module_docs(tree: &Tree) -> Vec<Finding> {
    let opening = |file: &File| {
        let mut lines = file.text.lines().map(str::trim);
        lines.find(|line| !line.is_empty() && !line.starts_with("#![")).map(str::to_owned)
    };
    let bare = tree.rust().filter(|file| !opening(file).is_some_and(|line| line.starts_with("//!")));
    bare.map(|file| Finding::new(&file.path, 1, "does not begin with //! and what it is for")).collect()
}

/// The word `unsafe` only where [`may_hold_unsafe`] allows it.
pub(super) fn unsafe_files(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust().filter(|file| !may_hold_unsafe(Path::new(&file.path))) {
        for (at, line) in blank(&file.text).lines().enumerate() {
            let attribute = line.trim_start().starts_with("#[unsafe(");
            if has_word(line, "unsafe") && !attribute {
                findings.push(Finding::new(&file.path, at + 1, "unsafe outside the files that may hold it"));
            }
        }
    }
    findings
}

/// Crate roots say `#![forbid(unsafe_code)]` unless a file of their crate may hold unsafe code.
pub(super) fn forbid_unsafe(tree: &Tree) -> Vec<Finding> {
    let allowed = |folder: &str| {
        let ours = |file: &&File| file.path.strip_prefix(folder).is_some_and(|rest| rest.starts_with("src/"));
        tree.rust().filter(ours).any(|file| may_hold_unsafe(Path::new(&file.path)))
    };
    let roots = tree.rust().filter_map(|file| crate_folder(&file.path).map(|folder| (file, folder)));
    let open = roots.filter(|(file, folder)| !allowed(folder) && !forbids(&file.text));
    open.map(|(file, _)| Finding::new(&file.path, 1, "does not say #![forbid(unsafe_code)]")).collect()
}

fn forbids(text: &str) -> bool {
    blank(text).lines().any(|line| line.replace(' ', "").starts_with("#![forbid(unsafe_code"))
}

/// The folder of the crate whose root the file is, with a `/` at its end.
fn crate_folder(path: &str) -> Option<&str> {
    let (folder, rest) =
        path.split_once("src/").filter(|(folder, _)| folder.is_empty() || folder.ends_with('/'))?;
    let bin = rest.strip_prefix("bin/").is_some_and(|name| !name.contains('/'));
    (rest == "lib.rs" || rest == "main.rs" || bin).then_some(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_is_found() {
        let tree = Tree::of(&[("a.rs", &"x\n".repeat(801)), ("b.rs", &"x\n".repeat(800))]);
        assert_eq!(file_length(&tree), [Finding::new("a.rs", 0, "801 lines")]);
    }

    #[test]
    fn a_long_function_is_found() {
        let long = format!("//! x\n\nfn long(a: [u8; 3]) -> u8 {{\n{}}}\n", "    // \"}\n".repeat(99));
        let fits = format!("fn fits() {{\n{}}}\n", "    f(|| { 1 });\n".repeat(98));
        let shape = "trait T {\n    fn no_body(&self);\n}\ntype F = fn (u8) -> u8;\n";
        let tree = Tree::of(&[("a.rs", &long), ("b.rs", &fits), ("c.rs", shape)]);
        assert_eq!(function_length(&tree), [Finding::new("a.rs", 3, "fn long has 101 lines")]);
    }

    #[test]
    fn a_module_without_an_opening_is_found() {
        let tree = Tree::of(&[
            ("a.rs", "use x;\n"),
            ("b.rs", "//! Why.\n"),
            ("c.rs", "#![no_main]\n//! Why.\n"),
            ("d.rs", ""),
        ]);
        let paths: Vec<String> = module_docs(&tree).into_iter().map(|finding| finding.path).collect();
        assert_eq!(paths, ["a.rs", "d.rs"]);
    }

    #[test]
    fn unsafe_is_found_where_it_may_not_be() {
        let text = "//! unsafe\nfn f() { unsafe { g() } }\n#![forbid(unsafe_code)]\n";
        let tree = Tree::of(&[
            ("a/src/lib.rs", text),
            ("a/src/ring/spsc.rs", text),
            ("a/src/mem/mod.rs", text),
            ("a/src/sys.rs", text),
            ("a/src/memory.rs", text),
        ]);
        let found: Vec<(String, usize)> = unsafe_files(&tree).into_iter().map(|f| (f.path, f.line)).collect();
        assert_eq!(found, [("a/src/lib.rs".to_owned(), 2), ("a/src/memory.rs".to_owned(), 2)]);
    }

    #[test]
    fn crates_without_an_unsafe_file_forbid_it() {
        let tree = Tree::of(&[
            ("a/src/lib.rs", "//! x\n"),
            ("b/src/lib.rs", "//! x\n#![forbid(unsafe_code)]\n"),
            ("c/src/lib.rs", "//! x\n"),
            ("c/src/sys.rs", "//! x\n"),
            ("d/src/bin/tool.rs", "//! #![forbid(unsafe_code)]\n"),
            ("d/src/bin/tool/part.rs", "//! x\n"),
        ]);
        let paths: Vec<String> = forbid_unsafe(&tree).into_iter().map(|finding| finding.path).collect();
        assert_eq!(paths, ["a/src/lib.rs", "d/src/bin/tool.rs"]);
    }
}
