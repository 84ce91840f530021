//! The server side of SPDY/3.1 as Kubernetes clients speak it.
//!
//! Theirs is SPDY without flow control: no window is kept on either side, and what slows a sender down is TCP alone. So
//! a stream whose reader is slow stops the whole connection from being read once its backlog is full
//! ([`BACKLOG`](super::pipe::BACKLOG)); nothing else could be done that bounds memory and loses no byte. Writing never
//! waits for reading.
//!
//! [`frame`] and [`headers`] turn bytes into values and back; [`connection`] holds the streams; [`reader`] is the loop
//! that reads the client's frames.

#[cfg(test)]
pub(super) use dictionary::dictionary;

mod connection;
mod dictionary;
mod frame;
mod headers;
mod reader;

pub(super) use connection::{Connection, Offer, Sender};
pub(super) use frame::HEAD;
pub(super) use headers::Headers;
pub(super) use reader::{ReadError, read};

#[cfg(test)]
mod tests;
