//! `kfab perf`: one test, many sizes.
