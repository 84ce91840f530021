//! Pulls from registries that cut, stall, lie and refuse: what is promised when things go wrong.
#![allow(missing_docs, reason = "a test binary")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use storage::registry::Timing;
use storage::{Credentials, ErrorKind, Store};
use support::faulty::{Fault, Faulty};
use support::tar::Tar;
use support::{Temp, chain, config, pull};

/// 4 MB that do not repeat.
fn tar() -> Vec<u8> {
    let mut state = 1_u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    let data: Vec<u8> = (0..4_000_000).map(|_| noise()).collect();
    Tar::new().file("big", &data).finish()
}

fn impatient(temp: &Temp) -> Arc<Store> {
    let timing = Timing {
        stall: Duration::from_millis(300),
        backoff: Duration::from_millis(1),
        backoff_max: Duration::from_millis(50),
        ..Timing::default()
    };
    Store::open_with(config(&temp.0, None), timing).unwrap()
}

fn nothing_is_left(store: &Store) {
    assert!(store.images().is_empty());
    for place in ["layers/sha256", "images"] {
        assert_eq!(std::fs::read_dir(store.root().join(place)).unwrap().count(), 0, "{place}");
    }
    let staged: Vec<_> = std::fs::read_dir(store.root().join("staging")).unwrap().flatten().collect();
    assert_eq!(staged.len(), 1, "only `partial` is left: {staged:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_breaks_again_and_again_costs_no_byte_twice() {
    let (temp, server, tar) = (Temp::new("cut"), Faulty::start(), tar());
    let layer = server.image("a", &tar);
    server.script(&layer, &vec![Fault::Cut(300_000); 12]);
    let store = impatient(&temp);
    pull(&store, &format!("{}/a:t", server.address)).await.map_err(|e| chain(&e)).unwrap();
    assert!(server.sent(&layer) <= tar.len() * 102 / 100, "{} of {}", server.sent(&layer), tar.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_falls_silent_is_asked_again_from_there() {
    let (temp, server, tar) = (Temp::new("stall"), Faulty::start(), tar());
    let layer = server.image("a", &tar);
    server.script(&layer, &[Fault::Stall(1_000_000), Fault::Stall(1_000_000)]);
    let store = impatient(&temp);
    pull(&store, &format!("{}/a:t", server.address)).await.map_err(|e| chain(&e)).unwrap();
    assert_eq!(server.sent(&layer), tar.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ignores_ranges_is_understood() {
    let (temp, server, tar) = (Temp::new("range"), Faulty::start(), tar());
    let layer = server.image("a", &tar);
    server.script(&layer, &[Fault::Cut(500_000), Fault::IgnoreRange]);
    let store = impatient(&temp);
    pull(&store, &format!("{}/a:t", server.address)).await.map_err(|e| chain(&e)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_refused_by_name_and_nothing_is_left() {
    let (temp, server, tar) = (Temp::new("flip"), Faulty::start(), tar());
    let layer = server.image("a", &tar);
    server.script(&layer, &[Fault::Flip(2_000_000)]);
    let store = impatient(&temp);
    let name = format!("{}/a:t", server.address);
    let error = chain(&pull(&store, &name).await.unwrap_err());
    assert!(
        error.contains(&name) && error.contains("digest is sha256:") && error.contains(&layer[14..]),
        "{error}"
    );
    nothing_is_left(&store);
    assert_eq!(
        std::fs::read_dir(store.root().join("staging/partial")).unwrap().count(),
        0,
        "bad bytes are not kept"
    );
    pull(&store, &name).await.map_err(|e| chain(&e)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_before_a_crash_is_not_fetched_again() {
    let (temp, server, tar) = (Temp::new("crash"), Faulty::start(), tar());
    let layer = server.image("a", &tar);
    let store = impatient(&temp);
    server.script(&layer, &[Fault::Cut(3_000_000), Fault::Status(404, String::new())]);
    let name = format!("{}/a:t", server.address);
    let error = pull(&store, &name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", chain(&error));
    nothing_is_left(&store);
    drop(store);
    let store = impatient(&temp);
    pull(&store, &name).await.map_err(|e| chain(&e)).unwrap();
    assert_eq!(server.sent(&layer), tar.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_pull_stops_and_leaves_nothing_visible() {
    let (temp, server, tar) = (Temp::new("drop"), Faulty::start(), tar());
    let layer = server.image("a", &tar);
    server.script(&layer, &[Fault::Stall(1_000_000)]);
    let store = Store::open(config(&temp.0, None)).unwrap();
    let name = format!("{}/a:t", server.address);
    let mut pulling = Box::pin(pull(&store, &name));
    // Until the layer is on its way.
    while server.sent(&layer) == 0 {
        let _ = tokio::time::timeout(Duration::from_millis(20), &mut pulling).await;
    }
    drop(pulling);
    let gone = || std::fs::read_dir(store.root().join("staging")).unwrap().count() == 1;
    while !gone() {
        tokio::task::yield_now().await;
    }
    nothing_is_left(&store);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_with_a_time_is_waited_for_and_a_quota_is_not() {
    let (temp, server, tar) = (Temp::new("429"), Faulty::start(), tar());
    let layer = server.image("a", &tar);
    server.script(
        &layer,
        &[Fault::Status(429, "Retry-After: 0\r\n".into()), Fault::Status(503, String::new())],
    );
    let store = impatient(&temp);
    pull(&store, &format!("{}/a:t", server.address)).await.map_err(|e| chain(&e)).unwrap();
    server.script("/v2/a/manifests/t", &[Fault::Status(429, String::new())]);
    let error = chain(&pull(&store, &format!("{}/a:t", server.address)).await.unwrap_err());
    assert!(error.contains("limits requests"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_never_follow_a_redirect_to_another_host() {
    let (temp, server, other, tar) = (Temp::new("redirect"), Faulty::start(), Faulty::start(), tar());
    let layer = server.image("a", &tar);
    other.content("/elsewhere", "application/octet-stream", &tar);
    server.require("Basic dTpw");
    server.script(
        &layer,
        &[Fault::Status(307, format!("Location: http://{}/elsewhere?sig=1\r\n", other.address))],
    );
    let store = impatient(&temp);
    let name = format!("{}/a:t", server.address);
    let error = pull(&store, &name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", chain(&error));
    let credentials = Credentials { username: "u".into(), password: "p".into(), ..Credentials::default() };
    let silent = || tokio::sync::watch::channel(Default::default()).0;
    store.pull(&name, Some(credentials), silent()).await.map_err(|e| chain(&e)).unwrap();
    let seen = other.requests();
    assert_eq!(seen.len(), 1);
    assert!(!seen[0].headers.contains_key("authorization"), "{seen:?}");
    // Present now, and still nobody gets it without credentials.
    assert_eq!(store.pull(&name, None, silent()).await.unwrap_err().kind(), ErrorKind::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_first_with_the_namespace_and_the_registry_when_they_fail() {
    let (temp, mirror, server, tar) = (Temp::new("mirror"), Faulty::start(), Faulty::start(), tar());
    let layer = server.image("a", &tar);
    let directory = temp.0.join("certs.d/example.test");
    std::fs::create_dir_all(&directory).unwrap();
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", server.address, mirror.address);
    std::fs::write(directory.join("hosts.toml"), text).unwrap();
    let store = impatient(&temp);
    let image = pull(&store, "example.test/a:t").await.map_err(|e| chain(&e)).unwrap();
    assert_eq!(image.repo_tags, ["example.test/a:t"]);
    assert!(mirror.requests().iter().all(|r| r.path.ends_with("?ns=example.test")));
    assert!(mirror.requests().len() >= 3 && server.sent(&layer) == tar.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_pulls_at_once_fetch_a_layer_once_and_a_repeat_moves_none() {
    let (temp, server, tar) = (Temp::new("ten"), Faulty::start(), tar());
    let layer = server.image("a", &tar);
    let store = impatient(&temp);
    let name = format!("{}/a:t", server.address);
    let pulls: Vec<_> = (0..10)
        .map(|_| {
            let (store, name) = (store.clone(), name.clone());
            tokio::spawn(async move { pull(&store, &name).await.map_err(|e| chain(&e)).unwrap().id.clone() })
        })
        .collect();
    for one in pulls {
        one.await.unwrap();
    }
    assert_eq!(server.sent(&layer), tar.len());
    let before = server.requests().len();
    pull(&store, &name).await.map_err(|e| chain(&e)).unwrap();
    let after: Vec<String> = server.requests()[before..].iter().map(|r| r.path.clone()).collect();
    assert_eq!(after, ["/v2/a/manifests/t"], "the registry is asked, and only that");
}
