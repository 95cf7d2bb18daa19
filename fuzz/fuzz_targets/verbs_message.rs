//! Messages and connection parameters of a hostile host over RDMA: what is accepted is written back as the same bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kfab_verbs::fuzz_message(bytes));
