//! A small kernel-bypass fabric API over pluggable providers.
