//! Signatures as cosign stores them beside an image (cosign, SIGNATURE_SPEC.md): a manifest under the tag `sha256-<hex>.sig` whose layers
//! are the signed texts, each with its signature as annotation. Only keys are trusted here; certificates and logs are not read.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;

use super::PolicyError;
use super::identity::Identity;
use crate::digest::Digest;
use crate::manifest::{self, Parsed};
use crate::reference::ImageRef;
use crate::registry::{RegistryError, Repository};

/// Signatures looked at.
const SIGNATURES_MAX: usize = 64;
/// Largest signed text, in bytes.
const PAYLOAD_MAX: u64 = 64 << 10;
/// Annotation of a layer: base64 of the signature over it.
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";

/// A public key: an algorithm, and the key as ring takes it.
#[derive(Clone)]
pub(crate) struct Key {
    algorithm: &'static dyn VerificationAlgorithm,
    bytes: Vec<u8>,
}

/// What is signed ("simple signing").
#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: SignedImage,
    identity: SignedIdentity,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SignedImage {
    docker_manifest_digest: Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SignedIdentity {
    docker_reference: String,
}

// === impl Key ===

impl Key {
    /// A PEM `PUBLIC KEY` (RFC 7468): ECDSA on P-256 or P-384, or Ed25519.
    pub(crate) fn parse(pem: &str) -> Result<Self, String> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).map_err(|e| e.to_string())?;
        // The headers of the structure are the same bytes for every key of a kind (RFC 5480, RFC 8410).
        let kinds: [(&[u8], usize, &'static dyn VerificationAlgorithm); 3] = [
            (P256, 65, &signature::ECDSA_P256_SHA256_ASN1),
            (P384, 97, &signature::ECDSA_P384_SHA384_ASN1),
            (ED25519, 32, &signature::ED25519),
        ];
        for (header, length, algorithm) in kinds {
            if let Some(bytes) = der.strip_prefix(header).filter(|bytes| bytes.len() == length) {
                return Ok(Self { algorithm, bytes: bytes.to_vec() });
            }
        }
        Err("it is no P-256, P-384 or Ed25519 key".into())
    }

    fn has_signed(&self, text: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm, &self.bytes).verify(text, signature).is_ok()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({:?})", self.algorithm)
    }
}

const P256: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const P384: &[u8] = &[
    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81,
    0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
];
const ED25519: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Whether one of the keys has signed a digest for this image; `Err(None)`: there is no signature at all, `Err(Some)`: none that counts.
pub(super) async fn check(
    repository: &Repository,
    image: &ImageRef,
    digest: &Digest,
    keys: &[Key],
    identity: &Identity,
) -> Result<Result<(), Option<String>>, PolicyError> {
    let fetch = |error: RegistryError| PolicyError::Fetch(Box::new(error));
    let tag = format!("{}-{}.sig", digest.algorithm(), digest.hex());
    let fetched = match repository.tagged(&tag).await {
        Ok(fetched) => fetched,
        Err(error) if error.is_absence() => return Ok(Err(None)),
        Err(error) => return Err(fetch(error)),
    };
    let parsed = manifest::parse(&fetched.bytes, &fetched.digest, &fetched.content_type);
    let Ok(Parsed::Manifest(manifest)) = parsed else {
        return Ok(Err(Some("what lies in the signatures' place is no manifest".into())));
    };
    let mut why = None;
    for layer in manifest.layers.iter().take(SIGNATURES_MAX) {
        let Some(signature) = layer.annotations.get(ANNOTATION).and_then(|text| STANDARD.decode(text).ok())
        else {
            continue;
        };
        let payload = repository.small_blob(layer, PAYLOAD_MAX).await.map_err(fetch)?;
        match judge(&payload, &signature, image, digest, keys, identity) {
            Ok(()) => return Ok(Ok(())),
            Err(problem) => why = Some(problem),
        }
    }
    Ok(Err(why))
}

/// One signature and its text.
fn judge(
    payload: &[u8],
    signature: &[u8],
    image: &ImageRef,
    digest: &Digest,
    keys: &[Key],
    identity: &Identity,
) -> Result<(), String> {
    if !keys.iter().any(|key| key.has_signed(payload, signature)) {
        return Err("none of the keys has signed it".into());
    }
    // From here on the text is the signer's word.
    let payload: Payload =
        serde_json::from_slice(payload).map_err(|e| format!("the signed text is malformed: {e}"))?;
    let critical = payload.critical;
    if critical.kind != "cosign container image signature" {
        return Err(format!("what is signed is a \"{}\"", critical.kind));
    }
    if critical.image.docker_manifest_digest != *digest {
        return Err(format!("the signature is for {}", critical.image.docker_manifest_digest));
    }
    let name = critical.identity.docker_reference;
    if identity.fits(image, &name) {
        Ok(())
    } else {
        Err(format!("the signature is for an image called \"{name}\""))
    }
}
