//! What a registry has: repositories and tags (distribution-spec, "Content Discovery"), page by page.

use serde::Deserialize;
use serde_json::Value;

use super::client::Ask;
use super::hosts::Capability;
use super::{RegistryError, Repository};

/// Pages followed.
const PAGES_MAX: usize = 100;
/// Largest page, in bytes.
const PAGE_MAX: u64 = 8 << 20;

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    repositories: Option<Vec<String>>,
    #[serde(default)]
    tags: Option<Vec<String>>,
}

impl Repository {
    /// All tags of this repository.
    pub(crate) async fn tags(&self) -> Result<Vec<String>, RegistryError> {
        let what = format!("tags of {}", self.path);
        self.pages("tags/list?n=1000", &what, &|page| page.tags.unwrap_or_default()).await
    }

    /// All repositories of the registry, as far as it tells.
    pub(crate) async fn catalog(&self) -> Result<Vec<String>, RegistryError> {
        self.pages("_catalog?n=1000", "the catalog", &|page| page.repositories.unwrap_or_default()).await
    }

    /// Docker Hub's search: names and descriptions.
    pub(crate) async fn hub_search(&self, term: &str) -> Result<Vec<(String, String)>, RegistryError> {
        let mut errors = Vec::new();
        for (number, endpoint, client) in self.able(Capability::Pull) {
            let mut url = match reqwest::Url::parse("https://index.docker.io/v1/search") {
                Ok(url) => url,
                Err(_) => continue,
            };
            if endpoint.mirror {
                continue;
            }
            url.query_pairs_mut().append_pair("q", term).append_pair("n", "50");
            let ask = Ask::get(url.as_str(), &self.path, "the search");
            match client.small(&ask, PAGE_MAX).await {
                Ok((_, bytes)) => {
                    let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
                    let results = answer["results"].as_array().cloned().unwrap_or_default();
                    return Ok(results.iter().map(|r| (text(&r["name"]), text(&r["description"]))).collect());
                }
                Err(error) => errors.push((number, error)),
            }
        }
        Err(self.none(errors))
    }

    async fn pages(
        &self,
        rest: &str,
        what: &str,
        part: &(dyn Fn(Page) -> Vec<String> + Sync),
    ) -> Result<Vec<String>, RegistryError> {
        let mut errors = Vec::new();
        // A mirror does not have it all; the registry itself comes last.
        for (number, endpoint, client) in self.able(Capability::Pull).into_iter().rev() {
            let whole = rest.starts_with("_catalog");
            let first = if whole {
                format!("{}{}/v2/{rest}", endpoint.name(), endpoint.prefix)
            } else {
                endpoint.url(&self.path, rest, &self.host)
            };
            match self.follow(&first, &client, whole, what, part).await {
                Ok(found) => return Ok(found),
                Err(error) => errors.push((number, error)),
            }
        }
        Err(self.none(errors))
    }

    async fn follow(
        &self,
        first: &str,
        client: &super::client::Client,
        whole: bool,
        what: &str,
        part: &(dyn Fn(Page) -> Vec<String> + Sync),
    ) -> Result<Vec<String>, RegistryError> {
        let mut url = first.to_owned();
        let mut found = Vec::new();
        for _ in 0..PAGES_MAX {
            let mut ask = Ask::get(&url, &self.path, what);
            if whole {
                (ask.repository, ask.actions) = ("", "catalog");
            }
            let (head, bytes) = client.small(&ask, PAGE_MAX).await?;
            let page = serde_json::from_slice(&bytes).map_err(|_| RegistryError::Status {
                host: client.name().to_owned(),
                status: 200,
                what: what.to_owned(),
                message: "the answer is not the JSON it should be".into(),
            })?;
            found.extend(part(page));
            let next = head.get("link").and_then(|link| next_page(link.to_str().ok()?));
            let base = reqwest::Url::parse(&url).ok();
            // Another host's page is another host's word.
            let next = next.and_then(|next| base.as_ref()?.join(&next).ok());
            let Some(next) = next.filter(|next| base.is_some_and(|base| base.origin() == next.origin()))
            else {
                break;
            };
            url = next.to_string();
        }
        Ok(found)
    }
}

/// `<URL>; rel="next"` (RFC 8288).
fn next_page(link: &str) -> Option<String> {
    let (url, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
    rest.contains("next").then(|| url.to_owned())
}
