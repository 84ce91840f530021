//! What may be pulled, and artifacts: signatures by key, verifiers, and volumes made of blobs.
#![allow(missing_docs, reason = "a test binary")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rustix::fs::{Mode, OFlags, openat};
use storage::{Config, Digest, ErrorKind, Store};
use support::faulty::Faulty;
use support::tar::Tar;
use support::{Temp, chain, config, pull};

/// A signer and its public key as a file.
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new(public: &Path) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        support::tls::pem(public, "PUBLIC KEY", rcgen::PublicKeyData::subject_public_key_info(&key).as_ref());
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.serialize_der(), &random);
        Self(pair.unwrap())
    }

    /// Puts a signature of `digest`, for an image called `name`, beside the image `repository`.
    fn sign(&self, server: &Faulty, repository: &str, digest: &Digest, name: &str) {
        let payload = serde_json::to_vec(&serde_json::json!({"critical": {"type": "cosign container image signature",
            "identity": {"docker-reference": name}, "image": {"docker-manifest-digest": digest}}, "optional": null}))
        .unwrap();
        let signature = self.0.sign(&SystemRandom::new(), &payload).unwrap();
        let signature = base64::engine::general_purpose::STANDARD.encode(signature);
        let manifest = serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "mediaType": storage::manifest::OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(b"{}"), "size": 2},
            "layers": [{"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": Digest::of(&payload),
                "size": payload.len(), "annotations": {"dev.cosignproject.cosign/signature": signature}}]}))
        .unwrap();
        server.content(&format!("/v2/{repository}/blobs/{}", Digest::of(&payload)), "x", &payload);
        let tag = format!("/v2/{repository}/manifests/sha256-{}.sig", digest.hex());
        server.content(&tag, storage::manifest::OCI_MANIFEST, &manifest);
    }
}

fn image(server: &Faulty, name: &str) -> Digest {
    server.image(name, &Tar::new().file("a", name.as_bytes()).finish());
    let manifest = server.requests_content(&format!("/v2/{name}/manifests/t"));
    Digest::of(&manifest)
}

fn open(temp: &Temp, policy: &serde_json::Value, verifiers: Option<&Path>) -> Arc<Store> {
    let path = temp.0.join("policy.json");
    std::fs::write(&path, policy.to_string()).unwrap();
    let config = config(&temp.0, None);
    let verifiers = verifiers.map(Path::to_owned);
    Store::open(Config { policy: vec![temp.0.join("absent.json"), path], verifiers, ..config }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_a_trusted_key_has_signed_for_this_name_comes_in() {
    let (temp, server) = (Temp::new("signed"), Faulty::start());
    let (signer, stranger) = (Signer::new(&temp.0.join("key.pub")), Signer::new(&temp.0.join("other.pub")));
    let policy = serde_json::json!({"default": [{"type": "reject"}], "transports": {"docker": {
        server.address.clone(): [{"type": "sigstoreSigned", "keyPath": temp.0.join("key.pub")}]}}});
    let store = open(&temp, &policy, None);
    let name = |image: &str| format!("{}/{image}:t", server.address);
    for (image_name, hint) in [
        ("none", "it has none"),
        ("stranger", "none of the keys"),
        ("renamed", "called \"other.example/x:t\""),
        ("swapped", "is for sha256:"),
    ] {
        let digest = image(&server, image_name);
        match image_name {
            "stranger" => stranger.sign(&server, image_name, &digest, &name(image_name)),
            "renamed" => signer.sign(&server, image_name, &digest, "other.example/x:t"),
            "swapped" => {
                // A good signature of another image, moved here.
                signer.sign(&server, "elsewhere", &Digest::of(b"x"), &name(image_name));
                let other = format!("/v2/elsewhere/manifests/sha256-{}.sig", Digest::of(b"x").hex());
                let manifest = server.requests_content(&other);
                let tag = format!("/v2/{image_name}/manifests/sha256-{}.sig", digest.hex());
                server.content(&tag, storage::manifest::OCI_MANIFEST, &manifest);
                let blobs = server.paths_of("/v2/elsewhere/blobs/");
                for path in blobs {
                    let bytes = server.requests_content(&path);
                    server.content(&path.replace("elsewhere", image_name), "x", &bytes);
                }
            }
            _ => {}
        }
        let error = pull(&store, &name(image_name)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", chain(&error));
        assert!(
            chain(&error).contains(hint) && chain(&error).contains("policy.json"),
            "{hint}: {}",
            chain(&error)
        );
    }
    assert!(store.images().is_empty());
    let digest = image(&server, "good");
    signer.sign(&server, "good", &digest, &name("good"));
    pull(&store, &name("good")).await.map_err(|e| chain(&e)).unwrap();
    // The rule is for every pull, also of what is here: a signature that is gone counts.
    server.content(&format!("/v2/good/manifests/sha256-{}.sig", digest.hex()), "x", b"{}");
    let error = pull(&store, &name("good")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", chain(&error));
    let error = pull(&store, "127.0.0.1:1/rejected:t").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "without asking anybody: {}", chain(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_verifier_must_agree_and_is_told_what_it_judges() {
    let (temp, server) = (Temp::new("verifiers"), Faulty::start());
    let digest = image(&server, "a");
    let directory = temp.0.join("verifiers");
    std::fs::create_dir(&directory).unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let seen = temp.0.join("seen");
    write("10-log", &format!("echo \"$@\" > {0}; cat >> {0}", seen.display()));
    std::fs::write(directory.join("README"), "not executable").unwrap();
    let accept = serde_json::json!({"default": [{"type": "insecureAcceptAnything"}]});
    let store = open(&temp, &accept, Some(&directory));
    let name = format!("{}/a:t", server.address);
    pull(&store, &name).await.map_err(|e| chain(&e)).unwrap();
    let text = std::fs::read_to_string(&seen).unwrap();
    let line =
        format!("-name {name} -digest {digest} -stdin-media-type application/vnd.oci.descriptor.v1+json");
    assert!(text.starts_with(&line) && text.contains(&format!("\"digest\":\"{digest}\"")), "{text}");
    write("20-no", "echo this one smells; exit 1");
    let error = pull(&store, &name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(
        chain(&error).contains("20-no") && chain(&error).contains("this one smells"),
        "{}",
        chain(&error)
    );
    std::fs::remove_dir_all(&directory).unwrap();
    assert!(pull(&store, &name).await.is_err(), "a directory that is gone lets nothing in");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_is_a_read_only_volume_of_its_blobs() {
    let (temp, server) = (Temp::new("artifact"), Faulty::start());
    let blobs: [(&[u8], Option<&str>); 3] =
        [(b"weights", Some("model/weights.bin")), (b"words", Some("vocabulary")), (b"nameless", None)];
    let artifact = |repository: &str, titles: &[Option<&str>]| {
        let layers: Vec<_> = blobs
            .iter()
            .zip(titles)
            .map(|((bytes, _), title)| {
                server.content(&format!("/v2/{repository}/blobs/{}", Digest::of(bytes)), "x", bytes);
                let annotations = title.map(|title| serde_json::json!({"org.opencontainers.image.title": title}));
                serde_json::json!({"mediaType": "application/x.model", "digest": Digest::of(bytes), "size": bytes.len(), "annotations": annotations})
            })
            .collect();
        let manifest = serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "mediaType": storage::manifest::OCI_MANIFEST,
            "artifactType": "application/x.model",
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}"), "size": 2}, "layers": layers}))
        .unwrap();
        server.content(&format!("/v2/{repository}/manifests/t"), storage::manifest::OCI_MANIFEST, &manifest);
        Digest::of(&manifest)
    };
    let digest = artifact("m", &blobs.map(|(_, title)| title));
    let store = support::store(&temp.0, None);
    let name = format!("{}/m:t", server.address);
    let image = pull(&store, &name).await.map_err(|e| chain(&e)).unwrap();
    assert_eq!((image.id.clone(), image.repo_tags.clone()), (digest.to_string(), vec![name.clone()]));
    let read = |sub_path: &str, file: &str| {
        let volume = store.mount_image(&image.id, sub_path, None).unwrap();
        let fd = match file {
            "" => volume,
            file => openat(&volume, file, OFlags::RDONLY, Mode::empty()).unwrap(),
        };
        let mut text = String::new();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        std::fs::File::open(path).unwrap().read_to_string(&mut text).unwrap();
        text
    };
    assert_eq!(read("", "vocabulary"), "words");
    assert_eq!(read("model", "weights.bin"), "weights");
    assert_eq!(read("model/weights.bin", ""), "weights", "a single file can be a volume");
    assert_eq!(read("", &format!("sha256-{}", Digest::of(b"nameless").hex())), "nameless");
    assert!(store.mount_image(&image.id, "../../../etc/passwd", None).is_err(), "nothing outside is reached");
    let volume = store.mount_image(&image.id, "", None).unwrap();
    assert!(openat(&volume, "new", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).is_err(), "always read-only");
    drop(volume);
    let before = server.requests().len();
    pull(&store, &name).await.map_err(|e| chain(&e)).unwrap();
    assert_eq!(server.requests().len() - before, 1, "a re-pull asks and moves nothing");
    assert!(store.scrub().is_empty());
    let error = store
        .save(std::slice::from_ref(&name), storage::archive::Format::Oci, None, std::io::sink())
        .await
        .unwrap_err();
    assert!(chain(&error).contains("artifact"), "{}", chain(&error));
    for bad in ["../up", "/abs", ".wh.x", "a//b"] {
        artifact("bad", &[Some(bad)]);
        let error = pull(&store, &format!("{}/bad:t", server.address)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{bad}: {}", chain(&error));
    }
    drop(store);
    let store = support::store(&temp.0, None);
    assert_eq!(store.find(&name).unwrap().id, digest.to_string(), "a restart finds it again");
    store.remove(&name).unwrap();
    assert_eq!(std::fs::read_dir(store.root().join("layers/sha256")).unwrap().count(), 0);
}
