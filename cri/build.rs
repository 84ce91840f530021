//! Compiles the protocol definitions with protox, so that no `protoc` is needed.

use std::path::PathBuf;

use prost::Message;

/// Answers that are one list, of items that are encoded already: `proto/lists.rs` has them.
const LISTS: [&str; 4] = [
    "ListPodSandboxResponse",
    "ListContainersResponse",
    "ListContainerStatsResponse",
    "ListPodSandboxStatsResponse",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/runtime/v1/api.proto", "proto/berth/admin/v1/admin.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    // The schema itself, for the test that walks every field.
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("schema.binpb");
    std::fs::write(out, descriptors.encode_to_vec())?;
    let mut build = tonic_prost_build::configure();
    for message in LISTS {
        build = build.extern_path(format!(".runtime.v1.{message}"), format!("crate::proto::{message}"));
    }
    build
        .btree_map(".")
        // Its Debug would print passwords and tokens; `proto.rs` has one that does not.
        .skip_debug(["runtime.v1.AuthConfig", "berth.admin.v1.Login"])
        // Archives pass through without a copy.
        .bytes(".berth.admin.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
