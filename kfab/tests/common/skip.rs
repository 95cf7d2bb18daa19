//! Tests that cannot run here. Test programs of other packages use this file too.
//!
//! `cargo xtask test` names in `KFAB_TEST_DEMANDS` what the machine has: a test that is skipped for want of it fails. Every other skip
//! becomes a line in the file that `KFAB_TEST_SKIPS` names, which that command shows at its end.

use std::fs::OpenOptions;
use std::io::Write;

/// Says that a test is skipped for want of `what`; panics where that is demanded.
pub(crate) fn skip(what: &str, why: &str) {
    let demanded = std::env::var("KFAB_TEST_DEMANDS").unwrap_or_default();
    assert!(!demanded.split(',').any(|name| name == what), "demanded: {what}; but {why}");
    println!("skipped: {why}");
    if let Some(path) = std::env::var_os("KFAB_TEST_SKIPS") {
        let program = std::env::current_exe().expect("this program");
        let program = program.file_stem().expect("a name").to_string_lossy();
        let program = program.rsplit_once('-').map_or(&*program, |(name, _)| name);
        let line = format!("{program}: {}\n", why.trim().replace('\n', " "));
        let file = OpenOptions::new().append(true).create(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the skip is told");
    }
}
