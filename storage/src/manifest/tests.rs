//! Promises of the manifest reader.

use super::*;

fn digest() -> Digest {
    Digest::of(b"x")
}

fn entry(os: &str, architecture: &str, variant: &str) -> Descriptor {
    Descriptor {
        media_type: OCI_MANIFEST.into(),
        digest: Digest::of(format!("{os}{architecture}{variant}").as_bytes()),
        size: 1,
        urls: vec![],
        platform: Some(Platform {
            architecture: architecture.into(),
            os: os.into(),
            variant: variant.into(),
        }),
        annotations: BTreeMap::new(),
    }
}

#[test]
fn an_index_yields_this_machines_platform_first_on_ties_and_never_an_attestation() {
    let host = Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() };
    let mut attestation = entry("linux", "amd64", "");
    attestation.annotations.insert("vnd.docker.reference.type".into(), "attestation-manifest".into());
    let mut second = entry("linux", "amd64", "");
    second.size = 2;
    let entries = [
        entry("windows", "amd64", ""),
        entry("linux", "386", ""),
        attestation,
        entry("linux", "amd64", ""),
        second,
    ];
    let chosen = select(&entries, &host, &digest()).unwrap();
    assert_eq!((chosen.size, chosen.platform.as_ref().unwrap().architecture.as_str()), (1, "amd64"));

    let arm = [entry("linux", "arm", "v6"), entry("linux", "arm", "v7")];
    let arm_host = Platform { architecture: "arm64".into(), ..host.clone() };
    assert_eq!(select(&arm, &arm_host, &digest()).unwrap().platform.as_ref().unwrap().variant, "v7");

    let error = select(&[entry("linux", "s390x", "")], &host, &digest()).unwrap_err();
    assert!(
        error.to_string().contains("linux/amd64") && error.to_string().contains("linux/s390x"),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn a_document_that_is_manifest_and_index_at_once_is_refused() {
    let d = format!(r#"{{"digest":"{}","size":1}}"#, digest());
    let both = format!(r#"{{"schemaVersion":2,"config":{d},"layers":[],"manifests":[]}}"#);
    assert!(matches!(parse(both.as_bytes(), &digest(), ""), Err(ManifestError::MediaType { .. })));
    let lying = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","config":{d},"layers":[]}}"#);
    assert!(matches!(parse(lying.as_bytes(), &digest(), ""), Err(ManifestError::MediaType { .. })));
}

#[test]
fn schema_1_is_refused_with_a_hint() {
    let error = parse(br#"{"schemaVersion":1}"#, &digest(), "").unwrap_err();
    assert!(error.to_string().contains("schema 1"), "{error}");
}

#[test]
fn nulls_and_unknown_fields_in_a_config_are_harmless_and_a_wrong_rootfs_type_is_not() {
    let text = br#"{"new":1,"config":{"Env":null,"Cmd":["a"],"Volumes":{"/v":{}},"Labels":null},
                    "rootfs":{"type":"layers","diff_ids":null}}"#;
    let config = Config::parse(text, &digest()).unwrap().process();
    assert_eq!(
        (config.cmd, config.volumes, config.env),
        (vec!["a".to_owned()], vec!["/v".to_owned()], vec![])
    );
    let wrong = br#"{"rootfs":{"type":"squash","diff_ids":[]}}"#;
    assert!(matches!(Config::parse(wrong, &digest()), Err(ManifestError::RootfsType { .. })));
}

#[test]
fn layers_and_diff_ids_must_pair_up_and_limits_hold() {
    let d = format!(r#"{{"digest":"{}","size":1}}"#, digest());
    let manifest = |config: &str, layers: usize| {
        format!(
            r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#,
            vec![d.as_str(); layers].join(",")
        )
    };
    let Parsed::Manifest(one) = parse(manifest(&d, 1).as_bytes(), &digest(), OCI_MANIFEST).unwrap() else {
        panic!()
    };
    let empty = Config::parse(br#"{"rootfs":{"type":"layers"}}"#, &digest()).unwrap();
    assert!(matches!(one.diff_ids(&empty), Err(ManifestError::LayerCount { layers: 1, diff_ids: 0, .. })));
    assert!(matches!(parse(manifest(&d, 513).as_bytes(), &digest(), ""), Err(ManifestError::Limit { .. })));
    let big = format!(r#"{{"digest":"{}","size":9000000}}"#, digest());
    assert!(matches!(parse(manifest(&big, 0).as_bytes(), &digest(), ""), Err(ManifestError::Limit { .. })));
}
