//! Command lines: `--name VALUE`, `--name=VALUE`, switches and operands, in any order.

use std::collections::VecDeque;
use std::ffi::OsString;

/// What is wrong with a command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An option nobody knows.
    #[error("unknown option {0}")]
    Unknown(String),
    /// An option without its value.
    #[error("{0} needs a value")]
    NeedsValue(String),
    /// A switch with a value.
    #[error("{0} takes no value")]
    NoValue(String),
    /// Too many operands.
    #[error("unexpected argument {0}")]
    Unexpected(String),
    /// Not UTF-8.
    #[error("{0} is not UTF-8")]
    Encoding(String),
}

/// One piece of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arg {
    /// `--name` or `-n`, with the value after `=`.
    Option(String, Option<String>),
    /// Anything else.
    Operand(String),
}

/// The arguments that are left.
#[derive(Clone, Debug)]
pub struct Args {
    left: VecDeque<OsString>,
    /// After `--` everything is an operand.
    operands_only: bool,
}

impl Args {
    /// All arguments after the command.
    pub fn new(arguments: &[OsString]) -> Self {
        Self { left: arguments.iter().cloned().collect(), operands_only: false }
    }

    /// The next piece.
    pub fn take(&mut self) -> Result<Option<Arg>, Error> {
        let Some(text) = self.string()? else { return Ok(None) };
        if self.operands_only || !text.starts_with('-') || text == "-" {
            return Ok(Some(Arg::Operand(text)));
        }
        if text == "--" {
            self.operands_only = true;
            return self.take();
        }
        Ok(Some(match text.split_once('=') {
            Some((name, value)) if name.starts_with("--") => {
                Arg::Option(name.to_owned(), Some(value.to_owned()))
            }
            _ => Arg::Option(text, None),
        }))
    }

    /// The value of an option just taken.
    pub fn value(&mut self, name: &str, inline: Option<String>) -> Result<String, Error> {
        match inline {
            Some(value) => Ok(value),
            None => self.string()?.ok_or_else(|| Error::NeedsValue(name.to_owned())),
        }
    }

    fn string(&mut self) -> Result<Option<String>, Error> {
        let next = self.left.pop_front().map(OsString::into_string).transpose();
        next.map_err(|text| Error::Encoding(text.to_string_lossy().into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Args {
        Args::new(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn options_and_operands_are_told_apart() {
        let mut args = args("--root /a x --state=/b -h - -- --not-an-option");
        let option =
            |name: &str, value: Option<&str>| Some(Arg::Option(name.to_owned(), value.map(str::to_owned)));
        let operand = |text: &str| Some(Arg::Operand(text.to_owned()));
        assert_eq!(args.take().unwrap(), option("--root", None));
        assert_eq!(args.value("--root", None).unwrap(), "/a");
        assert_eq!(args.take().unwrap(), operand("x"));
        assert_eq!(args.take().unwrap(), option("--state", Some("/b")));
        assert_eq!(args.take().unwrap(), option("-h", None));
        assert_eq!(args.take().unwrap(), operand("-"));
        assert_eq!(args.take().unwrap(), operand("--not-an-option"));
        assert_eq!(args.take().unwrap(), None);
    }

    #[test]
    fn a_missing_value_is_named() {
        let error = args("").value("--root", None).unwrap_err();
        assert_eq!(error.to_string(), "--root needs a value");
    }
}
