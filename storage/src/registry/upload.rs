//! Uploads (distribution-spec, "Push"): a blob is there already, is taken over from a neighbour repository, or is sent whole; then the manifest.

use http::Method;
use reqwest::Url;

use super::client::{Ask, Client, Payload};
use super::hosts::{Capability, Endpoint};
use super::{RegistryError, Repository};
use crate::digest::Digest;

/// How a blob got there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Uploaded {
    /// It was there.
    Present,
    /// Taken over from another repository of the same registry.
    Mounted,
    /// Sent.
    Sent,
}

impl Repository {
    /// Makes a blob be there. `from`: repositories of the same registry that may have it. `body` is asked for anew with each try.
    pub(crate) async fn push_blob(
        &self,
        digest: &Digest,
        size: u64,
        from: &[String],
        body: Payload<'_>,
    ) -> Result<Uploaded, RegistryError> {
        let (endpoint, client) = self.pushable()?;
        let what = format!("blob {digest}");
        if self.has(endpoint, client, &format!("blobs/{digest}"), &what).await? {
            return Ok(Uploaded::Present);
        }
        let mut tries = 0;
        loop {
            match self.send_blob(endpoint, client, digest, size, from, body).await {
                Err(error) if error.is_transient() && tries < 3 => {
                    tries += 1;
                    client.pause(tries).await;
                }
                result => return result,
            }
        }
    }

    async fn send_blob(
        &self,
        endpoint: &Endpoint,
        client: &Client,
        digest: &Digest,
        size: u64,
        from: &[String],
        body: Payload<'_>,
    ) -> Result<Uploaded, RegistryError> {
        let what = format!("upload of blob {digest}");
        let repository = endpoint.repository(&self.path);
        let mount = from.iter().find(|other| *other != repository);
        let query = mount.map_or(String::new(), |other| format!("?mount={digest}&from={other}"));
        let url = endpoint.url(&self.path, &format!("blobs/uploads/{query}"), &self.host);
        let mut ask = Ask::get(&url, repository, &what);
        let empty: Payload<'_> = &|| reqwest::Body::from("");
        (ask.method, ask.actions, ask.body) = (Method::POST, "pull,push", Some((empty, 0, OCTETS)));
        let response = client.send(&ask).await?;
        if response.status().as_u16() == 201 {
            return Ok(Uploaded::Mounted);
        }
        let bad = |problem| RegistryError::Redirect { host: endpoint.name(), what: what.clone(), problem };
        let location = response.headers().get("location").and_then(|v| v.to_str().ok());
        let location = location.ok_or_else(|| bad("to nowhere"))?;
        let base = Url::parse(&url).map_err(|_| bad("to something that is no URL"))?;
        let mut place = base.join(location).map_err(|_| bad("to something that is no URL"))?;
        if base.scheme() == "https" && place.scheme() != "https" {
            return Err(bad("from https to plain http"));
        }
        place.query_pairs_mut().append_pair("digest", digest.as_str());
        let mut ask = Ask::get(place.as_str(), repository, &what);
        (ask.method, ask.actions, ask.bulk) = (Method::PUT, "pull,push", true);
        ask.body = Some((body, size, OCTETS));
        client.send(&ask).await?;
        Ok(Uploaded::Sent)
    }

    /// Puts a manifest under a tag or its digest.
    pub(crate) async fn push_manifest(
        &self,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<(), RegistryError> {
        let (endpoint, client) = self.pushable()?;
        let what = format!("manifest {}:{reference}", self.path);
        let url = endpoint.url(&self.path, &format!("manifests/{reference}"), &self.host);
        let mut ask = Ask::get(&url, endpoint.repository(&self.path), &what);
        let body = || reqwest::Body::from(bytes.to_vec());
        (ask.method, ask.actions) = (Method::PUT, "pull,push");
        ask.body = Some((&body, bytes.len() as u64, media_type));
        let response = client.send(&ask).await?;
        let digest = Digest::of(bytes);
        let said = response.headers().get("docker-content-digest").and_then(|v| v.to_str().ok());
        match said.and_then(|said| said.parse::<Digest>().ok()) {
            Some(found) if found.algorithm() == digest.algorithm() && found != digest => {
                Err(RegistryError::Digest { host: endpoint.name(), what, found })
            }
            _ => Ok(()),
        }
    }

    /// Whether something is there already.
    async fn has(
        &self,
        endpoint: &Endpoint,
        client: &Client,
        rest: &str,
        what: &str,
    ) -> Result<bool, RegistryError> {
        let url = endpoint.url(&self.path, rest, &self.host);
        let mut ask = Ask::get(&url, endpoint.repository(&self.path), what);
        (ask.method, ask.actions) = (Method::HEAD, "pull,push");
        match client.send(&ask).await {
            Ok(_) => Ok(true),
            // Some registries know no `HEAD`; sending what is there is only slow.
            Err(RegistryError::NotFound { .. } | RegistryError::Status { status: 405, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The one host that takes uploads: the registry itself, which comes last.
    fn pushable(&self) -> Result<(&Endpoint, &Client), RegistryError> {
        let able = self.endpoints.iter().rev().find(|(endpoint, _)| endpoint.can(Capability::Push));
        able.map(|(endpoint, client)| (endpoint, client))
            .ok_or_else(|| RegistryError::NoHost(self.host.clone()))
    }
}

const OCTETS: &str = "application/octet-stream";
