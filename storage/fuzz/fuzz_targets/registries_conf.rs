//! Any text as a `registries.conf`, and what it then says about names.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use storage::registry::hosts::parse_registries_conf;

fuzz_target!(|input: (&str, &str)| {
    let (text, name) = input;
    match parse_registries_conf(text, Path::new("/x/registries.conf")) {
        Ok(conf) => {
            if let Ok(image) = name.parse() {
                let _ = conf.endpoints(&image);
            }
            let _ = conf.names(name);
        }
        Err(error) => assert!(error.to_string().contains("/x/registries.conf:"), "{error}"),
    }
});
