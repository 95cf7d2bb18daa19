//! Control messages over the Unix socket of a hostile process on this host.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kfab_shm::fuzz_message(bytes));
