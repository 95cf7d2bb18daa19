//! How figures are shown: tables for people, JSON and CSV for programs, SVG for reports, a progress bar for the patient.

pub(crate) mod bar;
pub(crate) mod csv;
pub(crate) mod svg;
pub(crate) mod table;
pub(crate) mod units;
