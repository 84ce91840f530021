//! Decoders under bytes of any kind: what the fuzz targets (`netplugins/fuzz`) and the property tests below call.
//!
//! Each takes bytes as they may come from outside, must not panic, and what it accepts must survive being written and read
//! again. Compiled for tests and for fuzzing only.

use crate::cni::config::{self, VERSIONS};
use crate::cni::json;
use crate::cni::result::Success;
use crate::netlink::wire::{attributes, frames};
use crate::netlink::{conntrack, route};
use crate::nft::{element, rules};

/// A network configuration: conflists, and plugins' objects.
pub fn conflist(bytes: &[u8]) {
    let Ok(value) = json::parse(bytes) else { return };
    if let Ok(network) = config::decode(&value) {
        assert_eq!(config::decode(&config::encode(&network)).as_ref(), Ok(&network));
    }
}

/// What a plugin prints.
pub fn result(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
    for asked in VERSIONS {
        let Ok(success) = Success::decode(&value, asked) else { continue };
        for version in VERSIONS {
            let Ok(written) = success.encode(version) else { continue };
            let again = Success::decode(&written, version).and_then(|s| s.encode(version));
            assert_eq!(again.as_ref(), Ok(&written));
        }
    }
}

/// What a netlink socket delivers: frames of every protocol this crate reads.
pub fn netlink(bytes: &[u8]) {
    for frame in frames(bytes).map_while(Result::ok) {
        let _ = route::decode(&frame);
        let _ = route::details_of(&frame);
        let _ = conntrack::decode(&frame);
        let body = frame.payload.get(4..).unwrap_or_default();
        let entries = element::decode("hp4", body).len() + element::decode("self6", body).len();
        assert!(entries <= body.len());
        element::decode("hpip6", body).iter().for_each(|entry| drop((entry.to_string(), entry.target())));
        let _ = rules::decode(body);
        attributes(frame.payload).for_each(|outer| attributes(outer.value).for_each(drop));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// JSON of any shape, with the words that decoders look for.
    fn json() -> impl Strategy<Value = serde_json::Value> {
        let word = prop::sample::select(vec![
            "cniVersion",
            "cniVersions",
            "name",
            "plugins",
            "type",
            "ips",
            "ip4",
            "ip6",
            "ip",
            "interfaces",
            "routes",
            "dst",
            "gw",
            "address",
            "gateway",
            "interface",
            "dns",
            "mtu",
            "sysctl",
            "disableGC",
            "capabilities",
            "sandbox",
        ]);
        let text = prop::sample::select(vec![
            "",
            "1.1.0",
            "0.2.0",
            "10.0.0.1/24",
            "fd00::1/64",
            "10.0.0.1",
            "bridge",
            "a/b",
            "true",
        ]);
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            text.prop_map(Into::into),
            ".*".prop_map(Into::into),
        ];
        leaf.prop_recursive(5, 64, 8, move |inner| {
            let word = word.clone();
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::vec((word, inner), 0..8).prop_map(|pairs| pairs
                    .into_iter()
                    .map(|(k, v)| (k.to_owned(), v))
                    .collect::<serde_json::Map<_, _>>()
                    .into()),
            ]
        })
    }

    /// A frame of a kind that is decoded, with a body of attributes that are nearly right.
    fn datagram() -> impl Strategy<Value = Vec<u8>> {
        let kind = prop::sample::select(vec![16u16, 20, 24, 28, 32, 36, 0x0100, 0x0a03, 0x0a06, 0x0a0c]);
        let attribute = (0u16..64, prop::collection::vec(any::<u8>(), 0..40), any::<bool>());
        let body = (prop::collection::vec(any::<u8>(), 0..24), prop::collection::vec(attribute, 0..12));
        (kind, body, -3i32..4).prop_map(|(kind, (head, attributes), lie)| {
            let mut payload = head;
            for (number, value, nested) in attributes {
                let number = if nested { number | 0x8000 } else { number };
                crate::netlink::wire::put(&mut payload, number, &value);
            }
            let length = u32::try_from(16 + payload.len()).unwrap().saturating_add_signed(lie);
            let mut out = length.to_ne_bytes().to_vec();
            out.extend(kind.to_ne_bytes());
            out.extend([0; 10]);
            out.extend(payload);
            out
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn any_json_is_read_as_a_configuration_or_refused(value in json()) {
            conflist(value.to_string().as_bytes());
        }

        #[test]
        fn any_json_is_read_as_a_result_or_refused(value in json()) {
            result(value.to_string().as_bytes());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            conflist(&bytes);
            result(&bytes);
            netlink(&bytes);
        }

        #[test]
        fn any_netlink_message_is_read_or_refused(bytes in datagram()) {
            netlink(&bytes);
        }
    }
}
