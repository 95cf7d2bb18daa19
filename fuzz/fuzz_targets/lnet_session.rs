//! A hostile LNet peer: acceptor, HELLO, messages, and the node behind them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lnet_shim::fuzz::fuzz_session(bytes));
