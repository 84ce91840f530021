//! Image references and credentials.

use engine::Error;
use engine::spec::ImageSpec;

use super::{no_nul, non_empty, required};
use crate::proto;

/// Longest reference anybody can mean: name 255, tag 128, digest 135 (distribution-spec), with room.
const LONGEST: usize = 1024;

/// Reads an image that must be named.
pub fn image(at: &str, spec: Option<proto::ImageSpec>) -> Result<ImageSpec, Error> {
    let spec = required(at, spec)?;
    let field = format!("{at}.image");
    let image = non_empty(&field, spec.image)?;
    if image.len() > LONGEST {
        return Err(Error::invalid(&field, format_args!("longer than {LONGEST} characters")));
    }
    Ok(ImageSpec {
        image,
        annotations: spec.annotations,
        user_specified_image: no_nul(&format!("{at}.user_specified_image"), spec.user_specified_image)?,
        runtime_handler: spec.runtime_handler,
        image_ref: spec.image_ref,
    })
}

/// Writes an image back.
pub fn encode(spec: &ImageSpec) -> proto::ImageSpec {
    proto::ImageSpec {
        image: spec.image.clone(),
        annotations: spec.annotations.clone(),
        user_specified_image: spec.user_specified_image.clone(),
        runtime_handler: spec.runtime_handler.clone(),
        image_ref: spec.image_ref.clone(),
    }
}

/// Reads credentials; all of them empty is the same as none.
pub fn credentials(auth: Option<proto::AuthConfig>) -> Option<storage::Credentials> {
    let auth = auth?;
    let secrets = [&auth.username, &auth.password, &auth.auth, &auth.identity_token, &auth.registry_token];
    if secrets.iter().all(|s| s.is_empty()) {
        return None;
    }
    Some(storage::Credentials {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
        server_address: auth.server_address,
    })
}
