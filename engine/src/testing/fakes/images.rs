//! An image store that can pull anything.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use storage::{Credentials, Image, ImageConfig, PullProgress, RootfsOptions, Usage};
use tokio::sync::watch;

use super::World;
use crate::image::Driver;
use crate::{Error, Kind};

/// An image every [`FakeImages`] has from the start.
pub const IMAGE: &str = "example.org/app:1";

/// Images of one layer that holds /etc/passwd and /etc/group.
#[derive(Debug)]
pub struct FakeImages {
    world: Arc<World>,
    root: PathBuf,
}

impl FakeImages {
    /// A store with its files below `root`.
    pub fn new(world: Arc<World>, root: &Path) -> std::io::Result<Arc<Self>> {
        let etc = root.join("rootfs/etc");
        std::fs::create_dir_all(&etc)?;
        std::fs::write(
            etc.join("passwd"),
            "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
        )?;
        std::fs::write(etc.join("group"), "root:x:0:\napp:x:1000:\nwheel:x:10:app\n")?;
        world.things().images.entry(IMAGE.to_owned()).or_insert_with(|| Arc::new(image(IMAGE)));
        Ok(Arc::new(Self { world, root: root.to_owned() }))
    }

    fn rootfs(&self) -> Result<OwnedFd, Error> {
        let file = std::fs::File::open(self.root.join("rootfs"));
        Ok(file.map_err(|e| Error::with(Kind::Internal, "rootfs", e))?.into())
    }
}

fn image(name: &str) -> Image {
    let hash: String = name.bytes().cycle().take(32).map(|byte| format!("{byte:02x}")).collect();
    Image {
        id: format!("sha256:{hash}"),
        repo_tags: vec![name.to_owned()],
        repo_digests: vec![format!("{name}@sha256:{hash}")],
        size: 1,
        config: ImageConfig {
            user: String::new(),
            env: vec!["PATH=/bin".into()],
            entrypoint: vec!["/entry".into()],
            cmd: vec!["serve".into()],
            working_dir: "/srv".into(),
            ..ImageConfig::default()
        },
        pinned: false,
        annotations: Default::default(),
        pulled_at: SystemTime::UNIX_EPOCH,
    }
}

impl Driver for FakeImages {
    fn pull(
        self: Arc<Self>,
        name: String,
        _: Option<Credentials>,
        _: watch::Sender<PullProgress>,
    ) -> BoxFuture<'static, Result<Arc<Image>, Error>> {
        async move {
            Ok(self
                .world
                .things()
                .images
                .entry(name.clone())
                .or_insert_with(|| Arc::new(image(&name)))
                .clone())
        }
        .boxed()
    }

    fn images(&self) -> Vec<Arc<Image>> {
        self.world.things().images.values().cloned().collect()
    }

    fn find(&self, name: &str) -> Option<Arc<Image>> {
        self.images()
            .into_iter()
            .find(|image| image.repo_tags.iter().any(|tag| tag == name) || image.id == name)
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let Some(image) = self.find(name) else { return Ok(()) };
        let mut things = self.world.things();
        if things.layers.values().any(|id| *id == image.id) {
            return Err(Error::new(Kind::FailedPrecondition, "in use"));
        }
        things.images.retain(|_, other| other.id != image.id);
        Ok(())
    }

    fn usage(&self) -> Usage {
        Usage::default()
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn driver_name(&self) -> &'static str {
        "fake"
    }

    fn prepare(&self, image_id: &str, container: &str) -> Result<(), Error> {
        self.world.things().layers.insert(container.to_owned(), image_id.to_owned());
        Ok(())
    }

    fn mount(&self, container: &str, _: &RootfsOptions<'_>) -> Result<OwnedFd, Error> {
        let prepared = self.world.things().layers.contains_key(container);
        if prepared { self.rootfs() } else { Err(Error::not_found("layer of", container)) }
    }

    fn release(&self, container: &str) -> Result<(), Error> {
        self.world.things().layers.remove(container);
        Ok(())
    }

    fn retain(&self, live: &dyn Fn(&str) -> bool) -> Vec<String> {
        let mut things = self.world.things();
        let swept = things.layers.keys().filter(|id| !live(id)).cloned().collect::<Vec<_>>();
        things.layers.retain(|id, _| live(id));
        swept
    }

    fn container_usage(&self, container: &str) -> Option<Usage> {
        self.world.things().layers.contains_key(container).then(Usage::default)
    }

    fn mount_image(
        &self,
        _: &str,
        sub_path: &str,
        _: Option<&crate::selinux::Context>,
    ) -> Result<OwnedFd, Error> {
        if sub_path.is_empty() { self.rootfs() } else { Err(Error::not_found("path", sub_path)) }
    }
}
