//! Being let in: every form of credentials, every way registries ask for them, and TLS with the site's own certificates.
#![allow(missing_docs, reason = "a test binary")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use storage::{Credentials, ErrorKind, Image, PullError, Store};
use support::faulty::{Faulty, Request};
use support::tar::Tar;
use support::tls::Authority;
use support::{Temp, chain, store};

fn tar() -> Vec<u8> {
    Tar::new().file("a", b"b").finish()
}

async fn pull(
    store: &Arc<Store>,
    image: &str,
    credentials: Option<Credentials>,
) -> Result<Arc<Image>, PullError> {
    store.pull(image, credentials, tokio::sync::watch::channel(Default::default()).0).await
}

fn password() -> Credentials {
    Credentials { username: "u".into(), password: "p".into(), ..Credentials::default() }
}

/// A registry that wants the token `good`, and its token service on the same server.
fn with_tokens(server: &Faulty, service: impl Fn(&Request) -> (u16, String) + Send + Sync + 'static) {
    let realm = format!("http://{}/token", server.address);
    server.demand(
        "Bearer good",
        &format!("Bearer realm=\"{realm}\",service=\"reg\",scope=\"repository:a:pull\""),
    );
    server.handle("/token", move |request| Some(service(request)));
}

fn token() -> (u16, String) {
    (200, r#"{"token": "good", "expires_in": 300}"#.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_credentials_is_understood() {
    let forms: [(&str, Credentials); 4] = [
        ("Basic dTpw", password()),
        ("Basic dTpw", Credentials { auth: "dTpw".into(), ..Credentials::default() }),
        ("Bearer tok", Credentials { registry_token: "tok".into(), ..Credentials::default() }),
        ("Bearer good", Credentials { identity_token: "refresh".into(), ..Credentials::default() }),
    ];
    for (wanted, credentials) in forms {
        let (temp, server) = (Temp::new("forms"), Faulty::start());
        server.image("a", &tar());
        match wanted {
            "Basic dTpw" => server.require(wanted),
            "Bearer good" => with_tokens(&server, |request| {
                assert!(request.body.contains("grant_type=refresh_token"), "{request:?}");
                assert!(request.body.contains("refresh_token=refresh"), "{request:?}");
                token()
            }),
            _ => server.demand(wanted, "Bearer realm=\"http://127.0.0.1:1/none\""),
        }
        let store = store(&temp.0, None);
        let name = format!("{}/a:t", server.address);
        let shown = format!("{credentials:?}");
        pull(&store, &name, Some(credentials)).await.map_err(|e| chain(&e)).unwrap();
        assert!(!shown.contains("tok") && !shown.contains("refresh"), "secrets are never printed: {shown}");
        let error = pull(&store, &name, None).await.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unavailable),
            "{}",
            chain(&error)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_for_another_server_stay_at_home() {
    let (temp, server) = (Temp::new("other"), Faulty::start());
    server.image("a", &tar());
    server.require("Basic dTpw");
    let store = store(&temp.0, None);
    let name = format!("{}/a:t", server.address);
    let elsewhere = Credentials { server_address: "https://other.example/v1/".into(), ..password() };
    let error = pull(&store, &name, Some(elsewhere)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", chain(&error));
    assert!(server.requests().iter().all(|r| r.header("authorization").is_empty()));
    let here = Credentials { server_address: server.address.clone(), ..password() };
    pull(&store, &name, Some(here)).await.map_err(|e| chain(&e)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_asked_for_by_the_way_the_service_knows() {
    // (credentials, the first way's status, methods seen)
    let refresh = || Credentials { identity_token: "refresh".into(), ..Credentials::default() };
    let cases = [
        (password(), 200, vec!["GET"]),
        (password(), 405, vec!["GET", "POST"]),
        (refresh(), 200, vec!["POST"]),
        (refresh(), 404, vec!["POST", "GET"]),
        (refresh(), 401, vec!["POST", "GET"]),
    ];
    for (credentials, first, methods) in cases {
        let (temp, server) = (Temp::new("ways"), Faulty::start());
        server.image("a", &tar());
        let calls = AtomicUsize::new(0);
        with_tokens(&server, move |_| {
            if calls.fetch_add(1, Ordering::SeqCst) == 0 && first != 200 {
                (first, String::new())
            } else {
                token()
            }
        });
        let store = store(&temp.0, None);
        pull(&store, &format!("{}/a:t", server.address), Some(credentials))
            .await
            .map_err(|e| chain(&e))
            .unwrap();
        let seen: Vec<Request> = server.requests_of("/token");
        assert_eq!(seen.iter().map(|r| r.method.as_str()).collect::<Vec<_>>(), methods);
        if methods == ["GET"] {
            assert_eq!(seen[0].path, "/token?service=reg&scope=repository%3Aa%3Apull");
            assert_eq!(seen[0].header("authorization"), "Basic dTpw");
        }
        if methods == ["GET", "POST"] {
            let body = &seen[1].body;
            assert!(body.contains("grant_type=password&username=u&password=p"), "{body}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_password_is_not_tried_by_another_way() {
    let (temp, server) = (Temp::new("refused"), Faulty::start());
    server.image("a", &tar());
    with_tokens(&server, |_| (401, r#"{"errors": [{"message": "no such user"}]}"#.into()));
    let store = store(&temp.0, None);
    let error = pull(&store, &format!("{}/a:t", server.address), Some(password())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(chain(&error).contains("no such user"), "{}", chain(&error));
    assert_eq!(server.requests_of("/token").len(), 1, "a lock-out is one wrong password away");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_pulls_at_once_fetch_one_token_and_the_next_pull_none() {
    let (temp, server) = (Temp::new("single"), Faulty::start());
    server.image("a", &tar());
    with_tokens(&server, |_| token());
    let (store, name) = (store(&temp.0, None), format!("{}/a:t", server.address));
    let barrier = Arc::new(Barrier::new(10));
    let pulls: Vec<_> = (0..10)
        .map(|_| {
            let (store, name, barrier) = (store.clone(), name.clone(), barrier.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                barrier.wait();
                runtime.block_on(pull(&store, &name, Some(password()))).map_err(|e| chain(&e)).unwrap();
            })
        })
        .collect();
    pulls.into_iter().for_each(|one| one.join().unwrap());
    assert_eq!(server.requests_of("/token").len(), 1);
    pull(&store, &name, Some(password())).await.map_err(|e| chain(&e)).unwrap();
    assert_eq!(server.requests_of("/token").len(), 1);
    pull(&store, &name, None).await.map_err(|e| chain(&e)).unwrap();
    let seen = server.requests_of("/token");
    assert_eq!(seen.len(), 2, "nobody is served by somebody else's token");
    assert!(seen[1].header("authorization").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_no_longer_good_is_fetched_anew() {
    let (temp, server) = (Temp::new("expired"), Faulty::start());
    server.image("a", &tar());
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    with_tokens(&server, move |_| {
        let number = counted.fetch_add(1, Ordering::SeqCst);
        (200, format!(r#"{{"access_token": "good{number}"}}"#))
    });
    let realm = format!("http://{}/token", server.address);
    let challenge = format!("Bearer realm=\"{realm}\",service=\"reg\",error=\"insufficient_scope\"");
    let (store, name) = (store(&temp.0, None), format!("{}/a:t", server.address));
    for number in 0..2 {
        server.demand(&format!("Bearer good{number}"), &challenge);
        pull(&store, &name, Some(password())).await.map_err(|e| chain(&e)).unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), number + 1);
    }
    server.demand("Bearer never", &challenge);
    let error = pull(&store, &name, Some(password())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", chain(&error));
    assert_eq!(calls.load(Ordering::SeqCst), 4, "and not for ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_certificate_and_a_client_certificate_open_the_door_and_nothing_else_does() {
    let (temp, site, staff) = (Temp::new("tls"), Authority::new("site"), Authority::new("staff"));
    let server = Faulty::start_tls(site.server(Some(&staff)));
    server.image("a", &tar());
    let name = format!("{}/a:t", server.address);
    let directory = temp.0.join("certs.d").join(&server.address);
    std::fs::create_dir_all(&directory).unwrap();
    let write = |text: &str| std::fs::write(directory.join("hosts.toml"), text).unwrap();
    let url = format!("server = \"https://{}\"\n", server.address);
    let store = store(&temp.0, None);

    write(&url);
    let error = pull(&store, &name, None).await.unwrap_err();
    assert!(chain(&error).contains("UnknownIssuer"), "{}", chain(&error));
    site.write_root(&directory.join("site.crt"));
    write(&format!("{url}ca = \"site.crt\"\n"));
    let error = pull(&store, &name, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", chain(&error));
    staff.issue().write(&directory.join("node.cert"), &directory.join("node.key"));
    write(&format!("{url}ca = \"site.crt\"\nclient = [[\"node.cert\", \"node.key\"]]\n"));
    pull(&store, &name, None).await.map_err(|e| chain(&e)).unwrap();
    write(&format!("{url}skip_verify = true\nclient = [[\"node.cert\", \"node.key\"]]\n"));
    pull(&store, &name, None).await.map_err(|e| chain(&e)).unwrap();
    site.issue().write(&directory.join("node.cert"), &directory.join("node.key"));
    write(&format!("{url}ca = \"site.crt\"\nclient = [[\"node.cert\", \"node.key\"]]\n"));
    let error = pull(&store, &name, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "a rotated certificate is noticed: {}", chain(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_for_loopback_and_by_configuration_only() {
    let (temp, server) = (Temp::new("plain"), Faulty::start());
    server.image("a", &tar());
    let store = store(&temp.0, None);
    let port = server.address.rsplit(':').next().unwrap();
    pull(&store, &format!("localhost:{port}/a:t"), None).await.map_err(|e| chain(&e)).unwrap();
    // A name that is this machine's, but not loopback's, is asked with TLS.
    let error = pull(&store, &format!("0.0.0.0:{port}/a:t"), None).await.unwrap_err();
    assert!(chain(&error).contains("https://0.0.0.0"), "{}", chain(&error));
    let directory = temp.0.join("certs.d").join(format!("0.0.0.0:{port}"));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("hosts.toml"), format!("server = \"http://0.0.0.0:{port}\"")).unwrap();
    pull(&store, &format!("0.0.0.0:{port}/a:t"), None).await.map_err(|e| chain(&e)).unwrap();
}
