//! Both formats, table by table; property tests that no text makes them panic.

use std::path::Path;

use super::*;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn hosts(text: &str, host: &str) -> Result<Vec<Endpoint>, RegistryError> {
    parse_hosts_toml(text, Path::new("/etc/berth/certs.d/x/hosts.toml"), host)
}

fn conf(text: &str) -> Result<registries_conf::Conf, RegistryError> {
    parse_registries_conf(text, Path::new("/nowhere/registries.conf"))
}

fn reference(text: &str) -> ImageRef {
    text.parse().unwrap()
}

/// Where an image's tag is asked for, in order.
fn urls(endpoints: &[Endpoint], image: &str) -> Vec<String> {
    let image = reference(image);
    endpoints.iter().map(|e| e.url(&image.path, "tags", &image.host)).collect()
}

#[test]
fn without_configuration_only_loopback_is_plain_http_and_docker_io_is_its_registry() {
    for (host, url) in [
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("localhost", "http://localhost"),
        ("[::1]:80", "http://[::1]:80"),
        ("localhost:443", "https://localhost:443"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000"),
        ("docker.io", "https://registry-1.docker.io"),
    ] {
        let image = reference(&format!("{host}/a/b"));
        assert_eq!(endpoints(&image, &[]).unwrap()[0].name(), url);
    }
}

#[test]
fn mirrors_come_in_file_order_then_the_server_and_get_the_namespace() {
    let text = r#"
        server = "https://up.example"
        [host."https://z.example/mirror/v2"]
          capabilities = ["pull"]
          skip_verify = true
          ca = "z.crt"
          client = [["c.crt", "c.key"]]
          dial_timeout = "1m2.5s"
          [host."https://z.example/mirror/v2".header]
            X-Key = ["a", "b"]
        [host."http://a.example:80/prefix"]
          override_path = true
    "#;
    let found = hosts(text, "reg.example").unwrap();
    let urls: Vec<String> = found.iter().map(|e| e.url("a/b", "blobs/d", "reg.example")).collect();
    assert_eq!(
        urls,
        [
            "https://z.example/mirror/v2/a/b/blobs/d?ns=reg.example",
            "http://a.example:80/prefix/a/b/blobs/d?ns=reg.example",
            "https://up.example/v2/a/b/blobs/d",
        ]
    );
    assert!(!found[0].can(Capability::Resolve) && found[0].skip_verify && found[1].can(Capability::Resolve));
    assert_eq!(found[0].ca, [Path::new("/etc/berth/certs.d/x/z.crt")]);
    assert_eq!(found[0].client[0].key.as_deref(), Some(Path::new("/etc/berth/certs.d/x/c.key")));
    assert_eq!(found[0].headers.len(), 2);
    assert_eq!(found[0].dial_timeout, Some(Duration::from_millis(62_500)));
    assert!(found[2].headers.is_empty() && !found[2].mirror);
}

#[test]
fn a_wrong_hosts_toml_is_named_with_line_and_column() {
    for (text, place, hint) in [
        ("server = 1", "hosts.toml:1:10", "string"),
        ("\n[host.\"ftp://x\"]", "hosts.toml:2:", "ftp"),
        ("# x\ncapabilities = [\"fly\"]", "hosts.toml:2:16", "fly"),
        ("x = ", "hosts.toml:1:", ""),
        ("[host.\"https://m\"]\nskip_verify = \"yes\"", "hosts.toml:2:15", "boolean"),
        ("[host.\"https://m\"]\ndial_timeout = \"soon\"", "hosts.toml:2:16", "dial_timeout"),
        ("[host.\"https://m\".header]\n\"a b\" = \"c\"", "hosts.toml:2:", "a b"),
        ("server = \"https://\"", "hosts.toml:1:10", "names no host"),
        ("ca = [1]", "hosts.toml:1:6", "ca"),
    ] {
        let error = hosts(text, "r").map(|_| text).unwrap_err().to_string();
        assert!(error.contains(place) && error.contains(hint), "{text}: {error}");
    }
}

const REGISTRIES: &str = r#"
    unqualified-search-registries = ["reg.example", "docker.io"]
    short-name-mode = "permissive"
    [aliases]
    "tool" = "tools.example/team/tool"
    [[registry]]
    prefix = "reg.example/team"
    location = "store.example:5000/t"
    insecure = true
    [[registry.mirror]]
    location = "m1.example/cache"
    [[registry.mirror]]
    location = "m2.example"
    pull-from-mirror = "digest-only"
    [[registry]]
    location = "reg.example"
    [[registry]]
    prefix = "*.wild.example"
    [[registry]]
    location = "bad.example"
    blocked = true
"#;

#[test]
fn the_longest_prefix_decides_and_names_are_rewritten() {
    let conf = conf(REGISTRIES).unwrap();
    let asked = |image: &str| conf.endpoints(&reference(image)).unwrap().map(|found| urls(&found, image));
    assert_eq!(
        asked("reg.example/team/app:1").unwrap(),
        [
            "https://m1.example/v2/cache/app/tags",
            "https://store.example:5000/v2/t/app/tags",
            "http://store.example:5000/v2/t/app/tags",
        ],
        "a mirror for digests does not know tags; insecure is https with any certificate, then http"
    );
    let by_digest = asked(&format!("reg.example/team/app@sha256:{HEX}")).unwrap();
    assert_eq!(by_digest[1], "https://m2.example/v2/app/tags");
    assert_eq!(asked("reg.example/teams/app").unwrap(), ["https://reg.example/v2/teams/app/tags"]);
    assert_eq!(asked("a.b.wild.example/x/y").unwrap(), ["https://a.b.wild.example/v2/x/y/tags"]);
    assert!(asked("wild.example/x").is_none() && asked("other.example/x").is_none());
    let blocked = conf.endpoints(&reference("bad.example/x")).unwrap_err().to_string();
    assert!(blocked.contains("bad.example is blocked by /nowhere/registries.conf"), "{blocked}");
    let moved = conf.endpoints(&reference("reg.example/team/app")).unwrap().unwrap();
    assert!(moved.iter().all(|e| e.mirror && !e.namespaced), "another host gets no credentials of this one");
}

#[test]
fn short_names_are_what_the_file_says_and_docker_io_without_one() {
    let conf = conf(REGISTRIES).unwrap();
    assert_eq!(conf.names("tool:2").unwrap().unwrap(), ["tools.example/team/tool:2"]);
    assert_eq!(conf.names("a/b:1").unwrap().unwrap(), ["reg.example/a/b:1", "docker.io/a/b:1"]);
    let strict = parse_registries_conf(
        "unqualified-search-registries = ['a.example', 'b.example']",
        Path::new("/x/registries.conf"),
    );
    let error = strict.unwrap().names("app").unwrap_err().to_string();
    assert!(error.contains("\"app\"") && error.contains("/x/registries.conf"), "{error}");
    let one = parse_registries_conf("unqualified-search-registries = ['a.example']", Path::new("x.conf"));
    assert_eq!(one.unwrap().names("app").unwrap().unwrap(), ["a.example/app"]);
    assert_eq!(names("app", &[]).unwrap(), ["app"]);
    assert_eq!(names("host.example/app", &["/nonexistent/x.conf".into()]).unwrap(), ["host.example/app"]);
}

#[test]
fn a_wrong_registries_conf_is_named_with_line_and_column() {
    for (text, place, hint) in [
        ("[registries.search]\nregistries = []", "registries.conf:1:", "version 1"),
        ("short-name-mode = \"maybe\"", "registries.conf:1:19", "enforcing"),
        ("[[registry]]\nprefix = \"a.example\"", "registries.conf:1:1", "location"),
        ("[[registry]]\nlocation = \"https://a\"", "registries.conf:2:12", "scheme"),
        ("[[registry]]\nlocation = \"a\"\nprefix = \"a*b\"", "registries.conf:3:10", "not HOST"),
        ("[[registry]]\nlocation = \"a\"\nprefix = \"*b\"", "registries.conf:3:10", "*.DOMAIN"),
        (
            "[[registry]]\nlocation = \"a\"\n[[registry.mirror]]\nlocation = \"m\"\npull-from-mirror = \"x\"",
            "registries.conf:5:20",
            "tag-only",
        ),
        ("[aliases]\n\"a\" = \"UPPER CASE\"", "registries.conf:2:7", "alias \"a\""),
        ("unqualified-search-registries = [1]", "registries.conf:1:34", "string"),
    ] {
        let error = conf(text).map(|_| text).unwrap_err().to_string();
        assert!(error.contains(place) && error.contains(hint), "{text}: {error}");
    }
}

#[test]
fn places_are_asked_in_order_and_drop_ins_replace_what_they_name() {
    let root = std::env::temp_dir().join(format!("registries-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&root);
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("one/certs.d/a.example/hosts.toml", "server = \"https://toml.example\"");
    write("one/certs.d/c.example/ca.crt", "");
    write(
        "two/registries.conf",
        "[[registry]]\nlocation = \"a.example\"\n[[registry]]\nlocation = \"b.example\"",
    );
    write(
        "two/registries.conf.d/50.conf",
        "[[registry]]\nprefix = \"b.example\"\nlocation = \"moved.example\"",
    );
    write("two/registries.conf.d/README", "not a drop-in");
    write("two/certs.d/moved.example/ca.crt", "");
    let places = [root.join("one/certs.d"), root.join("two/registries.conf")];
    let first = |host: &str| endpoints(&reference(&format!("{host}/x")), &places).unwrap().remove(0);
    assert_eq!(first("a.example").name(), "https://toml.example");
    assert_eq!(first("b.example").name(), "https://moved.example");
    assert_eq!(first("b.example").ca, [root.join("two/certs.d/moved.example/ca.crt")]);
    assert_eq!(
        first("c.example").ca,
        [root.join("one/certs.d/c.example/ca.crt")],
        "certificates alone count"
    );
    assert_eq!(first("d.example").name(), "https://d.example");
    write("one/certs.d/e.example/client.cert", "");
    let error = endpoints(&reference("e.example/x"), &places).unwrap_err().to_string();
    assert!(error.contains("client.cert") && error.contains("client.key is missing"), "{error}");
    std::fs::remove_dir_all(root).unwrap();
}

proptest::proptest! {
    #[test]
    fn no_text_makes_a_parser_panic(text in "\\PC*|(\\[\\[?(registry|host|mirror)[\\].\"a-z:/=\\n]*)*") {
        let _ = hosts(&text, "reg.example");
        if let Ok(conf) = conf(&text) {
            let _ = conf.endpoints(&reference("reg.example/a/b:1"));
            let _ = conf.names("short:1");
        }
    }

    #[test]
    fn any_location_leads_to_a_url(location in "[a-z]{1,8}\\.example(:[0-9]{1,4})?(/[a-z]{1,5}){0,3}") {
        let text = format!("[[registry]]\nprefix = \"reg.example\"\nlocation = \"{location}\"");
        let found = conf(&text).unwrap().endpoints(&reference("reg.example/a/b:1")).unwrap().unwrap();
        let url = urls(&found, "reg.example/a/b:1").remove(0);
        let (host, path) = location.split_once('/').unwrap_or((&location, ""));
        let slash = if path.is_empty() { "" } else { "/" };
        assert_eq!(url, format!("https://{host}/v2/{path}{slash}a/b/tags"));
    }
}
