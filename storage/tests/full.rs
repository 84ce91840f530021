//! Disks that fill up, at every point of a pull: nothing is left, and what was used is free again.
#![allow(missing_docs, reason = "a test binary")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::path::Path;
use std::time::Duration;

use storage::{Digest, ErrorKind};
use support::faulty::Faulty;
use support::tar::Tar;
use support::{Temp, chain, have, pull, run, store};

/// A tmpfs of a size, unmounted with its owner.
struct Small(Temp);

impl Small {
    fn new(size: u64) -> Self {
        let temp = Temp::new("full");
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "full", temp.0.to_str().unwrap()]);
        Self(temp)
    }

    fn resize(&self, size: u64) {
        run("mount", &["-o", &format!("remount,size={size}"), self.0.0.to_str().unwrap()]);
    }

    fn used(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0.0).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run("umount", &["-l", self.0.0.to_str().unwrap()]);
    }
}

/// Two layers that grow from next to nothing, the upper one with many names.
fn image(server: &Faulty) {
    let many = (0..2000).fold(Tar::new().dir("d/", 0o755), |tar, n| tar.file(&format!("d/{n:060}"), b""));
    let tars = [Tar::new().file("zeros", &vec![0; 24 << 20]).finish(), many.finish()];
    let blobs = tars.each_ref().map(|tar| zstd::encode_all(tar.as_slice(), 1).unwrap());
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": tars.each_ref().map(|tar| Digest::of(tar))}});
    let config = serde_json::to_vec(&config).unwrap();
    let packed = "application/vnd.oci.image.layer.v1.tar+zstd";
    let layers = blobs
        .each_ref()
        .map(|blob| serde_json::json!({"mediaType": packed, "digest": Digest::of(blob), "size": blob.len()}));
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": storage::manifest::OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config), "size": config.len()},
        "layers": layers});
    for blob in blobs.iter().chain([&config]) {
        server.content(&format!("/v2/a/blobs/{}", Digest::of(blob)), "application/octet-stream", blob);
    }
    let manifest = serde_json::to_vec(&manifest).unwrap();
    server.content("/v2/a/manifests/t", storage::manifest::OCI_MANIFEST, &manifest);
}

fn count(path: &Path) -> usize {
    std::fs::read_dir(path).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_at_any_point_ends_the_pull_cleanly_and_is_free_again() {
    if !have("disks that fill up", &["mount", "umount"]) {
        return;
    }
    let server = Faulty::start();
    image(&server);
    let name = format!("{}/a:t", server.address);
    let (mut refused, mut pulled) = (0, 0);
    // The first look refuses the smallest; then writes fail, each time at another point; the largest are large enough.
    for size in [14_u64, 18, 21, 24, 27, 60].map(|mib| (mib << 20) + 100 * 4096) {
        let disk = Small::new(size);
        let store = store(&disk.0.0, None);
        let before = disk.used();
        match pull(&store, &name).await {
            Ok(_) => {
                pulled += 1;
                continue;
            }
            Err(error) => {
                refused += 1;
                assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{size}: {}", chain(&error));
                assert!(chain(&error).contains(&name), "{}", chain(&error));
            }
        }
        assert!(store.images().is_empty());
        // A layer that is whole is kept for the next try, until the store is opened again.
        assert_eq!(count(&store.root().join("images")), 0, "{size}");
        // The other layer's threads end in their own time.
        let settled = async {
            while count(&store.root().join("staging")) > 1 {
                tokio::task::yield_now().await;
            }
        };
        let settled = tokio::time::timeout(Duration::from_secs(20), settled).await;
        settled.unwrap_or_else(|_| panic!("{size}: more than `partial` is left"));
        let root = store.root().to_owned();
        drop(store);
        let store = support::store(&disk.0.0, None);
        assert_eq!(count(&root.join("layers/sha256")), 0);
        while count(&root.join("trash")) > 0 {
            tokio::task::yield_now().await;
        }
        assert!(disk.used() <= before + (1 << 20), "{size}: {} of {before} bytes", disk.used());
        if refused == 3 {
            disk.resize(128 << 20);
            pull(&store, &name).await.map_err(|e| chain(&e)).unwrap();
        }
    }
    assert!(refused > 3 && pulled > 0, "{refused} refused, {pulled} pulled");
}
