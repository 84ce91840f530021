//! CollectImages: an administrator's `berth gc`.

use std::sync::Arc;

use storage::Collected;

use crate::engine::blocking;
use crate::image::{self, local};
use crate::job::{Cx, Job};
use crate::{Engine, Error};

/// Removes images nobody needs, and what broken pulls have left.
#[derive(Clone, Copy, Debug)]
pub struct CollectImages {
    /// All images that no container uses; otherwise only those without a name.
    pub all: bool,
}

impl Job for CollectImages {
    const NAME: &'static str = "CollectImages";
    type Output = Collected;

    fn subject(&self) -> String {
        if self.all { "unused images".into() } else { "nameless images".into() }
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<Collected, Error> {
        let store = local(&engine)?;
        let collect = move || store.collect(self.all).map_err(|e| Error::of(image::kind(e.kind()), &e));
        cx.step("collect", blocking(collect)).await
    }
}
