//! Results of every version of the CNI specification, read and written.

use super::*;

fn newest() -> Success {
    let text = r#"{"cniVersion":"1.1.0",
        "interfaces":[{"name":"br0"},{"name":"eth0","mac":"0a:58:00:00:00:01","mtu":1400,"sandbox":"/run/netns/x"}],
        "ips":[{"interface":1,"address":"10.0.0.2/24","gateway":"10.0.0.1"},{"interface":1,"address":"fd00::2/64"},
               {"interface":0,"address":"10.0.0.1/24"}],
        "routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1","mtu":1300},{"dst":"::/0"}],"dns":{"nameservers":["10.0.0.9"]}}"#;
    Success::decode(&serde_json::from_str(text).unwrap(), "1.1.0").unwrap()
}

#[test]
fn every_version_reads_its_own_writing() {
    for version in VERSIONS {
        let written = newest().encode(version).unwrap();
        assert_eq!(written["cniVersion"], version);
        let read = Success::decode(&written, "1.1.0").unwrap();
        assert_eq!(read.encode(version).unwrap(), written, "{version}");
        assert_eq!(read.dns, newest().dns);
    }
}

#[test]
fn each_version_has_its_own_shape() {
    let at = |version| newest().encode(version).unwrap();
    assert_eq!(at("1.1.0")["routes"][0]["mtu"], 1300);
    assert_eq!(at("1.1.0")["interfaces"][1]["mtu"], 1400);
    assert_eq!(at("1.0.0")["routes"][0].get("mtu"), None);
    assert_eq!(at("1.0.0")["ips"][0].get("version"), None);
    assert_eq!(at("0.4.0")["ips"][1]["version"], "6");
    let old = at("0.2.0");
    assert_eq!(old["ip4"]["ip"], "10.0.0.2/24");
    assert_eq!(old["ip4"]["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}]));
    assert_eq!(old["ip6"]["ip"], "fd00::2/64");
    assert_eq!(old.get("interfaces"), None);
    assert!(Success::default().encode("0.2.0").is_err());
    assert_eq!(Success::default().encode("1.0.0").unwrap(), json!({"cniVersion": "1.0.0"}));
    assert_eq!(Success::default().encode("0.3.1").unwrap(), json!({"cniVersion": "0.3.1", "dns": {}}));
}

#[test]
fn the_pods_addresses_are_those_inside() {
    let inside: Vec<String> = newest().pod_addresses().into_iter().map(subnet_text).collect();
    assert_eq!(inside, ["10.0.0.2/24", "fd00::2/64"]);
}

#[test]
fn garbage_is_refused_and_says_why() {
    for (text, why) in [
        ("null", "not an object"),
        ("[]", "not an object"),
        (r#"{"cniVersion":"7.0.0"}"#, "7.0.0 is not known"),
        (r#"{"ips":{}}"#, "\"ips\" is not a list"),
        (r#"{"ips":[{"address":"10.0.0.1/33"}]}"#, "\"10.0.0.1/33\" is not address/length"),
        (r#"{"ips":[{}]}"#, "no \"address\""),
        (r#"{"interfaces":[1]}"#, "not an object"),
        (r#"{"routes":[{"dst":"x"}]}"#, "\"x\" is not address/length"),
    ] {
        let error = Success::decode(&serde_json::from_str(text).unwrap(), "1.0.0").unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
}
