//! Whose an entry is: what the comments of packet filter entries say, `<network>/<container>/<interface>`.
//!
//! DEL goes by the whole of it, whatever else has been forgotten. GC of a network is told that network's attachments only, so
//! that it goes by the beginning too: entries of other networks are none of its business.

use sha2::{Digest, Sha256};

use super::Request;

/// The longest parts that are written as they are; interface names have 15 bytes and a comment 127.
const NETWORK: usize = 32;
const CONTAINER: usize = 71;

/// The request's attachment.
pub(super) fn own(request: &Request) -> String {
    named(&network(request), &request.container, &request.interface)
}

/// For GC: whether an owner is of the request's network and none of its valid attachments.
pub(super) fn gone(request: &Request) -> impl Fn(&str) -> bool + use<> {
    let network = network(request);
    let valid: Vec<String> = request.valid().iter().map(|(c, i)| named(&network, c, i)).collect();
    move |owner| owner.starts_with(&network) && !valid.iter().any(|v| v == owner)
}

fn network(request: &Request) -> String {
    let name = request.conf.text("name").ok().flatten().unwrap_or_default();
    format!("{}/", short(name, NETWORK))
}

fn named(network: &str, container: &str, interface: &str) -> String {
    format!("{network}{}/{interface}", short(container, CONTAINER))
}

/// The text, or so much of its digest.
fn short(text: &str, longest: usize) -> String {
    if text.len() <= longest {
        return text.to_owned();
    }
    let digest =
        Sha256::digest(text).iter().fold("sha256:".to_owned(), |all, byte| format!("{all}{byte:02x}"));
    digest.get(..longest).unwrap_or(&digest).to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugins::testing::request;

    #[test]
    fn gc_of_a_network_leaves_the_others_alone() {
        let conf =
            json!({ "name": "n", "cni.dev/valid-attachments": [{ "containerID": "c1", "ifname": "eth0" }] });
        let gone = gone(&request("GC", conf));
        assert!(!gone("n/c1/eth0") && gone("n/c1/eth1") && gone("n/c2/eth0"));
        assert!(!gone("m/c2/eth0") && !gone("nn/c2/eth0") && !gone("CNI firewall plugin"));
    }

    #[test]
    fn a_comment_holds_the_longest_owner() {
        let long = request("GC", json!({ "name": "n".repeat(128) }));
        let owner = named(&network(&long), &"c".repeat(128), "fifteen-bytes-x");
        assert!(owner.len() <= 127 && owner.ends_with("/fifteen-bytes-x"), "{owner}");
        assert_ne!(owner, named(&network(&long), &"d".repeat(128), "fifteen-bytes-x"));
    }
}
