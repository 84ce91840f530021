//! Any text as a `WWW-Authenticate` header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storage::registry::auth::challenges;

fuzz_target!(|text: &str| {
    for challenge in challenges(text) {
        assert!(!challenge.scheme.is_empty());
    }
});
