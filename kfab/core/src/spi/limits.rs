//! The limits of a provider, by name: shown by `kfab info`, and there for programs to ask for.

/// A limit that a provider keeps, whoever its ports talk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ProviderLimit {
    /// Its name, unique within the provider.
    pub name: &'static str,
    /// Its value.
    pub value: u64,
    /// What it counts: `bytes`, `windows`, `us`.
    pub unit: &'static str,
    /// What it bounds, and what happens beyond it.
    pub meaning: &'static str,
}

impl ProviderLimit {
    /// A limit.
    pub const fn new(name: &'static str, value: u64, unit: &'static str, meaning: &'static str) -> Self {
        ProviderLimit { name, value, unit, meaning }
    }
}
