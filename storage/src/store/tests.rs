//! What the store does when its driver fails, with disks that fill up and break on order.

use std::io::ErrorKind::{self, StorageFull};
use std::sync::Arc;

use super::*;
use crate::snapshot::failing::{Failing, Step};
use crate::support::{faulty, tar};
use crate::{ErrorKind as Class, Kernel, PullError, PullProgress, RootfsOptions};

/// A store whose driver fails on order, and a registry with one image.
struct Bench {
    store: Arc<Store>,
    driver: Arc<Failing<dyn Driver>>,
    server: faulty::Faulty,
    root: PathBuf,
}

impl Bench {
    fn new(name: &str) -> Self {
        let root = PathBuf::from(format!("/tmp/storage-store-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        let kernel = Kernel::default();
        let config = Config {
            root: root.clone(),
            driver: None,
            registry_config: Vec::new(),
            pull_memory: 64 << 20,
            keep_blobs: false,
            label: None,
            policy: Vec::new(),
            verifiers: None,
            kernel,
        };
        let driver = Arc::new(Failing::new(snapshot::overlay_for_tests()));
        let ours = driver.clone();
        let store = Store::open_driver(config, Timing::default(), |_| Ok(ours)).unwrap();
        let server = faulty::Faulty::start();
        server.image("a", &tar::Tar::new().dir("d/", 0o755).file("d/f", &[7; 100_000]).finish());
        Self { store, driver, server, root }
    }

    fn pull(&self) -> Result<Arc<Image>, PullError> {
        let name = format!("{}/a:t", self.server.address);
        let progress = tokio::sync::watch::channel(PullProgress::default()).0;
        tokio::runtime::Runtime::new().unwrap().block_on(self.store.pull(&name, None, progress))
    }

    /// Names in a directory of the store.
    fn names(&self, directory: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.join(directory)).unwrap().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

#[test]
fn a_driver_that_cannot_build_leaves_no_image_and_the_next_pull_needs_no_layer_again() {
    let bench = Bench::new("build");
    for (kind, class) in [(StorageFull, Class::ResourceExhausted), (ErrorKind::Other, Class::Internal)] {
        bench.driver.order(Step::Build, kind);
        let error = bench.pull().unwrap_err();
        assert_eq!(error.kind(), class);
        assert!(error.to_string().contains("/a:t"), "{error}");
        assert!(bench.store.images().is_empty());
        assert_eq!((bench.names("images").len(), bench.names("staging")), (0, vec!["partial".to_owned()]));
    }
    let before = bench.store.usage();
    assert_eq!(before, Usage::default());
    bench.pull().unwrap();
}

#[test]
fn a_container_that_cannot_be_made_leaves_nothing_and_pins_nothing() {
    let bench = Bench::new("prepare");
    let image = bench.pull().unwrap();
    for step in [Step::View, Step::Prepare] {
        bench.driver.order(step, StorageFull);
        let error = bench.store.prepare(&image.id, "c").unwrap_err();
        assert_eq!(error.kind(), Class::ResourceExhausted, "{step:?}");
        assert!(bench.names("containers").is_empty(), "{step:?}");
        assert!(matches!(
            bench.store.mount("c", &RootfsOptions::default()),
            Err(SnapshotError::NoContainer(_))
        ));
    }
    bench.store.remove(&image.id).unwrap();
    assert!(bench.names("images").is_empty() && bench.names("layers/sha256").is_empty());
}

#[test]
fn a_mount_that_fails_can_be_tried_again() {
    let bench = Bench::new("mount");
    let image = bench.pull().unwrap();
    bench.store.prepare(&image.id, "c").unwrap();
    bench.driver.order(Step::Mount, ErrorKind::Other);
    bench.store.mount("c", &RootfsOptions::default()).unwrap_err();
    bench.driver.order(Step::MountView, ErrorKind::Other);
    bench.store.mount_image(&image.id, "", None).unwrap_err();
    drop(bench.store.mount("c", &RootfsOptions::default()).unwrap());
    drop(bench.store.mount_image(&image.id, "d", None).unwrap());
    bench.store.release("c").unwrap();
    bench.store.remove(&image.id).unwrap();
}
