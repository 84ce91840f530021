//! Tokens: the distribution project's token specification (GET with basic credentials) and its OAuth 2 form (POST).
//!
//! A password goes by GET, which every token service has, and by POST where there is none; a refresh token goes by POST, and by GET
//! where that is refused (registries that know their own forms only answer 400, 401, 404 or 405). Credentials go to a plain-http token
//! service only if the registry itself is plain http.

use std::time::{Duration, Instant};

use reqwest::{RequestBuilder, Url};
use serde::Deserialize;

use super::RegistryError;
use super::answer;
use super::auth::{Challenge, Grant, Kind, basic};

/// Tokens are used this much shorter than they live.
const MARGIN: Duration = Duration::from_secs(10);
/// Lifetime of a token that does not say (token specification).
const LIFETIME: u64 = 60;
/// A service that is silent for longer is down.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest answer, in bytes.
const ANSWER_MAX: u64 = 1 << 20;

/// One way to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Token specification.
    Get,
    /// OAuth 2.
    Post,
}

/// What a token is asked for.
struct Wanted<'a> {
    realm: Url,
    service: &'a str,
    scope: &'a str,
}

/// A token for a scope, from the service a challenge names.
pub(super) async fn fetch(
    http: &reqwest::Client,
    endpoint: &str,
    challenge: &Challenge,
    secret: &Kind,
    scope: &str,
    plain_http: bool,
) -> Result<Grant, RegistryError> {
    let realm = challenge.get("realm").unwrap_or_default().to_owned();
    let url = Url::parse(&realm).map_err(|_| RegistryError::Challenge {
        host: endpoint.into(),
        challenge: format!("realm \"{realm}\""),
    })?;
    let secret = if url.scheme() == "https" || plain_http { secret } else { &Kind::None };
    // The registry knows best which rights it misses.
    let scope = challenge.get("scope").filter(|s| !s.is_empty()).unwrap_or(scope);
    let wanted = Wanted { realm: url, service: challenge.get("service").unwrap_or_default(), scope };
    let ways: &[Way] = match secret {
        Kind::Refresh(_) => &[Way::Post, Way::Get],
        Kind::Basic { .. } => &[Way::Get, Way::Post],
        Kind::None | Kind::Bearer(_) => &[Way::Get],
    };
    let what = format!("a token of {realm}");
    let mut refusal = None;
    for way in ways {
        let sent = tokio::time::timeout(PATIENCE, wanted.request(http, *way, secret).send()).await;
        let stalled = |_| answer::stalled(endpoint, &what, PATIENCE);
        let response = sent.map_err(stalled)?.map_err(|e| answer::transport(endpoint, &what, e))?;
        let status = response.status().as_u16();
        let bytes = answer::body(response, endpoint, &what, ANSWER_MAX, PATIENCE).await?;
        let error =
            |message| RegistryError::Token { host: endpoint.into(), realm: realm.clone(), status, message };
        if status == 200 {
            return grant(&bytes).ok_or_else(|| error("the answer holds no token".into()));
        }
        let error = error(answer::message(&bytes));
        if !other_way_may_do(*way, status) {
            return Err(error);
        }
        // The first refusal is by the way meant for these credentials, and says more.
        refusal.get_or_insert(error);
    }
    Err(refusal.unwrap_or_else(|| RegistryError::Challenge { host: endpoint.into(), challenge: realm }))
}

/// A refused password is refused; a missing method is not an answer.
fn other_way_may_do(way: Way, status: u16) -> bool {
    match way {
        Way::Get => matches!(status, 404 | 405),
        Way::Post => matches!(status, 400 | 401 | 404 | 405),
    }
}

// === impl Wanted ===

impl Wanted<'_> {
    fn request(&self, http: &reqwest::Client, way: Way, secret: &Kind) -> RequestBuilder {
        match way {
            Way::Get => {
                let mut url = self.realm.clone();
                // Several scopes are several parameters.
                let scopes = self.scope.split(' ').map(|scope| ("scope", scope));
                for (name, value) in std::iter::once(("service", self.service)).chain(scopes) {
                    if !value.is_empty() {
                        url.query_pairs_mut().append_pair(name, value);
                    }
                }
                let request = http.get(url);
                match secret {
                    Kind::Basic { user, password } => request.header("authorization", basic(user, password)),
                    Kind::Refresh(token) => request.header("authorization", basic("", token)),
                    Kind::None | Kind::Bearer(_) => request,
                }
            }
            Way::Post => {
                let mut fields =
                    vec![("service", self.service), ("client_id", "berth"), ("scope", self.scope)];
                match secret {
                    Kind::Refresh(token) => {
                        fields.extend([("grant_type", "refresh_token"), ("refresh_token", token)]);
                    }
                    Kind::Basic { user, password } => {
                        fields.extend([
                            ("grant_type", "password"),
                            ("username", user),
                            ("password", password),
                        ]);
                    }
                    Kind::None | Kind::Bearer(_) => {}
                }
                let fields = fields.into_iter().map(|(name, value)| format!("{name}={}", escape(value)));
                let body = fields.collect::<Vec<_>>().join("&");
                let request = http.post(self.realm.clone());
                request.header("content-type", "application/x-www-form-urlencoded").body(body)
            }
        }
    }
}

fn grant(bytes: &[u8]) -> Option<Grant> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<u64>,
    }
    let answer: Answer = serde_json::from_slice(bytes).ok()?;
    let token = answer.token.filter(|t| !t.is_empty()).or(answer.access_token).filter(|t| !t.is_empty())?;
    let lifetime = Duration::from_secs(answer.expires_in.unwrap_or(LIFETIME).clamp(LIFETIME, 3600));
    Some(Grant { header: format!("Bearer {token}"), until: Some(Instant::now() + lifetime - MARGIN) })
}

/// Form encoding of one value.
fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
