//! RemoveImage.

use std::sync::Arc;

use crate::engine::blocking;
use crate::job::{Cx, Job};
use crate::{Engine, Error};

/// Removes an image with all its names. Absent: fine. In use by a container: refused.
#[derive(Clone, Debug)]
pub struct RemoveImage {
    /// Tag, digest reference or id.
    pub image: String,
}

impl Job for RemoveImage {
    const NAME: &'static str = "RemoveImage";
    type Output = ();

    fn identity(&self, _: &Engine) -> Option<String> {
        Some(self.image.clone())
    }

    fn subject(&self) -> String {
        self.image.clone()
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<(), Error> {
        let images = engine.images.clone();
        cx.step("remove", blocking(move || images.remove(&self.image))).await
    }
}
