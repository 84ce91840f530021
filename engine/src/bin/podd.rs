//! The supervisor alone, for tests of this crate; the shipped binary dispatches to the same entry point.

fn main() -> std::process::ExitCode {
    // The words the driver puts before the pod id: the program's and the role's names.
    engine::exec::podd::main(std::env::args_os().skip(2))
}
