//! Micro-benchmarks of kfab.
