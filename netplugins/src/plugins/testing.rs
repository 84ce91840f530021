//! What the plugins' tests share.

use std::path::PathBuf;

use serde_json::Value;

use super::{Conf, Request};
use crate::cni::chain::Target;

/// A request for the interface `eth0` of container `c1`, of version 1.0.0 and network `n` unless `conf` says otherwise.
pub(super) fn request(command: &str, mut conf: Value) -> Request {
    if let Some(object) = conf.as_object_mut() {
        object.entry("name").or_insert_with(|| "n".into());
        object.entry("cniVersion").or_insert_with(|| "1.0.0".into());
    }
    let target = Target {
        container: "c1",
        netns: None,
        interface: "eth0",
        args: "",
        capabilities: &serde_json::Map::new(),
    };
    Request::in_process(command, Some(&target), &[PathBuf::from("/nowhere")], super::no_tap, &conf).unwrap()
}

/// A configuration.
pub(super) fn conf(value: Value) -> Conf {
    Conf::new(value).unwrap()
}
