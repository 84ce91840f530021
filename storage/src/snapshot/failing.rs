//! A driver that fails on order: what the store does then is a promise too.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Mutex;

use crate::error::{FileError, SnapshotError};
use crate::snapshot::{Driver, ImageLayers, View};
use crate::{RootfsOptions, Usage};

/// What may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Build,
    View,
    Prepare,
    Mount,
    MountView,
}

/// `D`, whose next call of an ordered step does all its work and fails then, so that there is something to clean up.
#[derive(Debug)]
pub(crate) struct Failing<D: ?Sized> {
    orders: Mutex<Vec<(Step, io::ErrorKind)>>,
    inner: Box<D>,
}

impl<D: Driver + ?Sized> Failing<D> {
    pub(crate) fn new(inner: Box<D>) -> Self {
        Self { orders: Mutex::default(), inner }
    }

    /// The next call of `step` fails.
    pub(crate) fn order(&self, step: Step, kind: io::ErrorKind) {
        self.orders.lock().unwrap().push((step, kind));
    }

    fn then<T>(&self, step: Step, done: Result<T, SnapshotError>) -> Result<T, SnapshotError> {
        let mut orders = self.orders.lock().unwrap();
        let Some(at) = orders.iter().position(|(ordered, _)| *ordered == step) else { return done };
        let (_, kind) = orders.remove(at);
        Err(FileError { what: "write", path: "ordered/to/fail".into(), source: kind.into() }.into())
    }
}

impl<D: Driver + ?Sized> Driver for Failing<D> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn build(&self, image: &ImageLayers, directory: &Path) -> Result<Usage, SnapshotError> {
        self.then(Step::Build, self.inner.build(image, directory))
    }
    fn view(&self, image: &ImageLayers, directory: &Path) -> Result<View, SnapshotError> {
        self.then(Step::View, self.inner.view(image, directory))
    }
    fn prepare(&self, view: &View, container: &Path) -> Result<(), SnapshotError> {
        self.then(Step::Prepare, self.inner.prepare(view, container))
    }
    fn mount(
        &self,
        view: &View,
        container: &Path,
        options: &RootfsOptions<'_>,
    ) -> Result<OwnedFd, SnapshotError> {
        self.then(Step::Mount, self.inner.mount(view, container, options))
    }
    fn mount_view(&self, view: &View, label: Option<&str>) -> Result<OwnedFd, SnapshotError> {
        self.then(Step::MountView, self.inner.mount_view(view, label))
    }
    fn usage(&self, view: Option<&View>, container: &Path) -> Result<Usage, SnapshotError> {
        self.inner.usage(view, container)
    }
    fn discard(&self, directory: &Path) -> Result<(), SnapshotError> {
        self.inner.discard(directory)
    }
}
