//! LoadImages: an administrator's `berth load`.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes};
use storage::archive::Loaded;
use tokio::sync::mpsc;

use crate::engine::blocking;
use crate::image::{self, local};
use crate::job::{Cx, Job};
use crate::{Engine, Error, Kind};

/// Takes in the images of an archive that comes through a channel.
#[derive(Debug)]
pub struct LoadImages {
    /// Name of images that the archive knows only a tag of.
    pub base: Option<String>,
    /// The archive's pieces; an error ends it.
    pub archive: mpsc::Receiver<io::Result<Bytes>>,
}

/// A channel as a file; blocks when the writer is slow.
struct In {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Job for LoadImages {
    const NAME: &'static str = "LoadImages";
    type Output = Vec<Loaded>;

    fn subject(&self) -> String {
        self.base.clone().unwrap_or_else(|| "archive".into())
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<Vec<Loaded>, Error> {
        let store = local(&engine)?;
        let failed = |e: storage::archive::ArchiveError| Error::of(image::kind(e.kind()), &e);
        // The reader is let go on the thread that ran it to its end.
        let archive = Mutex::new(Some(In { pieces: self.archive, piece: Bytes::new() }));
        let reading = store.clone();
        let unpacked = cx
            .step(
                "unpack",
                blocking(move || {
                    let archive = archive.lock().unwrap_or_else(PoisonError::into_inner).take();
                    let archive =
                        archive.ok_or_else(|| Error::new(Kind::Internal, "the archive was read twice"))?;
                    reading.unpack(archive).map_err(failed)
                }),
            )
            .await?;
        let base = self.base;
        cx.step("load", blocking(move || store.load(&unpacked, base.as_deref()).map_err(failed))).await
    }
}

impl Read for In {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.piece = piece?,
            }
        }
        let n = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}
