//! `suites [SUITE…]`: runs suites on this machine, which should be a private one (`tests/machine`).

use std::process::ExitCode;

use tests::report::{Report, line};
use tests::suites;
use tests::world::World;

fn main() -> ExitCode {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let world = match World::open() {
        Ok(world) => world,
        Err(error) => {
            line(format_args!("suites: {error:#}"));
            return ExitCode::FAILURE;
        }
    };
    let mut report = Report::default();
    for (name, run) in suites::ALL {
        let named = asked.iter().any(|word| word == name);
        if named || (asked.is_empty() && !suites::EXTRA.contains(&name)) {
            report.suite(name);
            if let Err(error) = run(&world, &mut report) {
                report.record("the suite can run", 0.0, Some(format!("{error:#}")));
            }
        }
    }
    if report.failures() == 0 {
        let _ = std::fs::remove_dir_all(&world.dir);
    } else {
        // The logs stay for whoever looks into it; the images can be made again.
        let _ = std::fs::remove_dir_all(world.dir.join("images"));
        line(format_args!("\nlogs: {}", world.dir.display()));
    }
    if report.close() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
