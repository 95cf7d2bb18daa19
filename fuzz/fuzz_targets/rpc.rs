//! A hostile client of the RPC server, and a hostile server of the client.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    lnet_shim::rpc::fuzz::fuzz_server(bytes);
    lnet_shim::rpc::fuzz::fuzz_client(bytes);
});
