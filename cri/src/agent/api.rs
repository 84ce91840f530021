//! The two requests of the agent: list Nodes, watch Nodes (Kubernetes API concepts, "Efficient detection of changes").

use std::collections::BTreeMap;
use std::time::Duration;

use netplugins::Peer;
use serde::Deserialize;

use super::kubeconfig::{Access, Token, read};
use super::nodes::{Event, List, Metadata, Node};

const PAGE: usize = 500;
/// A page of 500 Nodes with everything that is ever put into them.
const MAX_PAGE: usize = 64 << 20;
/// One Node of a watch; etcd's own limit is 1.5 MiB.
const MAX_EVENT: usize = 4 << 20;
const LIST_LIMIT: Duration = Duration::from_secs(60);
/// How long a watch is asked to last, in seconds, and when one counts as dead that says nothing, not even a bookmark.
const WATCH_SECONDS: u64 = 240;
const SILENCE: Duration = Duration::from_secs(270);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer, or a broken one.
    #[error("the API server does not answer")]
    Transport(#[from] reqwest::Error),
    /// It said no.
    #[error("the API server answers {status}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its own words.
        message: String,
    },
    /// An answer is not what the API promises.
    #[error("the API server's answer cannot be read: {0}")]
    Malformed(String),
    /// The token cannot be read.
    #[error("the token cannot be read")]
    Token(#[source] super::kubeconfig::Error),
}

impl Error {
    /// The version to go on from is too old: list again.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        matches!(self, Self::Refused { status: 410, .. })
    }
}

/// A client of one API server.
#[derive(Clone, Debug)]
pub struct Api {
    client: reqwest::Client,
    server: String,
    token: Token,
}

/// One line of a watch.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    object: serde_json::Value,
}

/// `v1.Status`, as far as it is told on.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    message: String,
    code: u16,
}

impl Api {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn new(access: Access) -> Result<Self, Error> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(access.tls)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(Duration::from_secs(10))
            .tcp_keepalive(Duration::from_secs(15))
            .read_timeout(SILENCE)
            .user_agent(concat!("berth-net-agent/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { client, server: access.server, token: access.token })
    }

    /// All Nodes, and the version that a watch goes on from.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list(&self) -> Result<(BTreeMap<String, Peer>, String), Error> {
        let mut nodes = BTreeMap::new();
        let mut next = String::new();
        loop {
            let mut query = vec![("limit", PAGE.to_string())];
            if !next.is_empty() {
                query.push(("continue", next));
            }
            let mut response = self.get(&query, Some(LIST_LIMIT)).await?;
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                if body.len() + chunk.len() > MAX_PAGE {
                    return Err(Error::Malformed("a page is larger than 64 MiB".into()));
                }
                body.extend_from_slice(&chunk);
            }
            let page: List = serde_json::from_slice(&body).map_err(|e| Error::Malformed(e.to_string()))?;
            nodes.extend(page.items.iter().map(|node| (node.metadata.name.clone(), node.peer())));
            if page.metadata.next.is_empty() {
                return Ok((nodes, page.metadata.resource_version));
            }
            next = page.metadata.next;
        }
    }

    /// Tells every change after `version` until the server ends it, and keeps `version` at the last one told.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn watch(&self, version: &mut String, mut tell: impl FnMut(Event)) -> Result<(), Error> {
        let query = [
            ("watch", "true".to_owned()),
            ("allowWatchBookmarks", "true".to_owned()),
            ("timeoutSeconds", WATCH_SECONDS.to_string()),
            ("resourceVersion", version.clone()),
        ];
        let mut response = self.get(&query, None).await?;
        let mut lines = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            lines.extend_from_slice(&chunk);
            while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = lines.drain(..=end).collect();
                let (event, at) = decode(&line)?;
                *version = at;
                event.into_iter().for_each(&mut tell);
            }
            if lines.len() > MAX_EVENT {
                return Err(Error::Malformed("an event is larger than 4 MiB".into()));
            }
        }
        Ok(())
    }

    async fn get(
        &self,
        query: &[(&str, String)],
        limit: Option<Duration>,
    ) -> Result<reqwest::Response, Error> {
        let query: Vec<String> =
            query.iter().map(|(key, value)| format!("{key}={}", escape(value))).collect();
        let mut request = self.client.get(format!("{}/api/v1/nodes?{}", self.server, query.join("&")));
        if let Some(limit) = limit {
            request = request.timeout(limit);
        }
        let token = match &self.token {
            Token::None => None,
            Token::Fixed(token) => Some(token.clone()),
            Token::File(path) => {
                let bytes = read(path).map_err(Error::Token)?;
                Some(String::from_utf8_lossy(&bytes).trim().to_owned())
            }
        };
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let mut response = request.header("Accept", "application/json").send().await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let first = response.chunk().await?.unwrap_or_default();
        let said: Status = serde_json::from_slice(&first).unwrap_or_default();
        Err(Error::Refused { status, message: said.message })
    }
}

/// The change in one line of a watch, if it is one, and the version it brings us to.
fn decode(line: &[u8]) -> Result<(Option<Event>, String), Error> {
    let malformed = |e: serde_json::Error| Error::Malformed(e.to_string());
    let line: Line = serde_json::from_slice(line).map_err(malformed)?;
    let node = |object| serde_json::from_value::<Node>(object).map_err(malformed);
    match line.kind.as_str() {
        "ADDED" | "MODIFIED" => {
            let node = node(line.object)?;
            let version = node.metadata.resource_version.clone();
            Ok((Some(Event::Present(Box::new(node))), version))
        }
        "DELETED" => {
            let Metadata { name, resource_version, .. } = node(line.object)?.metadata;
            Ok((Some(Event::Gone(name)), resource_version))
        }
        "BOOKMARK" => Ok((None, node(line.object)?.metadata.resource_version)),
        "ERROR" => {
            let said: Status = serde_json::from_value(line.object).map_err(malformed)?;
            Err(Error::Refused { status: said.code, message: said.message })
        }
        kind => Err(Error::Malformed(format!("an event of type \"{kind}\""))),
    }
}

/// Percent-encoding of a query's value.
fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_bring_the_version_forward_and_errors_carry_their_code() {
        let line = |kind: &str, rest: &str| format!(r#"{{"type":"{kind}","object":{rest}}}"#).into_bytes();
        let node = r#"{"metadata":{"name":"a","resourceVersion":"12"}}"#;
        for (kind, told) in [("ADDED", true), ("MODIFIED", true), ("DELETED", true), ("BOOKMARK", false)] {
            let (event, version) = decode(&line(kind, node)).unwrap();
            assert_eq!((event.is_some(), version.as_str()), (told, "12"), "{kind}");
        }
        let gone = decode(&line("ERROR", r#"{"code":410,"message":"too old resource version"}"#));
        assert!(gone.unwrap_err().is_expired());
        assert!(decode(&line("OTHER", node)).is_err());
        assert!(decode(b"{").is_err());
    }

    #[test]
    fn versions_are_opaque() {
        assert_eq!(escape("eyJ2 =&/+~"), "eyJ2%20%3D%26%2F%2B~");
    }
}
