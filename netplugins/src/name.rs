//! Names: pod ids, link names, prefixes.

use sha2::{Digest, Sha256};

use crate::error::Error;

/// `IFNAMSIZ` of `linux/if.h`, without the final NUL.
pub(crate) const LINK_NAME_BYTES: usize = 15;
/// Leaves nine characters for the pod.
const PREFIX_BYTES: usize = 6;
const ID_BYTES: usize = 128;

/// Refuses ids that are not `[a-zA-Z0-9][a-zA-Z0-9_.-]*` (the CNI specification's rule for container ids), or too long.
pub(crate) fn check_id(id: &str, what: &'static str) -> Result<(), Error> {
    let refuse = |why| Err(Error::Name { name: id.into(), what, why });
    let mut bytes = id.bytes();
    if !bytes.next().is_some_and(|b| b.is_ascii_alphanumeric()) {
        return refuse("it must begin with a letter or digit");
    }
    if !bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')) {
        return refuse("it may hold letters, digits, \"_\", \".\" and \"-\" only");
    }
    if id.len() > ID_BYTES {
        return refuse("it is longer than 128 bytes");
    }
    Ok(())
}

/// Refuses link prefixes that could not begin a link name or name an nft table.
pub(crate) fn check_prefix(prefix: &str) -> Result<(), Error> {
    let refuse = |why| Err(Error::Name { name: prefix.into(), what: "links and the nft table", why });
    if prefix.is_empty() || prefix.len() > PREFIX_BYTES {
        return refuse("a link prefix has one to six characters");
    }
    let mut bytes = prefix.bytes();
    if !bytes.next().is_some_and(|b| b.is_ascii_lowercase())
        || !bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    {
        return refuse("a link prefix is lower case letters and digits, a letter first");
    }
    Ok(())
}

/// Refuses what the kernel would not take as the name of a link (`dev_valid_name`).
pub(crate) fn check_link(link: &str) -> Result<(), Error> {
    let refuse = |why| Err(Error::Name { name: link.into(), what: "a network device", why });
    if link.is_empty() || link.len() > LINK_NAME_BYTES {
        return refuse("a device's name has 1 to 15 bytes");
    }
    if link == "." || link == ".." || link.chars().any(|c| matches!(c, '/' | ':') || c.is_whitespace()) {
        return refuse("it may hold no \"/\", no \":\" and no blanks");
    }
    Ok(())
}

/// Name of a pod's link on the node: the prefix, then a digest of id and `salt`, as long as names may be.
pub(crate) fn host_link(prefix: &str, id: &str, salt: u32) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digest = Sha256::new().chain_update(id.as_bytes()).chain_update(salt.to_be_bytes()).finalize();
    let room = LINK_NAME_BYTES.saturating_sub(prefix.len()).min(9);
    let tail = digest.iter().take(room).map(|byte| char::from(ALPHABET[usize::from(byte % 32)]));
    prefix.chars().chain(tail).collect()
}

/// Name of the link that shapes what comes in by a pod's link.
pub(crate) fn shaper_link(prefix: &str, host_link_name: &str) -> String {
    host_link(prefix, host_link_name, 0)
}

/// Whether a link was named by [`host_link`] with that prefix.
pub(crate) fn is_host_link(prefix: &str, name: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|tail| {
        tail.len() == (LINK_NAME_BYTES - prefix.len()).min(9)
            && tail.bytes().all(|b| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_leave_the_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "-x", "a b", "a\0", &"x".repeat(129)] {
            assert!(check_id(bad, "a test").is_err(), "{bad:?}");
        }
        for good in ["a", "0f3c", "pod-1_a.b"] {
            assert!(check_id(good, "a test").is_ok(), "{good:?}");
        }
    }

    #[test]
    fn link_names_fit_the_kernel_and_are_recognised_again() {
        for prefix in ["b", "berth", "berthx"] {
            check_prefix(prefix).unwrap();
            let name = host_link(prefix, &"f".repeat(64), 0);
            assert!(name.len() <= LINK_NAME_BYTES, "{name}");
            assert!(is_host_link(prefix, &name));
        }
        assert_ne!(host_link("nt", "a", 0), host_link("nt", "a", 1));
        for foreign in ["nt0", "ntap", "veth12345678", "ntABCDEFGHI"] {
            assert!(!is_host_link("nt", foreign), "{foreign}");
        }
        for bad in ["", "Berth", "0x", "berth-1", "sevenxx"] {
            assert!(check_prefix(bad).is_err(), "{bad}");
        }
    }
}
