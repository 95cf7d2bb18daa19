//! How many tests ran, read from what test runners print.

use std::fmt;

/// Tests by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    /// Adds up every `test result:` line of `output`.
    pub(crate) fn read(output: &str) -> Self {
        let mut sum = Self::default();
        Self::each(output).for_each(|counts| sum.add(&counts));
        sum
    }

    /// Every `test result:` line of `output`: one for each test program.
    pub(crate) fn each(output: &str) -> impl Iterator<Item = Self> {
        output.lines().filter(|line| line.trim_start().starts_with("test result:")).map(|line| {
            let before = |word: &str| -> u64 {
                let head = line.split(word).next().filter(|head| head.len() < line.len());
                head.and_then(|head| head.split_whitespace().next_back()?.parse().ok()).unwrap_or(0)
            };
            Self { passed: before(" passed"), failed: before(" failed"), skipped: before(" ignored") }
        })
    }

    /// Adds `other` to this.
    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_added_up() {
        let output = "running 3 tests\n\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.2s\n\
            test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 4 filtered out\n";
        let counts = Counts::read(output);
        assert_eq!(counts, Counts { passed: 4, failed: 2, skipped: 1 });
        assert_eq!(counts.to_string(), "4 passed, 2 failed, 1 skipped");
        assert_eq!(Counts::read("nothing ran"), Counts::default());
    }
}
