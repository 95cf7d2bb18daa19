//! What bulk data looks like and how it is checked.

use serde::Serialize;

const PAGE: usize = 4096;
const WORD: usize = 8;
const MAGIC: u64 = 0xeeb0_eeb1_eeb2_eeb3;

/// How much of the data is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Check {
    /// Nothing.
    None,
    /// The first and last eight bytes of each page.
    Simple,
    /// All of it.
    Full,
}

impl Check {
    /// The number that travels.
    pub fn number(self) -> u32 {
        match self {
            Self::None => 1,
            Self::Simple => 2,
            Self::Full => 3,
        }
    }

    /// From the number that travels; 0 means none, too.
    pub fn from_number(n: u32) -> Option<Self> {
        match n {
            0 | 1 => Some(Self::None),
            2 => Some(Self::Simple),
            3 => Some(Self::Full),
            _ => None,
        }
    }

    /// The words of one page that matter, as offsets.
    fn words(self, len: usize) -> Vec<usize> {
        match self {
            Self::None => Vec::new(),
            Self::Simple if len <= WORD => vec![0],
            Self::Simple => vec![0, (len - 1) / WORD * WORD],
            Self::Full => (0..len).step_by(WORD).collect(),
        }
    }
}

/// Writes the pattern.
pub fn fill(data: &mut [u8], how: Check) {
    let magic = MAGIC.to_le_bytes();
    for page in data.chunks_mut(PAGE) {
        for at in how.words(page.len()) {
            let end = (at + WORD).min(page.len());
            page[at..end].copy_from_slice(&magic[..end - at]);
        }
    }
}

/// Whether the pattern is there, in either byte order.
pub fn check(data: &[u8], how: Check) -> bool {
    let holds = |magic: [u8; WORD]| {
        data.chunks(PAGE).all(|page| {
            how.words(page.len()).into_iter().all(|at| {
                let end = (at + WORD).min(page.len());
                page[at..end] == magic[..end - at]
            })
        })
    };
    holds(MAGIC.to_le_bytes()) || holds(MAGIC.to_be_bytes())
}
