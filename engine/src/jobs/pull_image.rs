//! PullImage.

use std::sync::Arc;

use storage::{Credentials, Image, PullProgress};
use tokio::sync::watch;

use crate::job::{Cx, Job};
use crate::{Engine, Error, Kind};

/// Fetches an image. Callers with the same image and credentials share one pull; it goes on for a while without callers.
#[derive(Clone, Debug)]
pub struct PullImage {
    /// Reference as the client wrote it.
    pub image: String,
    /// Credentials of this call.
    pub credentials: Option<Credentials>,
}

impl Job for PullImage {
    const NAME: &'static str = "PullImage";
    type Output = Arc<Image>;

    /// Nobody gets an image by somebody else's credentials: calls with credentials join only their equals.
    fn identity(&self, _: &Engine) -> Option<String> {
        use sha2::{Digest, Sha256};
        let mut identity = self.image.clone();
        if let Some(c) = &self.credentials {
            let fields =
                [&c.username, &c.password, &c.auth, &c.identity_token, &c.registry_token, &c.server_address];
            let mut hash = Sha256::new();
            for field in fields {
                hash.update((field.len() as u64).to_le_bytes());
                hash.update(field);
            }
            identity.push_str(&format!(" {:x?}", hash.finalize()));
        }
        Some(identity)
    }

    fn subject(&self) -> String {
        self.image.clone()
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<Arc<Image>, Error> {
        if self.image.is_empty() {
            return Err(Error::new(Kind::InvalidArgument, "image.image: must not be empty"));
        }
        let progress = watch::Sender::new(PullProgress::default());
        cx.progress(progress.subscribe());
        let abandoned = engine.config().abandoned_pull;
        tokio::select! {
            image = cx.step("pull", engine.images.clone().pull(self.image, self.credentials, progress)) => image,
            error = cx.ended(Some(abandoned)) => Err(error),
        }
    }
}
