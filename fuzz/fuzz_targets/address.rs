//! Addresses, from command lines and from the hello of a peer: what is accepted is printed as the same text, within the limits.
#![no_main]

use kfab_core::spi::Address;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text.parse::<Address>() {
        Ok(a) => {
            assert_eq!(a.to_string(), text);
            assert!((1..=Address::MAX_WAYS).contains(&a.ways().len()) && text.len() <= Address::MAX_LEN);
            assert_eq!(a.ways().len(), text.split(',').count());
            assert!(a.ways().iter().all(|w| !w.scheme.is_empty() && !w.rest.is_empty()));
            assert!(!text.contains(char::is_whitespace));
        }
        Err(e) => assert!(e.to_string().contains("character"), "an error says where: {e}"),
    }
});
