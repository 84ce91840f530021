//! The same image unpacked by umoci and mounted by each driver: what the kernel shows must be the same.
#![allow(missing_docs, reason = "a test binary")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use support::tar::{Entry, Tar};
use support::{Layout, Pack, Registry, Temp, chain, have, pull, run, store};

/// Mode, owner, seconds, links, device, contents or target, of every path.
type Seen = BTreeMap<String, (u32, u32, u32, i64, u64, u64, Vec<u8>)>;

fn look(path: &Path, name: &str, seen: &mut Seen) {
    let m = std::fs::symlink_metadata(path).unwrap();
    let data = if m.is_file() {
        std::fs::read(path).unwrap()
    } else if m.is_symlink() {
        std::fs::read_link(path).unwrap().into_os_string().into_encoded_bytes()
    } else {
        Vec::new()
    };
    let links = if m.is_dir() { 0 } else { m.nlink() };
    seen.insert(name.to_owned(), (m.mode(), m.uid(), m.gid(), m.mtime(), links, m.rdev(), data));
    if m.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            look(&entry.path(), &format!("{name}/{}", entry.file_name().to_string_lossy()), seen);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_drivers_show_what_umoci_unpacks() {
    if !have("umoci comparison", &["umoci", "skopeo", "docker-registry"]) {
        return;
    }
    let special = |kind, name, device| Entry { kind, name, device, mode: 0o620, gid: 5, ..Entry::default() };
    let base = Tar::new()
        .dir("./", 0o755)
        .dir("bin/", 0o755)
        .entry(Entry { name: "bin/su", data: b"x", mode: 0o4755, uid: 1, gid: 2, ..Entry::default() })
        .hardlink("bin/sg", "bin/su")
        .symlink("sh", "bin/su")
        .dir("tmp/", 0o1777)
        .dir("gone/", 0o755)
        .file("gone/a", b"1")
        .dir("old/", 0o755)
        .file("old/a", b"1")
        .entry(special(b'3', "null", (1, 3)))
        .entry(special(b'6', "pipe", (0, 0)))
        .finish();
    let top = Tar::new()
        .file(".wh.gone", b"")
        .dir("old/", 0o700)
        .file("old/.wh..wh..opq", b"")
        .file("old/b", b"2")
        .file("sh", b"no longer a link")
        .finish();
    let (temp, registry) = (Temp::new("umoci"), Registry::start(""));
    let layout = Layout::new(&temp.0.join("layout")).layer(&base, Pack::Gzip).layer(&top, Pack::Gzip);
    layout.finish(&serde_json::json!({}));
    let bundle = temp.0.join("bundle");
    let image = format!("{}:t", layout.directory.display());
    run("umoci", &["unpack", "--image", &image, bundle.to_str().unwrap()]);
    let mut expected = Seen::new();
    look(&bundle.join("rootfs"), "", &mut expected);
    let name = format!("{}/u:t", registry.address);
    layout.push(&name);
    for driver in ["erofs", "overlay", "vfs"] {
        let temp = Temp::new(driver);
        let store = store(&temp.0, Some(driver));
        let image = pull(&store, &name).await.map_err(|e| chain(&e)).unwrap();
        let mount = store.mount_image(&image.id, "", None).unwrap();
        let mut found = Seen::new();
        look(Path::new(&format!("/proc/self/fd/{}/.", mount.as_raw_fd())), "", &mut found);
        assert_eq!(found, expected, "{driver}");
    }
}
