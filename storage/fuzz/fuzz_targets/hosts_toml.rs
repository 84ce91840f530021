//! Any text as a `hosts.toml`: hosts, or an error with file, line and column.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use storage::registry::hosts::parse_hosts_toml;

fuzz_target!(|text: &str| {
    match parse_hosts_toml(text, Path::new("/x/hosts.toml"), "registry.example:5000") {
        Ok(endpoints) => {
            assert!(!endpoints.is_empty(), "the registry itself is always there");
            assert!(endpoints.iter().all(|e| e.scheme == "http" || e.scheme == "https"));
            assert!(endpoints.iter().all(|e| !e.authority.is_empty()));
        }
        Err(error) => assert!(error.to_string().contains("/x/hosts.toml:"), "{error}"),
    }
});
