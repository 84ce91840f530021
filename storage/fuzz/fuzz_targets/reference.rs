//! Any text as an image reference: what parses is printed, and what is printed parses to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storage::ImageRef;

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<ImageRef>() {
        let again: ImageRef = reference.to_string().parse().unwrap();
        assert_eq!(again, reference);
        assert!(!reference.path.split('/').any(|part| part.is_empty() || part == "." || part == ".."));
    }
});
