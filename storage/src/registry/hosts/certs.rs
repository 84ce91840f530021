//! Certificates by file name, as Docker and CRI-O have them: `<host>/*.crt` are roots, `*.cert` and `*.key` of one name a client pair
//! (docker-certs.d, containers-certs.d(5)).

use std::path::{Path, PathBuf};

use super::super::RegistryError;
use super::{ClientPair, Endpoint};

/// Adds what a directory holds; `false`: it holds nothing, or is not there.
pub(super) fn apply(endpoint: &mut Endpoint, directory: &Path) -> Result<bool, RegistryError> {
    let wrong = |error: std::io::Error| RegistryError::config(directory, error.to_string());
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            return Ok(false);
        }
        Err(error) => return Err(wrong(error)),
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in entries {
        files.push(entry.map_err(wrong)?.path());
    }
    files.sort();
    let with = |extension: &str| {
        files
            .iter()
            .filter(|file| file.extension().is_some_and(|e| e == extension))
            .cloned()
            .collect::<Vec<_>>()
    };
    let (roots, certificates, keys) = (with("crt"), with("cert"), with("key"));
    for certificate in &certificates {
        let key = certificate.with_extension("key");
        if !keys.contains(&key) {
            let problem = format!("its key {} is missing", key.display());
            return Err(RegistryError::config(certificate, problem));
        }
        endpoint.client.push(ClientPair { certificate: certificate.clone(), key: Some(key) });
    }
    if let Some(key) = keys.iter().find(|key| !certificates.contains(&key.with_extension("cert"))) {
        let problem =
            "its certificate is missing: a client pair is NAME.cert and NAME.key, a root is NAME.crt";
        return Err(RegistryError::config(key, problem.into()));
    }
    endpoint.ca.extend(roots.iter().cloned());
    Ok(!roots.is_empty() || !certificates.is_empty())
}
