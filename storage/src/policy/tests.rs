//! Scopes and identities as tables; what is not built is refused by name.

use super::*;

fn reference(text: &str) -> ImageRef {
    text.parse().unwrap()
}

fn policy(text: &str) -> Result<Policy, PolicyError> {
    Policy::parse(text, Path::new("/etc/containers/policy.json"))
}

#[test]
fn the_most_specific_scope_decides() {
    let policy = policy(
        r#"{"default": [{"type": "reject"}], "transports": {
            "docker": {
                "": [{"type": "insecureAcceptAnything"}],
                "a.example": [{"type": "reject"}],
                "a.example/team": [{"type": "insecureAcceptAnything"}],
                "a.example/team/secret": [{"type": "reject"}],
                "a.example/team/secret:open": [{"type": "insecureAcceptAnything"}],
                "*.wild.example": [{"type": "reject"}]
            },
            "docker-archive": {"": [{"type": "insecureAcceptAnything"}]}}}"#,
    )
    .unwrap();
    for (image, scope, accepted) in [
        ("a.example/x", "a.example", false),
        ("a.example/team/x/y", "a.example/team", true),
        ("a.example/teams/x", "a.example", false),
        ("a.example/team/secret", "a.example/team/secret", false),
        ("a.example/team/secret:open", "a.example/team/secret:open", true),
        ("deep.sub.wild.example/x", "*.wild.example", false),
        ("wild.example/x", "all registries", true),
        ("busybox", "all registries", true),
    ] {
        let image = reference(image);
        assert_eq!(
            (policy.requirements(&image).0, policy.accepts_all_of(&image)),
            (scope, accepted),
            "{image}"
        );
    }
}

#[test]
fn a_policy_that_is_not_understood_lets_nothing_in() {
    for (text, hint) in [
        ("{", "line 1"),
        (r#"{"transports": {}}"#, "default"),
        (r#"{"default": []}"#, "no requirement"),
        (r#"{"default": [{"type": "signedBy"}]}"#, "GPG"),
        (r#"{"default": [{"type": "sigstoreSigned"}]}"#, "names no key"),
        (r#"{"default": [{"type": "sigstoreSigned", "fulcio": {}}]}"#, "fulcio"),
        (r#"{"default": [{"type": "sigstoreSigned", "keyPath": "/no/such.pub"}]}"#, "/no/such.pub"),
        (r#"{"default": [{"type": "sigstoreSigned", "keyData": "eA=="}]}"#, "keyData"),
        (r#"{"default": [{"type": "accept"}]}"#, "accept"),
        (r#"{"default": [{"type": "reject", "surprise": 1}]}"#, "surprise"),
    ] {
        let error = policy(text).map(|_| text).unwrap_err();
        assert!(error.to_string().contains(hint), "{text}: {error}");
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    }
}

#[test]
fn a_signature_for_another_image_is_no_signature() {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let tagged = reference("a.example/x/app:1");
    let by_digest = reference(&format!("a.example/x/app@{digest}"));
    let identity = |json: &str| Identity::parse(serde_json::from_str(json).unwrap()).unwrap();
    let default = Identity::default();
    assert!(default.fits(&tagged, "a.example/x/app:1") && !default.fits(&tagged, "a.example/x/app"));
    assert!(!default.fits(&tagged, "a.example/x/app:2") && default.fits(&by_digest, "a.example/x/app:2"));
    let repository = identity(r#"{"type": "matchRepository"}"#);
    assert!(repository.fits(&tagged, "a.example/x/app") && !repository.fits(&tagged, "a.example/x/other"));
    let exact = identity(r#"{"type": "matchExact"}"#);
    assert!(exact.fits(&tagged, "a.example/x/app:1") && !exact.fits(&by_digest, "a.example/x/app:1"));
    let this = identity(r#"{"type": "exactReference", "dockerReference": "b.example/app:9"}"#);
    assert!(this.fits(&tagged, "b.example/app:9") && !this.fits(&tagged, "a.example/x/app:1"));
    let here = identity(r#"{"type": "exactRepository", "dockerRepository": "b.example/app"}"#);
    assert!(here.fits(&tagged, "b.example/app:7") && !here.fits(&tagged, "c.example/app:7"));
    let remap =
        identity(r#"{"type": "remapIdentity", "prefix": "a.example/x", "signedPrefix": "up.example"}"#);
    assert!(remap.fits(&tagged, "up.example/app:1") && !remap.fits(&tagged, "a.example/x/app:1"));
    assert!(remap.fits(&reference("other.example/app:1"), "other.example/app:1"));
    assert!(!default.fits(&tagged, "not a name at all"));
}
