//! Pulls from a real registry: what is promised when they succeed.
#![allow(missing_docs, reason = "a test binary")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::panic,
    reason = "a test fails by panicking and says what it skips"
)]
#![allow(clippy::needless_pass_by_value, clippy::cast_possible_truncation, reason = "brevity of tests")]

mod support;

use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, openat};
use storage::RootfsOptions;
use support::tar::Tar;
use support::{Layout, Pack, Registry, Temp, chain, have, pull, run, store};

fn read(root: &OwnedFd, path: &str) -> String {
    let fd = openat(root, path, OFlags::RDONLY, Mode::empty()).unwrap();
    let mut text = String::new();
    std::fs::File::from(fd).read_to_string(&mut text).unwrap();
    text
}

fn three_layers(temp: &Temp) -> Layout {
    let base = Tar::new().dir("etc/", 0o755).file("etc/name", b"base").file("etc/gone", b"x").finish();
    let middle = Tar::new().file("etc/.wh.gone", b"").file("big", &[7; 300_000]).finish();
    let top = Tar::new().file("etc/name", b"top").symlink("link", "etc/name").finish();
    Layout::new(&temp.0.join("layout"))
        .layer(&base, Pack::Gzip)
        .layer(&middle, Pack::Zstd)
        .layer(&top, Pack::Plain)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_pulled_by_tag_is_verified_mounted_and_removed_without_a_trace() {
    if !have("pull by tag", &["docker-registry", "skopeo"]) {
        return;
    }
    for driver in ["erofs", "overlay", "vfs"] {
        let (temp, registry) = (Temp::new("tag"), Registry::start(""));
        let layout = three_layers(&temp);
        let config = serde_json::json!({"Cmd": ["sh"], "Env": ["A=b"], "User": "7"});
        let (manifest, id) = layout.finish(&config);
        let name = format!("{}/a/b:v1", registry.address);
        layout.push(&name);

        let store = store(&temp.0, Some(driver));
        let image = pull(&store, &name).await.map_err(|e| chain(&e)).unwrap();
        assert_eq!(image.id, id.to_string());
        assert_eq!(image.repo_tags, [name.as_str()]);
        assert_eq!(image.repo_digests, [format!("{}/a/b@{manifest}", registry.address)]);
        assert_eq!((image.config.user.as_str(), image.config.cmd.len()), ("7", 1));
        for found in [&name, &image.id, &image.id[7..20], &image.repo_digests[0]] {
            assert_eq!(store.find(found).unwrap().id, image.id, "{found}");
        }

        store.prepare(&image.id, "c1").unwrap();
        store.prepare(&image.id, "c1").unwrap();
        let root = store.mount("c1", &RootfsOptions::default()).unwrap();
        assert_eq!(read(&root, "etc/name"), "top");
        assert_eq!(read(&root, "link"), "top");
        assert_eq!(read(&root, "big").len(), 300_000);
        assert!(openat(&root, "etc/gone", OFlags::RDONLY, Mode::empty()).is_err());
        let again = store.mount("c1", &RootfsOptions::default()).unwrap();
        let (flags, mode) = (OFlags::CREATE | OFlags::WRONLY, Mode::RWXU);
        drop(openat(&root, "written", flags, mode).unwrap());
        openat(&again, "written", OFlags::RDONLY, Mode::empty()).unwrap();
        assert!(store.container_usage("c1").unwrap().inodes >= 2);

        let volume = store.mount_image(&image.id, "etc", None).unwrap();
        assert_eq!(read(&volume, "name"), "top");
        assert!(openat(&volume, "new", flags, mode).is_err(), "image volumes are read-only");
        drop((root, again, volume));

        let error = store.remove(&name).unwrap_err().to_string();
        assert!(error.contains("c1"), "{error}");
        store.release("c1").unwrap();
        store.release("c1").unwrap();
        std::thread::scope(|scope| {
            let each: Vec<_> = (0..5).map(|_| scope.spawn(|| store.remove(&name))).collect();
            each.into_iter().for_each(|one| one.join().unwrap().unwrap());
        });
        assert!(store.images().is_empty());
        assert_eq!(store.usage(), storage::Usage::default());
        for left in ["layers/sha256", "images", "containers", "staging/partial"] {
            assert_eq!(std::fs::read_dir(store.root().join(left)).unwrap().count(), 0, "{left}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_by_digest_names_no_tag_and_a_restart_finds_everything_again() {
    if !have("pull by digest", &["docker-registry", "skopeo"]) {
        return;
    }
    let (temp, registry) = (Temp::new("digest"), Registry::start(""));
    let layout = three_layers(&temp);
    let (manifest, _) = layout.finish(&serde_json::json!({}));
    layout.push(&format!("{}/x:t", registry.address));
    let reference = format!("{}/x@{manifest}", registry.address);
    let first = store(&temp.0, None);
    let image = pull(&first, &reference).await.map_err(|e| chain(&e)).unwrap();
    assert!(image.repo_tags.is_empty());
    assert_eq!(image.repo_digests, [reference.as_str()]);
    first.prepare(&image.id, "c").unwrap();
    let usage = first.usage();
    drop(first);

    let second = store(&temp.0, None);
    assert_eq!(second.find(&reference).unwrap().size, image.size);
    assert_eq!(second.usage(), usage);
    assert!(second.remove(&reference).is_err(), "the pin outlives the restart");
    assert_eq!(second.retain(&|_| false), ["c"]);
    second.remove(&reference).unwrap();
    assert!(second.images().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_manifests_are_read_like_oci_ones() {
    if !have("docker manifests", &["docker-registry", "skopeo"]) {
        return;
    }
    let (temp, registry) = (Temp::new("docker"), Registry::start(""));
    let tar = Tar::new().dir("etc/", 0o755).file("etc/name", b"top").finish();
    let layout = Layout::new(&temp.0.join("layout")).layer(&tar, Pack::Gzip);
    layout.finish(&serde_json::json!({}));
    let name = format!("{}/d:t", registry.address);
    let from = format!("oci:{}:t", layout.directory.display());
    let arguments = ["copy", "-q", "--insecure-policy", "--dest-tls-verify=false", "-f", "v2s2", &from];
    run("skopeo", &[&arguments[..], &[&format!("docker://{name}")]].concat());
    let store = store(&temp.0, None);
    let image = pull(&store, &name).await.map_err(|e| chain(&e)).unwrap();
    let view = store.mount_image(&image.id, "", None).unwrap();
    assert_eq!(read(&view, "etc/name"), "top");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_finds_the_one_layer_with_a_flipped_bit_and_an_open_drops_a_short_one() {
    if !have("scrub", &["docker-registry", "skopeo"]) {
        return;
    }
    let (temp, registry) = (Temp::new("scrub"), Registry::start(""));
    three_layers(&temp).finish(&serde_json::json!({}));
    let layout = three_layers(&temp);
    layout.finish(&serde_json::json!({}));
    let name = format!("{}/s:t", registry.address);
    layout.push(&name);
    let first = store(&temp.0, None);
    let image = pull(&first, &name).await.map_err(|e| chain(&e)).unwrap();
    assert!(first.scrub().is_empty());
    let layer =
        std::fs::read_dir(first.root().join("layers/sha256")).unwrap().next().unwrap().unwrap().path();
    let mut tar = std::fs::read(layer.join("tar")).unwrap();
    tar[600] ^= 1;
    std::fs::write(layer.join("tar"), &tar).unwrap();
    let damage = first.scrub();
    assert_eq!(damage.len(), 1);
    assert_eq!(damage[0].layer.hex(), layer.file_name().unwrap().to_str().unwrap());
    assert_eq!(damage[0].images.concat(), image.id);
    drop(first);
    std::fs::write(layer.join("tar"), &tar[..512]).unwrap();
    let second = store(&temp.0, None);
    assert!(second.images().is_empty(), "an image with a short layer is not shown");
    pull(&second, &name).await.map_err(|e| chain(&e)).unwrap();
    assert!(second.scrub().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_layers_are_fetched_again_and_put_right_under_whoever_has_them_open() {
    if !have("heal", &["docker-registry", "skopeo"]) {
        return;
    }
    let (temp, registry) = (Temp::new("heal"), Registry::start(""));
    let layout = three_layers(&temp);
    layout.finish(&serde_json::json!({}));
    let name = format!("{}/h:t", registry.address);
    layout.push(&name);
    let store = store(&temp.0, None);
    pull(&store, &name).await.map_err(|e| chain(&e)).unwrap();
    let layers = std::fs::read_dir(store.root().join("layers/sha256")).unwrap();
    let tars: Vec<_> = layers.map(|layer| layer.unwrap().path().join("tar")).collect();
    let open: Vec<_> = tars.iter().map(|tar| std::fs::File::open(tar).unwrap()).collect();
    let good: Vec<_> = tars.iter().map(|tar| std::fs::read(tar).unwrap()).collect();
    let spoil = || {
        for (tar, bytes) in tars.iter().zip(&good) {
            let mut bytes = bytes.clone();
            bytes[600] ^= 1;
            // One is too short as well.
            bytes.truncate(if std::ptr::eq(tar, &raw const tars[0]) { 1024 } else { bytes.len() });
            std::fs::write(tar, bytes).unwrap();
        }
    };
    spoil();
    let damage = store.scrub();
    assert_eq!(damage.len(), 3);
    for one in &damage {
        store.heal(&one.layer).await.map_err(|e| chain(&e)).unwrap();
    }
    assert!(store.scrub().is_empty());
    for (mut file, bytes) in open.into_iter().zip(&good) {
        let mut seen = Vec::new();
        file.read_to_end(&mut seen).unwrap();
        assert!(seen == *bytes, "whoever had it open reads the good bytes");
    }
    assert_eq!(std::fs::read_dir(store.root().join("staging")).unwrap().count(), 1, "only `partial` is left");
    drop(registry);
    spoil();
    let error = store.heal(&damage[0].layer).await.unwrap_err();
    assert_eq!(error.kind(), storage::ErrorKind::FailedPrecondition, "{}", chain(&error));
    assert_eq!(store.scrub().len(), 3, "what cannot be fetched stays as it was");
}
