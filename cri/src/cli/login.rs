//! Credentials on a command line: `--creds USER:PASSWORD`, or `--authfile FILE` as `docker login` and `podman login` write it.

use std::path::Path;

use serde::Deserialize;
use storage::ImageRef;

use super::connect::Command;
use crate::proto::{AuthConfig, admin};

/// Largest file read, in bytes.
const LARGEST: u64 = 1 << 20;

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: std::collections::BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
}

/// What the options `creds` and `authfile` say about the registry of an image; `None`: nothing.
pub(super) fn of(
    command: &Command,
    creds: &str,
    authfile: &str,
    image: &str,
) -> Result<Option<admin::Login>, String> {
    if let Some(creds) = command.option(creds) {
        let (username, password) = creds.split_once(':').ok_or("--creds is USER:PASSWORD")?;
        return Ok(Some(admin::Login {
            username: username.into(),
            password: password.into(),
            ..Default::default()
        }));
    }
    let Some(path) = command.option(authfile) else { return Ok(None) };
    let text = read(Path::new(path)).map_err(|e| format!("{path}: {e}"))?;
    let file: File = serde_json::from_str(&text).map_err(|e| format!("{path}: {e}"))?;
    let host = image.parse::<ImageRef>().map_or_else(|_| image.to_owned(), |reference| reference.host);
    let entry = file.auths.into_iter().find(|(server, _)| host_of(server) == host).map(|(_, entry)| entry);
    Ok(entry.map(|entry| admin::Login {
        auth: entry.auth,
        identity_token: entry.identity_token,
        ..Default::default()
    }))
}

/// The same, as the CRI has it.
pub(super) fn auth_config(login: Option<admin::Login>) -> Option<AuthConfig> {
    login.map(|login| AuthConfig {
        username: login.username,
        password: login.password,
        auth: login.auth,
        identity_token: login.identity_token,
        ..Default::default()
    })
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(LARGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// Docker Hub's entry is an old URL.
fn host_of(server: &str) -> &str {
    let rest = server.split_once("://").map_or(server, |(_, rest)| rest);
    match rest.split('/').next().unwrap_or(rest) {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_of_the_images_registry_is_found() {
        let path = std::env::temp_dir().join(format!("authfile-{}", std::process::id()));
        let text = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "aHViOng="}, "r.example:5000": {"identitytoken": "tok"}}}"#;
        std::fs::write(&path, text).unwrap();
        let mut command = Command::default();
        command.options.insert("--authfile".into(), path.display().to_string());
        let of = |image: &str| of(&command, "--creds", "--authfile", image).unwrap();
        assert_eq!(of("busybox").unwrap().auth, "aHViOng=");
        assert_eq!(of("r.example:5000/a:1").unwrap().identity_token, "tok");
        assert!(of("other.example/a").is_none());
        std::fs::remove_file(path).unwrap();
    }
}
