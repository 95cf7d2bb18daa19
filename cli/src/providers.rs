//! The one place of this program that names providers.

use crate::failure::{Failure, Result};
use kfab::Provider;
use std::sync::Arc;

/// All providers of this build, best first.
pub(crate) fn providers() -> Vec<Arc<dyn Provider>> {
    vec![Arc::new(kfab_shm::Shm), Arc::new(kfab_verbs::Verbs), Arc::new(kfab_sockets::Sockets)]
}

/// The schemes, best first.
pub(crate) fn schemes() -> Vec<&'static str> {
    providers().iter().map(|p| p.scheme()).collect()
}

/// The schemes meant by names that a user gave; `sockets` is another name of `tcp`. Unknown ones are an error that lists those there
/// are, and so are those that cannot run here, with the reason. No names: all that can.
pub(crate) fn chosen(names: &[String]) -> Result<Vec<&'static str>> {
    let all = providers();
    if names.is_empty() {
        return Ok(all.iter().filter(|p| p.probe().is_ok()).map(|p| p.scheme()).collect());
    }
    let find = |name: &String| {
        let wanted = if name == "sockets" { "tcp" } else { name.as_str() };
        all.iter().map(|p| p.scheme()).find(|s| *s == wanted).ok_or_else(|| unknown(name))
    };
    let found: Vec<&'static str> = names.iter().map(find).collect::<Result<_>>()?;
    for p in all.iter().filter(|p| found.contains(&p.scheme())) {
        p.probe().map_err(|why| Failure::unavailable(format!("{}: {why}", p.scheme())))?;
    }
    Ok(found)
}

pub(crate) fn unknown(name: &str) -> Failure {
    let list = schemes().join(", ");
    Failure::usage(format!("unknown provider {name:?}; there are: {list} (sockets is another name of tcp)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_provider_has_limits_with_names_of_their_own() {
        for p in providers() {
            let all = p.limits();
            assert!(!all.is_empty(), "{}", p.scheme());
            for l in &all {
                assert!(l.value > 0 && !l.unit.is_empty() && !l.meaning.is_empty(), "{}: {l:?}", p.scheme());
                assert_eq!(all.iter().filter(|o| o.name == l.name).count(), 1, "{}: {}", p.scheme(), l.name);
            }
        }
    }

    #[test]
    fn names_are_resolved_and_unknown_ones_listed() {
        assert_eq!(chosen(&["sockets".into()]).unwrap(), ["tcp"]);
        let e = chosen(&["tcp".into(), "smoke".into()]).unwrap_err();
        assert!(e.what.contains("\"smoke\"") && e.what.contains("tcp"), "{e}");
    }
}
