//! SaveImages: an administrator's `berth save`.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use storage::Credentials;
use storage::archive::Format;
use tokio::sync::mpsc;

use crate::image::{self, local};
use crate::job::{Cx, Job};
use crate::{Engine, Error};

/// Writes images as one archive into a channel.
#[derive(Clone, Debug)]
pub struct SaveImages {
    /// Tags, digest references or ids.
    pub images: Vec<String>,
    /// How.
    pub format: Format,
    /// For the registries they came from, if a layer has to be fetched once more.
    pub credentials: Option<Credentials>,
    /// Where the pieces go; a reader that goes away ends the job.
    pub out: mpsc::Sender<Bytes>,
}

/// A channel as a file; blocks when the reader is slow.
struct Out(mpsc::Sender<Bytes>);

impl Job for SaveImages {
    const NAME: &'static str = "SaveImages";
    type Output = ();

    fn subject(&self) -> String {
        self.images.join(" ")
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<(), Error> {
        let store = local(&engine)?;
        let Self { images, format, credentials, out } = self;
        let out = io::BufWriter::with_capacity(1 << 20, Out(out));
        cx.step("save", async move {
            let saved = store.save(&images, format, credentials, out).await;
            saved.map_err(|e| Error::of(image::kind(e.kind()), &e))
        })
        .await
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.0.blocking_send(Bytes::copy_from_slice(bytes)).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
