//! `berth oci` on its own, for this crate's tests.

fn main() -> std::process::ExitCode {
    // Executed again from its sealed copy it is called as the shipped binary is.
    let arguments: Vec<_> = std::env::args_os().skip(1).skip_while(|word| word == "oci").collect();
    engine::oci::main(&arguments)
}
