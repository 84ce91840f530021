//! Compiles the protocol definitions with protox, so that no `protoc` is needed.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/runtime/v1/api.proto", "proto/berth/admin/v1/admin.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    // The schema itself, for the test that walks every field.
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("schema.binpb");
    std::fs::write(out, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .btree_map(".")
        // Its Debug would print passwords and tokens; `proto.rs` has one that does not.
        .skip_debug(["runtime.v1.AuthConfig", "berth.admin.v1.Login"])
        // Archives pass through without a copy.
        .bytes(".berth.admin.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
