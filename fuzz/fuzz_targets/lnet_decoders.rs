//! Every decoder and text parser of the LNet shim, on the same bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lnet_shim::fuzz::fuzz_decoders(bytes));
