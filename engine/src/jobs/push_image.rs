//! PushImage: an administrator's `berth push`.

use std::sync::Arc;

use storage::{Credentials, PullProgress, Pushed};
use tokio::sync::watch;

use crate::image::{self, local};
use crate::job::{Cx, Job};
use crate::{Engine, Error};

/// Sends an image to a registry, every byte as it came.
#[derive(Clone, Debug)]
pub struct PushImage {
    /// Tag, digest reference or id of the image here.
    pub image: String,
    /// Its name there.
    pub target: String,
    /// For the registry it goes to.
    pub credentials: Option<Credentials>,
    /// For the registry it came from, if a layer has to be fetched once more.
    pub origin: Option<Credentials>,
}

impl Job for PushImage {
    const NAME: &'static str = "PushImage";
    type Output = Pushed;

    fn subject(&self) -> String {
        self.target.clone()
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<Pushed, Error> {
        let store = local(&engine)?;
        let progress = watch::Sender::new(PullProgress::default());
        cx.progress(progress.subscribe());
        let Self { image, target, credentials, origin } = self;
        let push = async move {
            let pushed = store.push(&image, &target, credentials, origin, progress).await;
            pushed.map_err(|e| Error::of(image::kind(e.kind()), &e))
        };
        tokio::select! {
            pushed = cx.step("push", push) => pushed,
            error = cx.ended(Some(std::time::Duration::ZERO)) => Err(error),
        }
    }
}
