//! Keys of windows, which reach a program in messages: what is accepted is written back as the same bytes.
#![no_main]

use kfab::WindowKey;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(key) = WindowKey::from_bytes(bytes) {
        assert_eq!(&key.to_bytes()[..], bytes);
        assert_eq!(WindowKey::from_bytes(&key.to_bytes()).unwrap(), key);
    }
});
