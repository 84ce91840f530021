//! Image references: `[host[:port]/]path[:tag][@digest]`, with the defaults people expect.
//!
//! Grammar: the distribution project's reference grammar and the OCI distribution-spec (`<name>` and `<reference>` patterns).
//! `busybox` means `docker.io/library/busybox:latest`; a first component is a host only if it has a dot, a colon, an upper-case
//! letter, or is `localhost`.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// Longest accepted name, as in the distribution project.
const NAME_MAX: usize = 255;

/// A parsed and completed reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageRef {
    /// Registry host, with a port when given; `docker.io` when none was.
    pub host: String,
    /// Repository path, such as `library/busybox`.
    pub path: String,
    /// Tag; `latest` when neither tag nor digest was given.
    pub tag: Option<String>,
    /// Digest; wins over the tag.
    pub digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("the reference is empty")]
    Empty,
    /// The repository name.
    #[error(
        "repository name \"{0}\" must be lower-case letters and digits, separated by `.`, `_`, `__`, `-` or `/`"
    )]
    Name(String),
    /// The host part.
    #[error("registry host \"{0}\" is not a host name, an address, or one with a port")]
    Host(String),
    /// The tag.
    #[error("tag \"{0}\" must be 1 to 128 letters, digits, `_`, `.` or `-`, not starting with `.` or `-`")]
    Tag(String),
    /// The digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// The name is too long.
    #[error("the name is longer than {NAME_MAX} bytes")]
    Long,
}

// === impl ImageRef ===

impl ImageRef {
    /// `host/path`, without tag or digest.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// `host/path:tag` if there is a tag.
    #[must_use]
    pub fn tagged(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("{}/{}:{tag}", self.host, self.path))
    }

    /// `host/path@digest` for the given digest.
    #[must_use]
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.host, self.path)
    }
}

impl FromStr for ImageRef {
    type Err = ReferenceError;
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[slash..].find(':') {
            Some(at) => (&rest[..slash + at], Some(&rest[slash + at + 1..])),
            None => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let (host, path) = split_host(name);
        check_host(&host)?;
        check_path(&path)?;
        if host.len() + 1 + path.len() > NAME_MAX {
            return Err(ReferenceError::Long);
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self { host, path, tag, digest })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Whether the first component is a registry, as opposed to Docker Hub's or a configured default.
#[must_use]
pub fn names_a_host(text: &str) -> bool {
    text.split_once('/').is_some_and(|(first, _)| looks_like_host(first))
}

/// The name with `:latest` if it has neither tag nor digest.
#[must_use]
pub fn with_tag(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains([':', '@']) { name.to_owned() } else { format!("{name}:latest") }
}

fn looks_like_host(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':']) || part.bytes().any(|b| b.is_ascii_uppercase())
}

/// Splits off the host and supplies Docker Hub's defaults.
fn split_host(name: &str) -> (String, String) {
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if looks_like_host(host) => (host, path),
        _ => ("docker.io", name),
    };
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let path =
        if host == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
    (host.to_owned(), path)
}

fn check_tag(tag: &str) -> Result<(), ReferenceError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let ok = tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if ok { Ok(()) } else { Err(ReferenceError::Tag(tag.chars().take(160).collect())) }
}

fn check_host(host: &str) -> Result<(), ReferenceError> {
    let bad = || ReferenceError::Host(host.chars().take(300).collect());
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or_else(bad)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
            ("v6", rest)
        }
        None => host.find(':').map_or((host, ""), |at| host.split_at(at)),
    };
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let port_ok = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    if name.split('.').all(label) && port_ok { Ok(()) } else { Err(bad()) }
}

fn check_path(path: &str) -> Result<(), ReferenceError> {
    let part_ok = |part: &str| {
        // Alphanumeric runs joined by `.`, `_`, `__` or any number of `-`.
        let mut separator = String::new();
        let mut seen = false;
        for c in part.chars() {
            if c.is_ascii_lowercase() || c.is_ascii_digit() {
                let fine = matches!(separator.as_str(), "" | "." | "_" | "__")
                    || separator.bytes().all(|b| b == b'-');
                if !fine || (!seen && !separator.is_empty()) {
                    return false;
                }
                separator.clear();
                seen = true;
            } else if matches!(c, '.' | '_' | '-') {
                separator.push(c);
            } else {
                return false;
            }
        }
        seen && separator.is_empty()
    };
    if path.split('/').all(part_ok) {
        Ok(())
    } else {
        Err(ReferenceError::Name(path.chars().take(300).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_names_are_completed_as_people_expect() {
        for (given, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("index.docker.io/a/b", "docker.io/a/b:latest"),
            ("me/app", "docker.io/me/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/a:b", "[::1]:5000/a:b"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("a__b/c--d.e_f", "docker.io/a__b/c--d.e_f:latest"),
        ] {
            assert_eq!(given.parse::<ImageRef>().unwrap().to_string(), full, "{given}");
        }
        let by_digest = format!("host.io/a@sha256:{HEX}");
        assert_eq!(by_digest.parse::<ImageRef>().unwrap().to_string(), by_digest);
        let both = format!("host.io/a:t@sha256:{HEX}");
        assert_eq!(both.parse::<ImageRef>().unwrap().to_string(), both);
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for bad in [
            "",
            "Upper",
            "a//b",
            "-a",
            "a-",
            "a:.x",
            "a:",
            "a@sha256:12",
            "host.io/../x",
            "a b",
            "a___b",
            "ho_st.io/a",
            "host.io:99999/a",
            "[zz]:1/a",
            "a..b",
        ] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad:?}");
        }
        assert_eq!(format!("h.io/{}", "a".repeat(255)).parse::<ImageRef>(), Err(ReferenceError::Long));
    }

    proptest::proptest! {
        #[test]
        fn what_parses_is_printed_as_something_that_parses_to_the_same(
            text in "([a-zA-Z0-9.\\[\\]:-]{1,12}/)?[a-z0-9._/-]{1,20}(:[A-Za-z0-9._-]{1,10})?(@sha256:[0-9a-f]{64})?"
        ) {
            if let Ok(reference) = text.parse::<ImageRef>() {
                let again: ImageRef = reference.to_string().parse().unwrap();
                assert_eq!(again, reference);
            }
        }
    }
}
