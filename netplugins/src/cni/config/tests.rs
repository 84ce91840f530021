//! What a network configuration may say, and how each fault of it is named.

use serde_json::json;

use super::*;
use crate::testing::TempDir;

fn load_text(text: &str) -> Result<Network, Broken> {
    let dir = TempDir::new("conf");
    let file = dir.path().join("10-x.conflist");
    fs::write(&file, text).unwrap();
    load(&file)
}

#[test]
fn a_list_is_read_with_the_best_common_version() {
    let network = load_text(
        r#"{"cniVersion":"0.4.0","cniVersions":["1.0.0","1.1.0","9.0.0"],"name":"n","disableCheck":"true",
            "plugins":[{"type":"bridge","x":1,"capabilities":{"portMappings":true,"mac":false}},{"type":"portmap"}]}"#,
    )
    .unwrap();
    assert_eq!((network.name.as_str(), network.version.as_str()), ("n", "1.1.0"));
    assert!(network.disable_check && !network.disable_gc);
    assert_eq!(network.plugins[0].capabilities, BTreeSet::from(["portMappings".to_owned()]));
    assert_eq!(network.plugins[0].raw["x"], json!(1));
    assert_eq!(decode(&encode(&network)).unwrap(), network);
}

#[test]
fn a_single_plugin_is_a_list_of_one() {
    let network = load_text(r#"{"cniVersion":"0.3.1","name":"n","type":"ptp"}"#).unwrap();
    assert_eq!((network.version.as_str(), network.plugins[0].kind.as_str()), ("0.3.1", "ptp"));
    assert_eq!(load_text(r#"{"name":"n","type":"ptp"}"#).unwrap().version, "0.1.0");
}

#[test]
fn a_broken_file_is_named_with_line_and_column() {
    let broken = load_text("{\n  \"name\": \"n\",\n  oops\n}").unwrap_err();
    assert!(
        broken.to_string().contains("10-x.conflist: key must be a string at line 3 column 3"),
        "{broken}"
    );
    for (text, why) in [
        ("[]", "not a JSON object"),
        ("{}", "\"name\" is missing"),
        (r#"{"name":"a/b","plugins":[{"type":"x"}]}"#, "\"a/b\" cannot name a CNI network"),
        (r#"{"name":"n","plugins":[]}"#, "\"plugins\" is empty"),
        (r#"{"name":"n","plugins":[{"type":"../x"}]}"#, "is a path"),
        (r#"{"name":"n","plugins":[{}]}"#, "plugin 0 has no \"type\""),
        (r#"{"name":"n","cniVersion":"2.0.0","plugins":[{"type":"x"}]}"#, "CNI version 2.0.0 is not known"),
        (r#"{"name":"n","disableGC":3,"plugins":[{"type":"x"}]}"#, "neither true nor false"),
    ] {
        let broken = load_text(text).unwrap_err();
        assert!(broken.why.contains(why), "{text}: {broken}");
    }
}

#[test]
fn dropped_in_plugins_follow_the_list_unless_it_is_closed() {
    let dir = TempDir::new("conf");
    let file = dir.path().join("10-x.conflist");
    fs::create_dir(dir.path().join("n")).unwrap();
    fs::write(dir.path().join("n/20-b.conf"), r#"{"type":"b"}"#).unwrap();
    fs::write(dir.path().join("n/10-a.conf"), r#"{"type":"a"}"#).unwrap();
    let kinds = || load(&file).unwrap().plugins.into_iter().map(|p| p.kind).collect::<Vec<_>>();
    fs::write(&file, r#"{"name":"n","plugins":[{"type":"first"}]}"#).unwrap();
    assert_eq!(kinds(), ["first", "a", "b"]);
    fs::write(&file, r#"{"name":"n","loadOnlyInlinedPlugins":true,"plugins":[{"type":"first"}]}"#).unwrap();
    assert_eq!(kinds(), ["first"]);
    assert_eq!(files(dir.path()).unwrap(), [file]);
    assert_eq!(files(&dir.path().join("absent")).unwrap(), Vec::<PathBuf>::new());
}
