//! From the error record of a child to a sentence a person can act on.

use std::io;

use super::child::{Detail, Failure};
use super::plan::{self, Step};
use crate::error::{Error, Kind};

/// Explains a failure of a step of this plan.
pub(crate) fn explain(plan: &[u8], failure: Failure) -> Error {
    let step = plan::steps(plan).and_then(|mut steps| steps.nth(failure.step as usize));
    let cause = io::Error::from_raw_os_error(failure.errno);
    let Some(step) = step else {
        return Error::with(Kind::Internal, "the process could not be prepared", cause);
    };
    let object = step.object();
    match (&step, failure.errno, failure.detail) {
        (Step::Exec { .. }, _, Detail::Interpreter) => problem(format!(
            "command \"{object}\" is in the image, but the interpreter it names (its #! line or ELF loader) is not"
        )),
        (Step::Exec { environment, .. }, libc::ENOENT | libc::ENOTDIR, _) => {
            problem(not_found(&object, environment))
        }
        (Step::Exec { .. }, libc::EACCES, _) => problem(format!(
            "command \"{object}\" is not executable by the container's user (or is a directory)"
        )),
        (Step::Exec { .. }, libc::ENOEXEC, _) => problem(format!(
            "command \"{object}\" is not a program for this machine: wrong architecture, or a script without #!"
        )),
        (Step::Exec { .. }, libc::E2BIG, _) => {
            problem("arguments and environment are too long for the kernel".into())
        }
        (Step::Chdir { .. }, _, Detail::Outside) => {
            problem(format!("working directory \"{object}\" lies outside of the container"))
        }
        (Step::Chdir { .. }, libc::ENOENT, _) => {
            problem(format!("working directory \"{object}\" does not exist in the container"))
        }
        (Step::Chdir { .. }, libc::ENOTDIR, _) => {
            problem(format!("working directory \"{object}\" is not a directory"))
        }
        (_, _, Detail::Directory) => {
            let directory = plan::steps(plan).and_then(|mut s| s.find(|s| matches!(s, Step::Chdir { .. })));
            let directory = directory.map(|step| step.object()).unwrap_or_default();
            problem(format!(
                "working directory \"{directory}\" cannot be entered by the container's user: {cause}"
            ))
        }
        (_, _, Detail::InProc) => {
            problem(format!("nothing can be mounted at \"{object}\": it leads into /proc"))
        }
        (Step::Hook { .. }, code, Detail::Hook) if code == libc::ETIMEDOUT => {
            Error::new(Kind::FailedPrecondition, format!("hook \"{object}\" did not end in time"))
        }
        (Step::Hook { .. }, code, Detail::Hook) => {
            Error::new(Kind::FailedPrecondition, format!("hook \"{object}\" ended with code {code}"))
        }
        (Step::Run { arguments, .. }, code, Detail::Hook) => ran(arguments, code),
        (_, _, Detail::Symlink) => {
            problem(format!("the image has a symbolic link at \"{object}\", where Berth mounts"))
        }
        (step, _, _) if object.is_empty() => {
            Error::with(Kind::Internal, format!("cannot {}", step.words()), cause)
        }
        (step, _, _) => Error::with(Kind::Internal, format!("cannot {} \"{object}\"", step.words()), cause),
    }
}

/// An external runtime that did not do what it was told.
fn ran(arguments: &[u8], code: i32) -> Error {
    let words: Vec<_> = plan::strings(arguments).map(|word| word.to_string_lossy()).collect();
    let command = words.join(" ");
    if code == libc::ETIMEDOUT {
        return Error::new(Kind::DeadlineExceeded, format!("{command} did not end in time and was killed"));
    }
    Error::new(Kind::FailedPrecondition, format!("{command} ended with code {code}"))
}

/// The request cannot work with this image.
fn problem(text: String) -> Error {
    Error::new(Kind::InvalidArgument, text)
}

fn not_found(command: &str, environment: &[u8]) -> String {
    if command.contains('/') {
        return format!("command \"{command}\" does not exist in the image");
    }
    let path = plan::strings(environment).find_map(|e| e.to_bytes().strip_prefix(b"PATH="));
    let path = String::from_utf8_lossy(path.unwrap_or_default()).into_owned();
    format!("command \"{command}\" not found in the image (PATH={path})")
}
