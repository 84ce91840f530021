//! Other hosts that stand for a registry, in both formats; and hosts that are slow, dead, or ask for peace.
#![allow(missing_docs, reason = "a test binary")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use storage::registry::Timing;
use storage::{Config, Credentials, Digest, ErrorKind, Store};
use support::faulty::{Fault, Faulty};
use support::tar::Tar;
use support::{Temp, chain, config, pull};

fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    let data: Vec<u8> = (0..length).map(|_| next()).collect();
    Tar::new().file("big", &data).finish()
}

fn small() -> Vec<u8> {
    Tar::new().file("a", b"b").finish()
}

fn open(temp: &Temp, config: Config) -> Arc<Store> {
    let timing = Timing {
        connect: Duration::from_millis(500),
        stall: Duration::from_secs(3),
        backoff: Duration::from_millis(1),
        backoff_max: Duration::from_millis(50),
        ..Timing::default()
    };
    let registry_config = vec![temp.0.join("certs.d"), temp.0.join("registries.conf")];
    Store::open_with(Config { registry_config, ..config }, timing).unwrap()
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registries_conf_rewrites_blocks_and_searches() {
    let (temp, mirror, server) = (Temp::new("conf"), Faulty::start(), Faulty::start());
    mirror.image("cache/team/app", &small());
    server.image("store/other", &small());
    let text = format!(
        "unqualified-search-registries = ['first.test', 'second.test']
         short-name-mode = 'disabled'
         [[registry]]
         prefix = 'first.test/team'
         location = '{server}/store'
         [[registry.mirror]]
         location = '{mirror}/cache/team'
         [[registry]]
         prefix = 'second.test'
         location = '{server}/store'
         [[registry]]
         location = 'bad.test'
         blocked = true
         [[registry]]
         prefix = 'first.test'
         location = '{server}/nothing'",
        server = server.address,
        mirror = mirror.address
    );
    write(&temp.0.join("registries.conf"), &text);
    let store = open(&temp, config(&temp.0, None));
    let image = pull(&store, "first.test/team/app:t").await.map_err(|e| chain(&e)).unwrap();
    assert_eq!(image.repo_tags, ["first.test/team/app:t"]);
    assert!(server.requests().is_empty() && mirror.requests().iter().all(|r| !r.path.contains("ns=")));

    // `first.test` has no such image; `second.test` has, and the short name is remembered as its.
    let image = pull(&store, "other:t").await.map_err(|e| chain(&e)).unwrap();
    assert_eq!(image.repo_tags, ["first.test/team/app:t", "second.test/other:t"], "one config, one image");
    assert_eq!(store.find("other:t").unwrap().id, image.id);
    let reopened = {
        drop(store);
        open(&temp, config(&temp.0, None))
    };
    assert_eq!(reopened.find("other:t").unwrap().id, image.id, "a restart remembers");

    let error = pull(&reopened, "bad.test/x:t").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(chain(&error).contains("registries.conf"), "{}", chain(&error));
    let error = pull(&reopened, "nowhere:t").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", chain(&error));
    assert!(
        chain(&error).contains("first.test") && chain(&error).contains("second.test"),
        "{}",
        chain(&error)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_swallows_packets_costs_its_dial_time_once() {
    let (temp, server) = (Temp::new("dead"), Faulty::start());
    server.image("a", &small());
    // A full backlog: connections to it are neither taken nor refused.
    let hole = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = hole.local_addr().unwrap();
    rustix::net::listen(&hole, 0).unwrap();
    let _fill: Vec<_> =
        (0..4).map(|_| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100))).collect();
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{address}\"]\ndial_timeout = \"300ms\"\n",
        server.address
    );
    write(&temp.0.join("certs.d/example.test/hosts.toml"), &text);
    let store = open(&temp, config(&temp.0, None));
    let started = Instant::now();
    pull(&store, "example.test/a:t").await.map_err(|e| chain(&e)).unwrap();
    let took = started.elapsed();
    assert!(
        took >= Duration::from_millis(300) && took < Duration::from_millis(1500),
        "{took:?}: once, not per blob"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_breaks_in_the_middle_is_continued_at_the_registry() {
    let (temp, mirror, server, tar) =
        (Temp::new("middle"), Faulty::start(), Faulty::start(), noise(3_000_000));
    let layer = mirror.image("a", &tar);
    server.image("a", &tar);
    mirror.script(&layer, &[Fault::Cut(1_000_000), Fault::Status(500, String::new())]);
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", server.address, mirror.address);
    write(&temp.0.join("certs.d/example.test/hosts.toml"), &text);
    let store = open(&temp, config(&temp.0, None));
    pull(&store, "example.test/a:t").await.map_err(|e| chain(&e)).unwrap();
    assert_eq!(mirror.sent(&layer) + server.sent(&layer), tar.len(), "no byte twice, whoever sends it");
    assert_eq!(mirror.sent(&layer), 1_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_layer_comes_in_ranges_side_by_side_and_cuts_cost_no_byte_twice() {
    let (temp, server, tar) = (Temp::new("ranges"), Faulty::start(), noise(90_000_000));
    let layer = server.image("a", &tar);
    server.cut_every(10_000_000);
    let store = open(&temp, config(&temp.0, None));
    pull(&store, &format!("{}/a:t", server.address)).await.map_err(|e| chain(&e)).unwrap();
    assert!(server.sent(&layer) <= tar.len() * 102 / 100, "{} of {}", server.sent(&layer), tar.len());
    let ranges = server.requests_of(&layer).iter().filter(|r| !r.header("range").is_empty()).count();
    assert!(ranges >= 9, "{ranges}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_layer_from_a_server_without_ranges_comes_whole() {
    let (temp, server, tar) = (Temp::new("whole"), Faulty::start(), noise(40_000_000));
    let layer = server.image("a", &tar);
    server.script(&layer, &[Fault::IgnoreRange]);
    let store = open(&temp, config(&temp.0, None));
    pull(&store, &format!("{}/a:t", server.address)).await.map_err(|e| chain(&e)).unwrap();
    assert_eq!((server.sent(&layer), server.requests_of(&layer).len()), (tar.len(), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_dropped_between_ranges_keeps_what_came_of_each() {
    let (temp, server, tar) = (Temp::new("resume"), Faulty::start(), noise(90_000_000));
    let layer = server.image("a", &tar);
    let stall = Fault::Stall(9_000_000);
    server.script(&layer, &[Fault::Fine, stall.clone(), stall.clone(), stall.clone(), stall]);
    let timing = Timing { stall: Duration::from_secs(600), ..Timing::default() };
    let store = Store::open_with(config(&temp.0, None), timing).unwrap();
    let name = format!("{}/a:t", server.address);
    let mut pulling = Box::pin(pull(&store, &name));
    while server.sent(&layer) < 4 * 9_000_000 + (16 << 20) {
        let _ = tokio::time::timeout(Duration::from_millis(20), &mut pulling).await;
    }
    // What is on the wire is read before the pull ends.
    let _ = tokio::time::timeout(Duration::from_millis(500), &mut pulling).await;
    drop(pulling);
    drop(store);
    let before = server.sent(&layer);
    let store = open(&temp, config(&temp.0, None));
    pull(&store, &name).await.map_err(|e| chain(&e)).unwrap();
    let sent = server.sent(&layer);
    assert!(sent > before && sent <= tar.len() * 102 / 100, "{sent} of {}", tar.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_pulls_wait_together_for_a_registry_that_asks_for_peace() {
    let (temp, server) = (Temp::new("peace"), Faulty::start());
    for number in 0..50 {
        server.image(&format!("a{number}"), &small());
    }
    let calm = Instant::now() + Duration::from_secs(2);
    for number in 0..50 {
        server.handle(&format!("/v2/a{number}/manifests/t"), move |_| {
            (Instant::now() < calm).then(|| (429, String::new()))
        });
    }
    server.retry_after(1);
    let store = open(&temp, config(&temp.0, None));
    let pulls: Vec<_> = (0..50)
        .map(|number| {
            let (store, name) = (store.clone(), format!("{}/a{number}:t", server.address));
            tokio::spawn(async move { pull(&store, &name).await.map_err(|e| chain(&e)).unwrap().id.clone() })
        })
        .collect();
    for one in pulls {
        one.await.unwrap();
    }
    let refused = server.requests().iter().filter(|r| r.path.contains("/manifests/")).count() - 50;
    // A first wave, then one a window.
    assert!(refused <= 50 + 3, "{refused} requests were refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_layer_is_fetched_from_its_own_address_without_credentials() {
    let (temp, server, other, tar) = (Temp::new("foreign"), Faulty::start(), Faulty::start(), small());
    let digest = Digest::of(&tar);
    other.content("/layers/x", "application/octet-stream", &tar);
    let config_blob =
        serde_json::to_vec(&serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest]}}))
        .unwrap();
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": storage::manifest::OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config_blob), "size": config_blob.len()},
        "layers": [{"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar", "digest": digest, "size": tar.len(),
            "urls": ["ftp://nobody/x", format!("http://{}/layers/x", other.address)]}]});
    let blob = format!("/v2/a/blobs/{}", Digest::of(&config_blob));
    server.content(&blob, "application/octet-stream", &config_blob);
    server.content(
        "/v2/a/manifests/t",
        storage::manifest::OCI_MANIFEST,
        &serde_json::to_vec(&manifest).unwrap(),
    );
    server.require("Basic dTpw");
    let store = open(&temp, config(&temp.0, None));
    let credentials = Credentials { username: "u".into(), password: "p".into(), ..Credentials::default() };
    let silent = tokio::sync::watch::channel(Default::default()).0;
    store
        .pull(&format!("{}/a:t", server.address), Some(credentials), silent)
        .await
        .map_err(|e| chain(&e))
        .unwrap();
    let seen = other.requests();
    assert_eq!(seen.len(), 1);
    assert!(seen[0].header("authorization").is_empty());
}
