//! Where in a file something is wrong: every error of a configuration file names file, line and column.

use std::ops::Range;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::super::RegistryError;

/// A file being read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

// === impl Source ===

impl Source<'_> {
    /// The file as what it should be.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, RegistryError> {
        toml::from_str(self.text).map_err(|error| {
            let problem = error.message().trim().replace('\n', ", ");
            self.wrong(error.span().unwrap_or(0..0), problem)
        })
    }

    /// Something is wrong at these bytes.
    pub(super) fn wrong(&self, at: Range<usize>, problem: impl Into<String>) -> RegistryError {
        let place = place(self.text, at.start);
        RegistryError::Config { path: self.path.to_owned(), place: Some(place), problem: problem.into() }
    }
}

/// Line and column, both from 1; columns are characters.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let mut before = offset.min(text.len());
    while !text.is_char_boundary(before) {
        before -= 1;
    }
    let head = &text[..before];
    let line_start = head.rfind('\n').map_or(0, |at| at + 1);
    (head.matches('\n').count() + 1, head[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns_count_from_one_and_in_characters() {
        let text = "a\nüb = x\n";
        assert_eq!(place(text, 0), (1, 1));
        assert_eq!(place(text, 2), (2, 1));
        assert_eq!(place(text, 4), (2, 2), "two bytes, one character");
        assert_eq!(place(text, 3), (2, 1), "inside a character");
        assert_eq!(place(text, 999), (3, 1));
    }
}
