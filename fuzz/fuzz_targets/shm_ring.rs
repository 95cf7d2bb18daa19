//! The shared segment of a hostile process on this host: any bytes, and single bytes changed while it is in use.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kfab_shm::fuzz_ring(bytes));
