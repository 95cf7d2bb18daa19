//! The book of names: which kfab addresses a NID stands for. Several NIDs of one server, or of servers that stand in for each
//! other, are tried in the order they are asked for.

use super::error::{Error, Kind, Result};
use crate::nid::Nid;
use std::collections::HashMap;

/// NIDs and their kfab addresses. Text form, one line each: `57@kfi tcp:10.0.0.1:7000+shm:name`; `#` begins a comment.
#[derive(Clone, Debug, Default)]
pub struct Book {
    entries: HashMap<Nid, String>,
}

impl Book {
    /// An empty one.
    pub fn new() -> Book {
        Book::default()
    }

    /// Reads the text form. `Invalid` names the line.
    pub fn parse(text: &str) -> Result<Book> {
        let mut book = Book::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or("").trim();
            if line.is_empty() {
                continue;
            }
            let bad = |why: String| Error::new(Kind::Invalid, format!("line {}: {why}", at + 1));
            let (nid, address) =
                line.split_once(char::is_whitespace).ok_or_else(|| bad("expected NID ADDRESS".into()))?;
            let nid = nid.parse().map_err(|e| bad(format!("{nid}: {e}")))?;
            book.add(nid, address.trim());
        }
        Ok(book)
    }

    /// Writes an entry, over an older one.
    pub fn add(&mut self, nid: Nid, address: &str) {
        self.entries.insert(nid, address.to_owned());
    }

    /// The address of a name: a NID of the book, or an address as it is.
    pub fn resolve(&self, name: &str) -> Result<String> {
        match name.parse::<Nid>() {
            Ok(nid) => self
                .entries
                .get(&nid)
                .cloned()
                .ok_or_else(|| Error::new(Kind::Invalid, format!("{name} is not in the book"))),
            Err(_) if name.parse::<kfab::Address>().is_ok() => Ok(name.to_owned()),
            Err(e) => Err(Error::new(Kind::Invalid, format!("{name}: neither an address nor a NID: {e}"))),
        }
    }
}

impl std::fmt::Display for Book {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut lines: Vec<String> = self.entries.iter().map(|(n, a)| format!("{n} {a}")).collect();
        lines.sort();
        lines.iter().try_for_each(|l| writeln!(f, "{l}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_their_absence_is_said() {
        let book = Book::parse("# servers\n57@kfi tcp:127.0.0.1:7000\n\n58@kfi shm:x # the other\n").unwrap();
        assert_eq!(book.resolve("57@kfi").unwrap(), "tcp:127.0.0.1:7000");
        assert_eq!(book.resolve("shm:y").unwrap(), "shm:y");
        assert!(book.resolve("59@kfi").unwrap_err().context().contains("not in the book"));
        assert!(Book::parse("57@kfi\n").unwrap_err().context().starts_with("line 1"));
        assert_eq!(Book::parse(&book.to_string()).unwrap().entries, book.entries);
    }
}
