//! Content digests: `sha256:…` and `sha512:…`, parsed, printed and computed.
//!
//! Only registered algorithms are accepted (OCI image-spec, descriptor.md#digests), lower-case hex of the exact length, so that a
//! digest can be a file name.

use std::fmt;
use std::str::FromStr;

/// A digest: algorithm and lower-case hex.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    text: Box<str>,
    colon: usize,
}

/// Why a text is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a digest (sha256: and 64, or sha512: and 128 lower-case hex digits)")]
pub struct DigestError(pub String);

/// Computes a digest over a stream.
#[derive(Clone)]
pub struct Hasher {
    algorithm: &'static str,
    context: ring::digest::Context,
}

// === impl Digest ===

impl Digest {
    /// Of bytes at hand, with sha256.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::sha256();
        hasher.update(bytes);
        hasher.finish()
    }

    /// `sha256` or `sha512`.
    #[must_use]
    pub fn algorithm(&self) -> &str {
        &self.text[..self.colon]
    }

    /// The hex digits.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.text[self.colon + 1..]
    }

    /// The whole text, `algorithm:hex`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// A hasher of this digest's algorithm.
    #[must_use]
    pub fn hasher(&self) -> Hasher {
        if self.algorithm() == "sha512" { Hasher::sha512() } else { Hasher::sha256() }
    }

    /// Whether the bytes have this digest.
    #[must_use]
    pub fn matches(&self, bytes: &[u8]) -> bool {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish() == *self
    }
}

impl FromStr for Digest {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, DigestError> {
        let bad = || DigestError(text.chars().take(160).collect());
        let (algorithm, hex) = text.split_once(':').ok_or_else(bad)?;
        let length = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return Err(bad()),
        };
        if hex.len() != length || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad());
        }
        Ok(Self { text: text.into(), colon: algorithm.len() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

// === impl Hasher ===

impl Hasher {
    /// SHA-256 (FIPS 180-4).
    #[must_use]
    pub fn sha256() -> Self {
        Self { algorithm: "sha256", context: ring::digest::Context::new(&ring::digest::SHA256) }
    }

    /// SHA-512 (FIPS 180-4).
    #[must_use]
    pub fn sha512() -> Self {
        Self { algorithm: "sha512", context: ring::digest::Context::new(&ring::digest::SHA512) }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    /// The digest of all bytes added.
    #[must_use]
    pub fn finish(self) -> Digest {
        let sum = self.context.finish();
        let mut text = String::with_capacity(self.algorithm.len() + 1 + 2 * sum.as_ref().len());
        text.push_str(self.algorithm);
        text.push(':');
        for byte in sum.as_ref() {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
            }
        }
        Digest { text: text.into(), colon: self.algorithm.len() }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hasher({})", self.algorithm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_lower_case_hex_of_known_algorithms_is_a_digest() {
        let good = format!("sha256:{}", "ab".repeat(32));
        assert_eq!(good.parse::<Digest>().unwrap().hex(), "ab".repeat(32));
        for bad in [
            "",
            "sha256:",
            "sha256:../../x",
            &good.to_uppercase(),
            &good[..70],
            "md5:00",
            &format!("{good}0"),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn digests_equal_the_published_vectors() {
        assert_eq!(
            Digest::of(b"abc").as_str(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(Digest::of(b"abc").matches(b"abc") && !Digest::of(b"abc").matches(b"abd"));
    }
}
