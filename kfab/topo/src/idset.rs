//! Sets of CPU or node numbers, and the kernel's list form of them ("0-3,8,10-11").
//!
//! Invariant: an [`IdSet`] holds numbers below [`IdSet::LIMIT`] only, so a hostile or broken list cannot make it large.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Logical CPU numbers.
pub type CpuSet = IdSet;
/// NUMA node numbers.
pub type NodeSet = IdSet;

/// An ordered set of the kernel's small numbers: CPUs or NUMA nodes.
///
/// Parses from and prints as the kernel's list form. White space around the list is ignored and the empty list is the
/// empty set, since that is what sysfs gives for a node without CPUs.
///
/// ```
/// use kfab_topo::CpuSet;
/// let cpus: CpuSet = "8,0-3,10-11".parse()?;
/// assert_eq!(cpus.len(), 7);
/// assert_eq!(cpus.to_string(), "0-3,8,10-11");
/// # Ok::<(), kfab_topo::ListError>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdSet(BTreeSet<u32>);

impl IdSet {
    /// Numbers from here on are refused. Linux builds for at most 8192 CPUs and 1024 nodes.
    pub const LIMIT: u32 = 65_536;

    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `id`; false if it was there already or is not below [`IdSet::LIMIT`].
    pub fn insert(&mut self, id: u32) -> bool {
        id < Self::LIMIT && self.0.insert(id)
    }

    /// Whether `id` is a member.
    pub fn contains(&self, id: u32) -> bool {
        self.0.contains(&id)
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The lowest member.
    pub fn first(&self) -> Option<u32> {
        self.0.first().copied()
    }

    /// The members, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// Members of both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(&self.0 & &other.0)
    }

    /// Members of this set that `other` lacks.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        Self(&self.0 - &other.0)
    }

    /// Members of either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self(&self.0 | &other.0)
    }

    /// Whether every member is also one of `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }

    /// Whether some member is also one of `other`.
    pub fn intersects(&self, other: &Self) -> bool {
        !self.0.is_disjoint(&other.0)
    }
}

/// Numbers not below [`IdSet::LIMIT`] are left out.
impl FromIterator<u32> for IdSet {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        Self(ids.into_iter().filter(|id| *id < Self::LIMIT).collect())
    }
}

impl fmt::Display for IdSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ids = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = ids.next() {
            let mut last = first;
            while let Some(next) = ids.next_if_eq(&(last + 1)) {
                last = next;
            }
            match first == last {
                true => write!(f, "{separator}{first}")?,
                false => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for IdSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for IdSet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a list of numbers does not parse. Positions count characters from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// A character that a list cannot have at this place.
    #[error("unexpected character {found:?} at position {at} of the list {list:?}: {wanted} expected")]
    Unexpected {
        /// The list as given.
        list: String,
        /// Where the character is.
        at: usize,
        /// The character.
        found: char,
        /// What could have stood there.
        wanted: &'static str,
    },
    /// The list stops where a number must follow.
    #[error("the list {list:?} ends at position {at} where a number is expected")]
    Ended {
        /// The list as given.
        list: String,
        /// One past its last character.
        at: usize,
    },
    /// A number that is not below [`IdSet::LIMIT`].
    #[error(
        "the number starting with {found:?} at position {at} of the list {list:?} is not below {}",
        IdSet::LIMIT
    )]
    TooLarge {
        /// The list as given.
        list: String,
        /// Where the number begins.
        at: usize,
        /// Its first digit.
        found: char,
    },
    /// A range whose end lies below its start.
    #[error("the range {first}-{last} at position {at} of the list {list:?} runs backwards")]
    Backwards {
        /// The list as given.
        list: String,
        /// Where the range begins.
        at: usize,
        /// Its start.
        first: u32,
        /// Its end.
        last: u32,
    },
}

impl FromStr for IdSet {
    type Err = ListError;

    fn from_str(list: &str) -> Result<Self, ListError> {
        let chars: Vec<char> = list.trim_end().chars().collect();
        let at = chars.iter().take_while(|c| c.is_whitespace()).count();
        let mut parser = Parser { list, chars, at };
        let mut ids = BTreeSet::new();
        if parser.peek().is_none() {
            return Ok(Self(ids));
        }
        loop {
            let begin = parser.at;
            let first = parser.number()?;
            let ranged = parser.take('-');
            let last = if ranged { parser.number()? } else { first };
            if last < first {
                return Err(ListError::Backwards { list: list.into(), at: begin + 1, first, last });
            }
            ids.extend(first..=last);
            match parser.peek() {
                None => return Ok(Self(ids)),
                Some(',') => parser.at += 1,
                Some(found) => {
                    let wanted = if ranged { "a digit or ','" } else { "a digit, '-' or ','" };
                    return Err(parser.unexpected(found, wanted));
                }
            }
        }
    }
}

struct Parser<'a> {
    list: &'a str,
    chars: Vec<char>,
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    fn unexpected(&self, found: char, wanted: &'static str) -> ListError {
        ListError::Unexpected { list: self.list.into(), at: self.at + 1, found, wanted }
    }

    fn number(&mut self) -> Result<u32, ListError> {
        let begin = self.at;
        let mut value = 0;
        while let Some(digit) = self.peek().and_then(|c| c.to_digit(10)) {
            value = value * 10 + digit;
            if value >= IdSet::LIMIT {
                return Err(ListError::TooLarge {
                    list: self.list.into(),
                    at: begin + 1,
                    found: self.chars[begin],
                });
            }
            self.at += 1;
        }
        match self.peek() {
            _ if self.at > begin => Ok(value),
            Some(found) => Err(self.unexpected(found, "a digit")),
            None => Err(ListError::Ended { list: self.list.into(), at: begin + 1 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(list: &str) -> String {
        list.parse::<IdSet>().expect_err(list).to_string()
    }

    #[test]
    fn lists_parse() {
        for (list, ids) in [
            ("", vec![]),
            (" \n", vec![]),
            ("0\n", vec![0]),
            (" 0-3,8,10-11\n", vec![0, 1, 2, 3, 8, 10, 11]),
            ("5-5,2,3-4,2", vec![2, 3, 4, 5]),
            ("65535", vec![65_535]),
        ] {
            assert_eq!(list.parse::<IdSet>(), Ok(ids.into_iter().collect()), "{list:?}");
        }
        assert_eq!("5,2,3-4,7".parse::<IdSet>().unwrap().to_string(), "2-5,7");
    }

    #[test]
    fn errors_name_the_character() {
        assert_eq!(
            error("0-x"),
            r#"unexpected character 'x' at position 3 of the list "0-x": a digit expected"#
        );
        assert_eq!(
            error(" a"),
            r#"unexpected character 'a' at position 2 of the list " a": a digit expected"#
        );
        assert_eq!(
            error("1;2"),
            r#"unexpected character ';' at position 2 of the list "1;2": a digit, '-' or ',' expected"#
        );
        assert_eq!(
            error("0-3-5"),
            r#"unexpected character '-' at position 4 of the list "0-3-5": a digit or ',' expected"#
        );
        assert_eq!(error("é"), r#"unexpected character 'é' at position 1 of the list "é": a digit expected"#);
        assert_eq!(
            error(",1"),
            r#"unexpected character ',' at position 1 of the list ",1": a digit expected"#
        );
        assert_eq!(error("1,"), r#"the list "1," ends at position 3 where a number is expected"#);
        assert_eq!(error("4-2"), r#"the range 4-2 at position 1 of the list "4-2" runs backwards"#);
        let large = r#"the number starting with '9' at position 3 of the list "0,99999999999999999999" is not below 65536"#;
        assert_eq!(error("0,99999999999999999999"), large);
        assert_eq!(
            error("0-65536"),
            r#"the number starting with '6' at position 3 of the list "0-65536" is not below 65536"#
        );
    }

    #[test]
    fn numbers_at_the_limit_stay_out() {
        let mut set: IdSet = [3, IdSet::LIMIT].into_iter().collect();
        assert_eq!(set.to_string(), "3");
        assert!(!set.insert(IdSet::LIMIT) && set.insert(IdSet::LIMIT - 1) && !set.insert(3));
        assert_eq!(set.to_string(), "3,65535");
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(ids in proptest::collection::btree_set(0u32..300, 0..200)) {
            let set: IdSet = ids.iter().copied().collect();
            let list = set.to_string();
            prop_assert_eq!(list.parse::<IdSet>().unwrap(), set);
            // No two neighbours are left unmerged: the list is the shortest there is.
            let runs = ids.iter().filter(|id| **id == 0 || !ids.contains(&(**id - 1))).count();
            prop_assert_eq!(list.split(',').filter(|part| !part.is_empty()).count(), runs);
        }

        #[test]
        fn any_text_parses_or_is_refused(list in "[-0-9, \\nx]{0,24}") {
            if let Ok(set) = list.parse::<IdSet>() {
                prop_assert_eq!(set.to_string().parse::<IdSet>().unwrap(), set);
            }
        }
    }
}
