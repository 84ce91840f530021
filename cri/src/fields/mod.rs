//! What becomes of every field a client may send: honoured, refused, or informational.
//!
//! [`table`] has one row per field of every message reachable from a request; the tests walk the schema, so a new field
//! cannot be forgotten, and send each field alone to see that the row tells the truth. [`render`] makes the reference.

use std::fmt::Write;

pub mod table;

#[cfg(test)]
pub(crate) mod tests;

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It takes effect: where.
    Honoured(&'static str),
    /// Setting it is an error: why.
    Refused(&'static str),
    /// It is read and changes nothing: why not.
    Informational(&'static str),
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Message of the schema.
    pub message: &'static str,
    /// Its field.
    pub field: &'static str,
    /// What becomes of it.
    pub fate: Fate,
}

/// The table as Markdown.
pub fn render() -> String {
    let mut text = String::from("| field | what becomes of it | how, or why |\n|---|---|---|\n");
    for row in table::ROWS {
        let (word, why) = match row.fate {
            Fate::Honoured(why) => ("honoured", why),
            Fate::Refused(why) => ("refused", why),
            Fate::Informational(why) => ("informational", why),
        };
        let _ = writeln!(text, "| `{}.{}` | {word} | {why} |", row.message, row.field);
    }
    text
}
