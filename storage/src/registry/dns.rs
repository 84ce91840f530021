//! Name resolution without NSS: `/etc/hosts`, then the servers of `/etc/resolv.conf`, read anew for each pull.
//!
//! A node without a usable `resolv.conf` gets an error, never somebody else's name servers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::OnceCell;

/// A resolver made at its first use.
#[derive(Clone, Debug, Default)]
pub(super) struct Resolver(std::sync::Arc<OnceCell<TokioResolver>>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let cell = self.0.clone();
        Box::pin(async move {
            // RFC 6761, 6.3: never leaves the machine.
            if name.as_str() == "localhost" || name.as_str().ends_with(".localhost") {
                let both = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
                return Ok(Box::new(both.map(|ip| SocketAddr::new(ip, 0)).into_iter()) as Addrs);
            }
            let resolver = cell
                .get_or_try_init(|| async {
                    let mut builder = TokioResolver::builder_tokio()?;
                    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
                    builder.build()
                })
                .await?;
            let found = resolver.lookup_ip(name.as_str()).await?;
            let addresses: Vec<SocketAddr> = found.iter().map(|ip| SocketAddr::new(ip, 0)).collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
