//! The berth binary: all roles are told apart in [`cri::cli`].

fn main() -> std::process::ExitCode {
    cri::cli::main(std::env::args_os())
}
