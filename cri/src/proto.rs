//! The generated wire types, client and server of the CRI v1 and of the administration service.
//!
//! The schema is `proto/runtime/v1/api.proto`; maps are ordered so that equal states encode to equal bytes.

/// `runtime.v1`: what the kubelet speaks.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::too_many_lines)]
mod generated {
    tonic::include_proto!("runtime.v1");
}
mod lists;

pub use generated::*;
pub use lists::*;

/// `berth.admin.v1`: what `berth jobs` speaks.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod admin {
    tonic::include_proto!("berth.admin.v1");
}

/// The encoded `FileDescriptorSet` of both schemas, for reflection over every field.
pub const SCHEMA: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/schema.binpb"));

/// Shows who logs in where; never a password, a token, or whether one is set.
impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

/// As above.
impl std::fmt::Debug for admin::Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_of_a_pull_request_never_shows_a_secret() {
        let auth = AuthConfig {
            username: "alice".into(),
            password: "SECRET-1".into(),
            auth: "SECRET-2".into(),
            server_address: "registry.example".into(),
            identity_token: "SECRET-3".into(),
            registry_token: "SECRET-4".into(),
        };
        let shown = format!("{:?}", PullImageRequest { auth: Some(auth), ..Default::default() });
        assert!(shown.contains("alice") && shown.contains("registry.example"), "{shown}");
        assert!(!shown.contains("SECRET"), "{shown}");
    }

    #[test]
    fn schema_has_all_43_rpcs() {
        use prost::Message;
        let set = prost_types::FileDescriptorSet::decode(SCHEMA).unwrap();
        let rpcs = |package: &str| -> usize {
            let files = set.file.iter().filter(|f| f.package() == package);
            files.flat_map(|f| &f.service).map(|s| s.method.len()).sum()
        };
        assert_eq!(rpcs("runtime.v1"), 43);
    }
}
