//! What `deploy/` promises about this program: the shipped configuration names every key with its true default.

use std::path::{Path, PathBuf};

use crate::config::{Config, File, Flags};

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(deploy(name)).unwrap()
}

/// The file with every `#key = default` and `#[section]` uncommented; prose has a space after its `#`.
fn uncommented() -> String {
    let setting =
        |line: &str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).map(str::to_owned);
    text("config.toml").lines().map(|line| setting(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

fn complete(file: File) -> String {
    let config = Config::from_parts(file, &Flags::default()).unwrap();
    format!("{:#?}", Config { sources: Default::default(), ..config })
}

#[test]
fn the_shipped_configuration_changes_nothing() {
    assert_eq!(File::read(&deploy("config.toml")).unwrap(), File::default());
}

#[test]
fn every_default_it_shows_is_the_true_one() {
    let shown = File::parse(Path::new("config.toml"), &uncommented()).unwrap();
    assert_ne!(shown, File::default());
    assert_eq!(complete(shown), complete(File::default()));
}

#[test]
fn it_mentions_every_key_there_is() {
    let shipped = text("config.toml");
    let source = include_str!("../config/file.rs");
    let fields = source.lines().filter_map(|line| line.trim().split_once(": Option<").map(|(name, _)| name));
    let keys: Vec<&str> =
        fields.filter(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')).collect();
    assert!(keys.len() > 20, "{keys:?}");
    for key in keys {
        let forms = ["#KEY = ", "# KEY = ", "[KEY]", ".KEY]", "[KEY."];
        let mentioned = forms.map(|form| form.replace("KEY", key));
        assert!(mentioned.iter().any(|form| shipped.contains(form)), "{key}");
    }
}

#[test]
fn the_chart_installs_the_same_unit() {
    assert_eq!(text("berth.service"), text("helm/berth/files/berth.service"));
}
