//! `<state_dir>/network.json`: the pod CIDRs the kubelet gave.
//!
//! The kubelet sends them once and does not repeat itself when the runtime restarts (kubernetes #35531), so they are
//! kept. Written whole to a temporary file, synced and renamed; carries a version and the digest of its contents.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::Error;

const VERSION: u32 = 1;
/// Far more than any list of CIDRs takes.
const MAX_BYTES: u64 = 64 << 10;

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    pod_cidrs: Vec<String>,
    /// SHA-256 of the CIDRs joined by commas, in hex.
    checksum: String,
}

/// The kept CIDRs; `None`: none were ever given.
pub(crate) fn load(state_dir: &Path) -> Result<Option<Vec<String>>, Error> {
    let path = file(state_dir);
    match fs::metadata(&path) {
        Ok(meta) if meta.len() > MAX_BYTES => {
            return Err(Error::Format { path, why: "it is too large".into() });
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::file("read", path)(e)),
    }
    let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
    let document: Document = serde_json::from_slice(&bytes)
        .map_err(|e| Error::Format { path: path.clone(), why: e.to_string() })?;
    if document.version != VERSION {
        return Err(Error::Format { path, why: format!("version {}", document.version) });
    }
    if document.checksum != checksum(&document.pod_cidrs) {
        return Err(Error::Format { path, why: "the checksum differs".into() });
    }
    Ok(Some(document.pod_cidrs))
}

/// Keeps the CIDRs, durably.
pub(crate) fn store(state_dir: &Path, cidrs: &[String]) -> Result<(), Error> {
    let path = file(state_dir);
    let document = Document { version: VERSION, pod_cidrs: cidrs.to_vec(), checksum: checksum(cidrs) };
    let bytes = serde_json::to_vec_pretty(&document)
        .map_err(|e| Error::Format { path: path.clone(), why: e.to_string() })?;
    replace(&path, &bytes).map_err(Error::file("write", path))
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("json.new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("network.json")
}

fn checksum(cidrs: &[String]) -> String {
    Sha256::digest(cidrs.join(",").as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidrs_survive_and_damage_is_named() {
        let dir = crate::testing::TempDir::new("state");
        assert_eq!(load(dir.path()).unwrap(), None);
        let cidrs = vec!["10.1.0.0/24".to_owned(), "fd00::/64".to_owned()];
        store(dir.path(), &cidrs).unwrap();
        assert_eq!(load(dir.path()).unwrap(), Some(cidrs));

        let text = fs::read_to_string(file(dir.path())).unwrap();
        fs::write(file(dir.path()), text.replace("10.1.", "10.2.")).unwrap();
        assert!(load(dir.path()).unwrap_err().to_string().contains("network.json"));
        fs::write(file(dir.path()), "{").unwrap();
        assert!(load(dir.path()).is_err());
    }
}
