//! Verifiers: every executable in a directory is asked about an image, and all must agree (containerd, docs/image-verification.md).
//!
//! Each gets `-name NAME -digest DIGEST -stdin-media-type TYPE`, the manifest's descriptor on standard input, and ten seconds. Exit code 0 lets
//! the image in; the first bytes of standard output say why.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::PolicyError;
use crate::error::FileError;
use crate::manifest::Descriptor;

/// Time for one verifier.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most verifiers; more are refused rather than left out.
const VERIFIERS_MAX: usize = 10;
/// Bytes read of what a verifier says.
const SAID_MAX: u64 = 4 << 10;

/// Asks every verifier in `directory`, one after the other.
pub(crate) async fn verify(directory: &Path, name: &str, manifest: &Descriptor) -> Result<(), PolicyError> {
    let verifiers = list(directory)?;
    if verifiers.len() > VERIFIERS_MAX {
        let problem = format!("it holds {} verifiers, the limit is {VERIFIERS_MAX}", verifiers.len());
        return Err(PolicyError::Policy { path: directory.to_owned(), problem });
    }
    for path in verifiers {
        let refuse = |said: String| PolicyError::Verifier { path: path.clone(), said };
        match tokio::time::timeout(PATIENCE, ask(&path, name, manifest)).await {
            Err(_) => return Err(refuse(format!("no answer in {} seconds", PATIENCE.as_secs()))),
            Ok(Err(error)) => return Err(refuse(error.to_string())),
            Ok(Ok((true, said))) => {
                tracing::debug!(verifier = %path.display(), image = name, said, "image verified");
            }
            Ok(Ok((false, said))) => return Err(refuse(said)),
        }
    }
    Ok(())
}

/// Files that may be executed, by name. A directory that is not there is a mistake: silence would let everything in.
fn list(directory: &Path) -> Result<Vec<PathBuf>, PolicyError> {
    use std::os::unix::fs::PermissionsExt;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(FileError::at("list", directory))? {
        let path = entry.map_err(FileError::at("list", directory))?.path();
        let metadata = std::fs::metadata(&path).map_err(FileError::at("stat", &path))?;
        if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

async fn ask(path: &Path, name: &str, manifest: &Descriptor) -> std::io::Result<(bool, String)> {
    let mut child = Command::new(path)
        .args(["-name", name, "-digest", manifest.digest.as_str()])
        .args(["-stdin-media-type", "application/vnd.oci.descriptor.v1+json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A verifier that does not read what it is told may still know the answer.
        let _ = stdin.write_all(&serde_json::to_vec(manifest)?).await;
    }
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(SAID_MAX).read_to_end(&mut said).await?;
    }
    let status = child.wait().await?;
    let said: String =
        String::from_utf8_lossy(&said).trim().chars().filter(|c| !c.is_control()).take(300).collect();
    Ok((status.success(), if said.is_empty() { status.to_string() } else { said }))
}
