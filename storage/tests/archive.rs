//! Save, load, push: every digest stays, and the tools of others read what is written.
#![allow(missing_docs, reason = "a test binary")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::io::Write;
use std::sync::{Arc, Mutex};

use storage::archive::{ArchiveError, Format};
use storage::{Credentials, Digest, ErrorKind, Store};
use support::faulty::{Fault, Faulty};
use support::tar::Tar;
use support::{Layout, Pack, Registry, Temp, chain, have, pull, run, store};

/// Bytes that somebody writes and a test looks at.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn save(store: &Arc<Store>, image: &str, format: Format) -> Result<Vec<u8>, ArchiveError> {
    let sink = Sink::default();
    store.save(&[image.to_owned()], format, None, sink.clone()).await?;
    let bytes = sink.0.lock().unwrap().clone();
    Ok(bytes)
}

fn load(store: &Store, archive: &[u8]) -> Result<Vec<storage::archive::Loaded>, ArchiveError> {
    store.load(&store.unpack(archive)?, None)
}

fn silent() -> tokio::sync::watch::Sender<storage::PullProgress> {
    tokio::sync::watch::channel(Default::default()).0
}

fn layout(temp: &Temp, middle_pack: Pack) -> Layout {
    let base = Tar::new().dir("etc/", 0o755).file("etc/name", b"base").finish();
    let middle = Tar::new().file("big", &[7; 300_000]).finish();
    let top = Tar::new().file("etc/name", b"top").finish();
    Layout::new(&temp.0.join("layout"))
        .layer(&base, Pack::Gzip)
        .layer(&middle, middle_pack)
        .layer(&top, Pack::Plain)
}

/// What a registry says of a tag: the digest of its manifest.
fn remote_digest(image: &str) -> String {
    let arguments =
        ["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &format!("docker://{image}")];
    run("skopeo", &arguments).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_save_load_push_pull_keeps_every_digest() {
    if !have("round trip", &["docker-registry", "skopeo", "umoci"]) {
        return;
    }
    let (temp, registry) = (Temp::new("round"), Registry::start(""));
    let layout = layout(&temp, Pack::Gzip);
    let (manifest, id) = layout.finish(&serde_json::json!({"Cmd": ["sh"]}));
    let name = format!("{}/a/b:v1", registry.address);
    layout.push(&name);
    let first = store(&temp.0.join("one"), None);
    pull(&first, &name).await.map_err(|e| chain(&e)).unwrap();
    let saved = save(&first, &name, Format::Oci).await.map_err(|e| chain(&e)).unwrap();
    assert_eq!(saved, save(&first, &name, Format::Oci).await.unwrap(), "equal images give equal archives");

    // skopeo reads it, and finds the same manifest; umoci unpacks it. (Neither takes zstd everywhere.)
    let file = temp.0.join("saved.tar");
    std::fs::write(&file, &saved).unwrap();
    let text = run("skopeo", &["inspect", "--raw", &format!("oci-archive:{}:v1", file.display())]);
    assert_eq!(Digest::of(text.as_bytes()), manifest);
    let directory = temp.0.join("saved");
    std::fs::create_dir(&directory).unwrap();
    run("tar", &["-xf", &file.display().to_string(), "-C", &directory.display().to_string()]);
    let bundle = temp.0.join("bundle");
    run(
        "umoci",
        &["unpack", "--image", &format!("{}:v1", directory.display()), &bundle.display().to_string()],
    );
    assert_eq!(std::fs::read_to_string(bundle.join("rootfs/etc/name")).unwrap(), "top");
    let docker = temp.0.join("docker.tar");
    run(
        "skopeo",
        &[
            "copy",
            "-q",
            "--insecure-policy",
            &format!("docker-archive:{}", file.display()),
            &format!("docker-archive:{}:x:y", docker.display()),
        ],
    );

    // Another store, which has never seen the registry.
    let second = store(&temp.0.join("two"), None);
    let loaded = load(&second, &saved).map_err(|e| chain(&e)).unwrap();
    assert_eq!(loaded.len(), 1);
    assert_eq!((loaded[0].image.id.clone(), loaded[0].tags.clone()), (id.to_string(), vec![name.clone()]));
    assert!(second.scrub().is_empty());
    drop(registry);
    assert_eq!(
        save(&second, &name, Format::Oci).await.map_err(|e| chain(&e)).unwrap(),
        saved,
        "without a registry"
    );

    let registry = Registry::start("");
    let target = format!("{}/c:v2", registry.address);
    let pushed = second.push(&name, &target, None, None, silent()).await.map_err(|e| chain(&e)).unwrap();
    assert_eq!(pushed.reference, format!("{}/c@{manifest}", registry.address));
    assert_eq!(remote_digest(&target), manifest.to_string());
    let again = second.push(&name, &target, None, None, silent()).await.map_err(|e| chain(&e)).unwrap();
    assert_eq!(again.sent, 0, "what is there is not sent again");
    assert_eq!(second.remote_tags(&target, None).await.unwrap(), ["v2"]);
    let found = second.search(&format!("{}/c", registry.address), None).await.map_err(|e| chain(&e)).unwrap();
    assert_eq!(found[0].0, format!("{}/c", registry.address));

    let third = store(&temp.0.join("three"), None);
    let image = pull(&third, &target).await.map_err(|e| chain(&e)).unwrap();
    assert_eq!((image.id.clone(), image.repo_digests.clone()), (id.to_string(), vec![pushed.reference]));
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_not_kept_are_fetched_once_more_or_the_save_says_so() {
    let (temp, server) = (Temp::new("again"), Faulty::start());
    let tar = Tar::new().file("a", &[3; 50_000]).finish();
    let blob = support::gzip(&tar);
    let config =
        serde_json::to_vec(&serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&tar)]}}))
        .unwrap();
    let manifest = serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "mediaType": storage::manifest::OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": Digest::of(&blob), "size": blob.len()}]}))
    .unwrap();
    let layer = format!("/v2/a/blobs/{}", Digest::of(&blob));
    server.content(&layer, "application/octet-stream", &blob);
    server.content(&format!("/v2/a/blobs/{}", Digest::of(&config)), "application/octet-stream", &config);
    server.content("/v2/a/manifests/t", storage::manifest::OCI_MANIFEST, &manifest);
    let (store, name) = (store(&temp.0, None), format!("{}/a:t", server.address));
    pull(&store, &name).await.map_err(|e| chain(&e)).unwrap();
    save(&store, &name, Format::Oci).await.map_err(|e| chain(&e)).unwrap();
    assert_eq!(server.sent(&layer), 2 * blob.len());
    server.script(&layer, &[Fault::Status(404, String::new()), Fault::Flip(100)]);
    let error = save(&store, &name, Format::Oci).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(
        chain(&error).contains("keep_blobs") && chain(&error).contains(&layer[13..]),
        "{}",
        chain(&error)
    );
    let error = save(&store, &name, Format::Oci).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Digest { .. }), "{}", chain(&error));
    assert_eq!(std::fs::read_dir(store.root().join("staging")).unwrap().count(), 1, "nothing is left");
    save(&store, &name, Format::Docker).await.map_err(|e| chain(&e)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_blobs_need_no_registry() {
    if !have("kept blobs", &["docker-registry", "skopeo"]) {
        return;
    }
    let (temp, registry) = (Temp::new("keep"), Registry::start(""));
    let layout = layout(&temp, Pack::Zstd);
    layout.finish(&serde_json::json!({}));
    let name = format!("{}/k:t", registry.address);
    layout.push(&name);
    let mut config = support::config(&temp.0, None);
    config.keep_blobs = true;
    let store = Store::open(config).unwrap();
    let image = pull(&store, &name).await.map_err(|e| chain(&e)).unwrap();
    drop(registry);
    let saved = save(&store, &name, Format::Oci).await.map_err(|e| chain(&e)).unwrap();
    assert!(!saved.is_empty() && store.usage().bytes >= image.size);
    store.remove(&name).unwrap();
    assert_eq!(std::fs::read_dir(store.root().join("layers/sha256")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_docker_and_skopeo_are_read_compressed_too() {
    if !have("docker archives", &["docker-registry", "skopeo"]) {
        return;
    }
    let (temp, registry) = (Temp::new("docker"), Registry::start(""));
    let layout = layout(&temp, Pack::Gzip);
    let (manifest, id) = layout.finish(&serde_json::json!({}));
    let name = format!("{}/d:t", registry.address);
    layout.push(&name);
    let from = format!("docker://{name}");
    let copy = |to: &str| {
        run("skopeo", &["copy", "-q", "--insecure-policy", "--src-tls-verify=false", &from, to]);
    };
    let exact = |to: &str| {
        run(
            "skopeo",
            &["copy", "-q", "--insecure-policy", "--preserve-digests", "--src-tls-verify=false", &from, to],
        );
    };
    let (docker, oci) = (temp.0.join("docker.tar"), temp.0.join("oci.tar"));
    copy(&format!("docker-archive:{}:some.example/d:t", docker.display()));
    exact(&format!("oci-archive:{}:t", oci.display()));

    let one = store(&temp.0.join("one"), None);
    let loaded = load(&one, &std::fs::read(&docker).unwrap()).map_err(|e| chain(&e)).unwrap();
    assert_eq!(loaded[0].tags, ["some.example/d:t"]);
    // skopeo writes a Docker config of its own there, so ids are compared with what it reads back of ours.
    let ours = save(&one, "some.example/d:t", Format::Docker).await.map_err(|e| chain(&e)).unwrap();
    std::fs::write(temp.0.join("ours.tar"), ours).unwrap();
    let text = run(
        "skopeo",
        &["inspect", "--raw", "--config", &format!("docker-archive:{}", temp.0.join("ours.tar").display())],
    );
    assert_eq!(Digest::of(text.as_bytes()).to_string(), loaded[0].image.id);

    let two = store(&temp.0.join("two"), None);
    let packed = support::gzip(&std::fs::read(&oci).unwrap());
    let unpacked = two.unpack(&packed[..]).unwrap();
    let loaded = two.load(&unpacked, Some("based.example/d")).map_err(|e| chain(&e)).unwrap();
    assert_eq!(
        (loaded[0].image.id.clone(), loaded[0].tags.clone()),
        (id.to_string(), vec!["based.example/d:t".to_owned()])
    );
    assert_eq!(loaded[0].image.repo_digests, [format!("based.example/d@{manifest}")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_archive_is_named_and_leaves_nothing() {
    let temp = Temp::new("bad");
    let store = store(&temp.0, None);
    let good = Digest::of(b"x");
    let index = |digest: &Digest| {
        serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "manifests": [
            {"mediaType": storage::manifest::OCI_MANIFEST, "digest": digest, "size": 1}]}))
        .unwrap()
    };
    let lying =
        Tar::new().file("index.json", &index(&good)).file(&format!("blobs/sha256/{}", good.hex()), b"y");
    let cases: [(Vec<u8>, &str); 6] = [
        (Tar::new().file("a", b"b").finish(), "neither"),
        (b"not a tar at all".to_vec(), "cannot be read"),
        (Tar::new().file("index.json", b"{").finish(), "malformed"),
        (Tar::new().file("index.json", &index(&good)).finish(), &good.hex()[..20]),
        (lying.finish(), "has digest sha256:"),
        (Tar::new().file("manifest.json", br#"[{"Config": "../../etc/passwd"}]"#).finish(), "etc/passwd"),
    ];
    for (bytes, hint) in cases {
        let error = load(&store, &bytes).map(|l| l.len()).unwrap_err();
        assert!(chain(&error).contains(hint), "{hint}: {}", chain(&error));
    }
    let truncated = &Tar::new().file("index.json", &[b'x'; 3000]).finish()[..2000];
    assert!(load(&store, truncated).is_err());
    assert!(store.images().is_empty());
    assert_eq!(std::fs::read_dir(store.root().join("staging")).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_refused_names_the_registry_and_wants_credentials() {
    let (temp, server, target) = (Temp::new("refuse"), Faulty::start(), Faulty::start());
    server.image("a", &Tar::new().file("a", b"b").finish());
    let (store, name) = (store(&temp.0, None), format!("{}/a:t", server.address));
    pull(&store, &name).await.map_err(|e| chain(&e)).unwrap();
    target.require("Basic dTpw");
    let to = format!("{}/a:t", target.address);
    let error = store.push(&name, &to, None, None, silent()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", chain(&error));
    let wrong = Credentials { username: "u".into(), password: "x".into(), ..Credentials::default() };
    let error = store.push(&name, &to, Some(wrong), None, silent()).await.unwrap_err();
    assert!(chain(&error).contains(&target.address), "{}", chain(&error));
    let error = store.push("absent.example/x:1", &to, None, None, silent()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
