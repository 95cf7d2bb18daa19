//! The byte stream of a TCP peer: greetings of both sides, records, sealed pieces. Whatever comes is refused or parsed, in bounds.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kfab_sockets::fuzz_stream(bytes));
