//! TagImage: an administrator's `berth tag`.

use std::sync::Arc;

use crate::engine::blocking;
use crate::image::{self, local};
use crate::job::{Cx, Job};
use crate::{Engine, Error};

/// Gives an image another tag, which leaves whoever had it.
#[derive(Clone, Debug)]
pub struct TagImage {
    /// Tag, digest reference or id.
    pub image: String,
    /// The new tag.
    pub tag: String,
}

impl Job for TagImage {
    const NAME: &'static str = "TagImage";
    type Output = ();

    fn subject(&self) -> String {
        self.tag.clone()
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<(), Error> {
        let store = local(&engine)?;
        let tag = move || store.tag(&self.image, &self.tag).map_err(|e| Error::of(image::kind(e.kind()), &e));
        cx.step("tag", blocking(tag)).await
    }
}
