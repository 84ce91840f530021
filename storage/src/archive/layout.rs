//! OCI layouts as directories, on the side of whoever asks for them: a tar stream becomes one, and one becomes a tar stream.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{ArchiveError, tar, unpack};
use crate::error::FileError;

/// Writes the files of a tar stream below a directory.
#[derive(Debug)]
pub struct Writer {
    root: PathBuf,
    splitter: unpack::Splitter,
}

// === impl Writer ===

impl Writer {
    /// Into `root`, which is made if it is not there.
    ///
    /// # Errors
    /// It cannot be made, or holds something that is no layout.
    pub fn create(root: &Path) -> Result<Self, ArchiveError> {
        std::fs::create_dir_all(root).map_err(FileError::at("create", root))?;
        let mut entries = std::fs::read_dir(root).map_err(FileError::at("list", root))?;
        if entries.next().is_some() && !root.join("oci-layout").exists() {
            return Err(ArchiveError::Write(io::Error::other(format!(
                "{} holds something that is no OCI layout",
                root.display()
            ))));
        }
        Ok(Self { root: root.to_owned(), splitter: unpack::Splitter::default() })
    }

    /// Takes the next bytes of the tar.
    ///
    /// # Errors
    /// They are no tar, or a file cannot be written.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        let root = self.root.clone();
        self.splitter.push(bytes, &mut |name, _| {
            let mut parts = name.split('/').filter(|part| !part.is_empty()).peekable();
            let mut path = root.clone();
            while let Some(part) = parts.next() {
                // A name that leads elsewhere was cleaned by the reader; what is left is checked once more.
                if part == ".." || part == "." {
                    return Err(ArchiveError::Read(format!("{name} is no name of a layout")));
                }
                path.push(part);
                if parts.peek().is_some() && !path.is_dir() {
                    std::fs::create_dir(&path).map_err(FileError::at("create", &path))?;
                }
            }
            // A blob that is there has the same content; the index is replaced.
            Ok((File::create(&path).map_err(FileError::at("create", &path))?, path))
        })
    }

    /// The stream is over; was it whole?
    ///
    /// # Errors
    /// It ended in the middle.
    pub fn finish(self) -> Result<(), ArchiveError> {
        self.splitter.finish().map(drop)
    }
}

/// Writes a layout as a tar.
///
/// # Errors
/// The directory cannot be read, or `out` fails.
pub fn read_directory(root: &Path, out: &mut dyn Write) -> io::Result<()> {
    let mut tar = tar::Writer::new(out);
    let mut names = Vec::new();
    for name in ["oci-layout", "index.json", "manifest.json"] {
        names.extend(root.join(name).is_file().then(|| name.to_owned()));
    }
    let blobs = root.join("blobs");
    for algorithm in ["sha256", "sha512"] {
        let entries = match std::fs::read_dir(blobs.join(algorithm)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            names.push(format!("blobs/{algorithm}/{}", entry?.file_name().to_string_lossy()));
        }
    }
    names.sort();
    for name in names {
        let file = File::open(root.join(&name))?;
        let size = file.metadata()?.len();
        tar.stream(&name, size, file)?;
    }
    tar.finish()
}
