//! Being let in: what the caller gave, and what the registry asks for.
//!
//! Challenges: RFC 9110 11.6.1. Credentials go to the host they are for, and to its token service ([`token`](super::token)).

use std::time::Instant;

use base64::Engine;

use super::RegistryError;
use super::hosts::Endpoint;
use crate::Credentials;

/// Credentials, understood.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Secret {
    pub(super) kind: Kind,
    server: String,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    None,
    Basic { user: String, password: String },
    Refresh(String),
    Bearer(String),
}

/// One challenge of a `WWW-Authenticate` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// Lower-case scheme.
    pub scheme: String,
    /// Parameters with lower-case names.
    pub parameters: Vec<(String, String)>,
}

/// What to send in `Authorization`, and until when.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) header: String,
    pub(super) until: Option<Instant>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grant(…)")
    }
}

// === impl Secret ===

impl Secret {
    /// Reads the forms an `AuthConfig` may have; the most specific one counts.
    pub(crate) fn new(given: Credentials) -> Result<Self, RegistryError> {
        let bad = || RegistryError::Credentials("`auth` is not base64 of `user:password`");
        let kind = if !given.registry_token.is_empty() {
            Kind::Bearer(given.registry_token)
        } else if !given.identity_token.is_empty() {
            Kind::Refresh(given.identity_token)
        } else if !given.username.is_empty() {
            Kind::Basic { user: given.username, password: given.password }
        } else if !given.auth.is_empty() {
            let bytes =
                base64::engine::general_purpose::STANDARD.decode(given.auth.trim()).map_err(|_| bad())?;
            let text = String::from_utf8(bytes).map_err(|_| bad())?;
            let (user, password) = text.split_once(':').ok_or_else(bad)?;
            Kind::Basic { user: user.into(), password: password.trim_end_matches('\0').into() }
        } else {
            Kind::None
        };
        Ok(Self { kind, server: host_of(&given.server_address) })
    }

    /// Nobody's.
    pub(super) fn none() -> Self {
        Self { kind: Kind::None, server: String::new() }
    }

    /// The part of it that may be shown to `endpoint`.
    pub(super) fn for_host(&self, endpoint: &Endpoint, registry: &str) -> Self {
        let meant = match self.server.as_str() {
            "" => !endpoint.mirror,
            server => {
                server == canonical(&endpoint.authority)
                    || (!endpoint.mirror && server == canonical(registry))
            }
        };
        if meant { self.clone() } else { Self::none() }
    }

    /// What a challenge asks for: a header at once, or a token to be fetched.
    pub(super) async fn answer(
        &self,
        http: &reqwest::Client,
        endpoint: &str,
        challenges: &[Challenge],
        scope: &str,
        plain_http: bool,
    ) -> Result<Grant, RegistryError> {
        let by_scheme = |scheme| challenges.iter().find(|challenge| challenge.scheme == scheme);
        match (&self.kind, by_scheme("bearer"), by_scheme("basic")) {
            (Kind::Bearer(token), Some(_), _) => Ok(Grant { header: format!("Bearer {token}"), until: None }),
            (_, Some(bearer), _) => {
                super::token::fetch(http, endpoint, bearer, &self.kind, scope, plain_http).await
            }
            (Kind::Basic { user, password }, None, Some(_)) => {
                Ok(Grant { header: basic(user, password), until: None })
            }
            (_, None, Some(_)) => Err(RegistryError::Unauthorized {
                host: endpoint.into(),
                message: "it wants a user name and a password".into(),
                hint: "; give credentials for it (imagePullSecrets)",
            }),
            _ => {
                let challenge = challenges.iter().map(|c| c.scheme.as_str()).collect::<Vec<_>>().join(", ");
                Err(RegistryError::Challenge { host: endpoint.into(), challenge })
            }
        }
    }
}

/// RFC 7617.
pub(super) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// The host of a server address, which people write as host, URL, or URL with `/v1/`.
fn host_of(address: &str) -> String {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    canonical(rest.split('/').next().unwrap_or(rest))
}

/// Docker Hub has three names.
fn canonical(host: &str) -> String {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".into(),
        other => other.to_ascii_lowercase(),
    }
}
// === impl Challenge ===

impl Challenge {
    /// A parameter by its lower-case name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// All challenges of one header value; what cannot be understood is left out.
#[must_use]
pub fn challenges(header: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = header.trim();
    while !rest.is_empty() {
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start();
        if word.is_empty() {
            // A separator, or something that is not a challenge.
            rest = rest[rest.chars().next().map_or(0, char::len_utf8)..].trim_start();
        } else if let Some(value) = after.strip_prefix('=') {
            let (value, after) = value_of(value.trim_start());
            if let Some(challenge) = found.last_mut() {
                challenge.parameters.push((word.to_ascii_lowercase(), value));
            }
            rest = after.trim_start().trim_start_matches(',').trim_start();
        } else {
            found.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
            rest = after.trim_start_matches(',').trim_start();
        }
    }
    found
}

/// RFC 9110 5.6.2.
fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// A token or a quoted string, and what follows it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_challenges_in_one_header_are_all_understood() {
        let found = challenges(
            r#"Basic realm="a, \"b\"", Bearer realm="https://t/x?y=1",service=s , scope="repository:a/b:pull,push", Negotiate"#,
        );
        let schemes: Vec<&str> = found.iter().map(|c| c.scheme.as_str()).collect();
        assert_eq!(schemes, ["basic", "bearer", "negotiate"]);
        assert_eq!(found[0].get("realm"), Some("a, \"b\""));
        assert_eq!(found[1].get("realm"), Some("https://t/x?y=1"));
        assert_eq!(found[1].get("service"), Some("s"));
        assert_eq!(found[1].get("scope"), Some("repository:a/b:pull,push"));
        for broken in ["", ",,,", "=", "Bearer realm=\"open", "\u{e9}\u{e9} =\"", "Bearer realm"] {
            let _ = challenges(broken);
        }
    }

    #[test]
    fn credentials_reach_only_the_host_they_are_for() {
        let endpoint = |text: &str, mirror| Endpoint { mirror, ..Endpoint::plain(text) };
        let known = |server: &str, host: &str, mirror| {
            let given = Credentials {
                username: "u".into(),
                password: "p".into(),
                server_address: server.into(),
                ..Credentials::default()
            };
            !matches!(
                Secret::new(given).unwrap().for_host(&endpoint(host, mirror), "docker.io").kind,
                Kind::None
            )
        };
        assert!(known("", "docker.io", false));
        assert!(!known("", "mirror.example", true), "a mirror is somebody else");
        assert!(known("https://index.docker.io/v1/", "docker.io", false));
        assert!(!known("other.example", "docker.io", false));
        assert!(known("mirror.example", "mirror.example", true));
    }

    #[test]
    fn the_base64_form_is_read_and_a_broken_one_refused() {
        let auth = |auth: &str| Secret::new(Credentials { auth: auth.into(), ..Credentials::default() });
        let Kind::Basic { user, password } = auth("dTpwOnE=").unwrap().kind else { panic!() };
        assert_eq!((user.as_str(), password.as_str()), ("u", "p:q"));
        assert!(auth("dXNlcg==").is_err() && auth("%%").is_err());
    }
}
