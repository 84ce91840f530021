//! D-Bus as a server of tests takes it apart: by the signatures in the messages, byte for byte, padding included.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// A value off the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Any {
    Byte(u8),
    Flag(bool),
    Number(u64),
    Text(String),
    List(Vec<Any>),
    Pair(Vec<Any>),
    Variant(String, Box<Any>),
}

impl Any {
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            other => panic!("{other:?} is no text"),
        }
    }

    pub fn list(&self) -> &[Any] {
        match self {
            Self::List(all) | Self::Pair(all) => all,
            other => panic!("{other:?} is no list"),
        }
    }

    pub fn shown(&self) -> String {
        match self {
            Self::Byte(n) => n.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::Number(u64::MAX) => "infinity".into(),
            Self::Number(n) => n.to_string(),
            Self::Text(text) => text.clone(),
            Self::List(all) | Self::Pair(all) => all.iter().map(Self::shown).collect::<Vec<_>>().join(","),
            Self::Variant(signature, value) => format!("{signature} {}", value.shown()),
        }
    }
}

/// SASL EXTERNAL, as root. systemd reads up to 256 bytes while it authenticates, and overlooks a message that comes along with a late
/// BEGIN until there is more to read: so BEGIN has to be there before OK is said.
pub fn greet(stream: &mut UnixStream) -> bool {
    let (mut said, mut byte) = (Vec::new(), [0]);
    while !said.ends_with(b"BEGIN\r\n") {
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return false;
        }
        said.push(byte[0]);
    }
    let expected = b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n";
    assert_eq!(said, expected, "the uid 0 in hexadecimal digits of its decimal ones");
    stream.write_all(b"OK 0123456789abcdef0123456789abcdef\r\n").is_ok()
}

/// A method call, taken apart.
pub struct Call {
    pub serial: u32,
    pub path: String,
    pub member: String,
    pub destination: String,
    pub signature: String,
    pub body: Vec<Any>,
}

impl Call {
    pub fn read(stream: &mut UnixStream) -> Option<Self> {
        let mut head = [0; 16];
        stream.read_exact(&mut head).ok()?;
        assert_eq!((head[0], head[1], head[3]), (b'l', 1, 1), "a little-endian call of version 1");
        let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let (body, fields) = (number(4) as usize, number(12) as usize);
        let mut rest = vec![0; fields.next_multiple_of(8) + body];
        stream.read_exact(&mut rest).ok()?;
        assert!(rest[fields..fields.next_multiple_of(8)].iter().all(|b| *b == 0), "padding is zero");
        // Alignment counts from the message's beginning, of which these are a multiple of eight.
        let mut reader = Wire { bytes: &rest[..fields], at: 0 };
        let mut all = BTreeMap::new();
        while reader.at < fields {
            let field = reader.value(&mut "(yv)".chars().collect());
            let [Any::Byte(code), Any::Variant(kind, value)] = field.list() else { panic!("{field:?}") };
            let wanted = match code {
                1 => "o",
                8 => "g",
                _ => "s",
            };
            assert_eq!(kind, wanted, "type of field {code}");
            all.insert(*code, value.text().to_owned());
        }
        let mut take = |code: u8| all.remove(&code).unwrap_or_default();
        let signature = take(8);
        let mut reader = Wire { bytes: &rest[fields.next_multiple_of(8)..], at: 0 };
        let mut types: VecDeque<char> = signature.chars().collect();
        let mut values = Vec::new();
        while !types.is_empty() {
            values.push(reader.value(&mut types));
        }
        assert_eq!(reader.at, body, "nothing behind the body");
        let interface = take(2);
        let member = take(3);
        assert!(interface.starts_with("org.freedesktop."), "{interface}");
        let (path, destination) = (take(1), take(6));
        Some(Self { serial: number(8), path, member, destination, signature, body: values })
    }
}

/// Reads values by their types.
struct Wire<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Wire<'_> {
    fn align(&mut self, to: usize) {
        let next = self.at.next_multiple_of(to);
        assert!(self.bytes[self.at..next].iter().all(|b| *b == 0), "padding is zero");
        self.at = next;
    }

    fn u32(&mut self) -> u32 {
        self.align(4);
        self.at += 4;
        u32::from_le_bytes(self.bytes[self.at - 4..self.at].try_into().unwrap())
    }

    fn text(&mut self, length: usize) -> String {
        let text = String::from_utf8(self.bytes[self.at..self.at + length].to_vec()).unwrap();
        assert_eq!(self.bytes[self.at + length], 0, "a text has a zero behind it");
        self.at += length + 1;
        text
    }

    fn byte(&mut self) -> u8 {
        self.at += 1;
        self.bytes[self.at - 1]
    }

    /// Takes one complete type off the front, and its value.
    fn value(&mut self, types: &mut VecDeque<char>) -> Any {
        match types.pop_front().unwrap() {
            'y' => Any::Byte(self.byte()),
            'b' => match self.u32() {
                flag @ (0 | 1) => Any::Flag(flag == 1),
                other => panic!("{other} is neither true nor false"),
            },
            'u' => Any::Number(self.u32().into()),
            't' => {
                self.align(8);
                self.at += 8;
                Any::Number(u64::from_le_bytes(self.bytes[self.at - 8..self.at].try_into().unwrap()))
            }
            's' | 'o' => {
                let length = self.u32() as usize;
                Any::Text(self.text(length))
            }
            'g' => {
                let length = self.byte().into();
                Any::Text(self.text(length))
            }
            'v' => {
                let length = self.byte().into();
                let signature = self.text(length);
                let mut inner: VecDeque<char> = signature.chars().collect();
                let value = self.value(&mut inner);
                assert!(inner.is_empty(), "a variant has one type: {signature}");
                Any::Variant(signature, value.into())
            }
            'a' => {
                let length = self.u32() as usize;
                self.align(if types[0] == '(' || types[0] == 't' {
                    8
                } else if types[0] == 'y' {
                    1
                } else {
                    4
                });
                let end = self.at + length;
                let (mut all, element) = (Vec::new(), first_type(types));
                while self.at < end {
                    all.push(self.value(&mut element.clone()));
                }
                assert_eq!(self.at, end, "an array ends with its last element");
                types.drain(..element.len());
                Any::List(all)
            }
            '(' => {
                self.align(8);
                let mut all = Vec::new();
                while types[0] != ')' {
                    all.push(self.value(types));
                }
                types.pop_front();
                Any::Pair(all)
            }
            other => panic!("no value of type {other} should be sent"),
        }
    }
}

/// The first complete type of a signature.
fn first_type(types: &VecDeque<char>) -> VecDeque<char> {
    let (mut depth, mut length) = (0, 0);
    for kind in types {
        length += 1;
        match kind {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 && *kind != 'a' {
            break;
        }
    }
    types.iter().take(length).copied().collect()
}

pub fn properties(list: &Any) -> BTreeMap<String, String> {
    let pair = |pair: &Any| (pair.list()[0].text().to_owned(), pair.list()[1].shown());
    let all: Vec<_> = list.list().iter().map(pair).collect();
    let map: BTreeMap<_, _> = all.iter().cloned().collect();
    assert_eq!(map.len(), all.len(), "no property is told twice: {all:?}");
    map
}

/// A text or path, as it is in a body.
pub fn put(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

pub fn text_body(text: &str) -> (&'static str, Vec<u8>) {
    ("s", put(text))
}

pub fn field_u32(value: u32) -> Vec<u8> {
    [&b"\x01u\0"[..], &value.to_le_bytes()].concat()
}

pub fn field_text(kind: u8, text: &str) -> Vec<u8> {
    [&[1, kind, 0][..], &put(text)].concat()
}

/// The end of a job.
pub fn removed(stream: &mut UnixStream, sender: &str, job: &str, unit: &str, result: &str) {
    let mut body = 7u32.to_le_bytes().to_vec();
    for text in [job, unit, result] {
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend(put(text));
    }
    let fields = [
        (1, field_text(b'o', "/org/freedesktop/systemd1")),
        (2, field_text(b's', "org.freedesktop.systemd1.Manager")),
        (3, field_text(b's', "JobRemoved")),
        (7, field_text(b's', sender)),
    ];
    send(stream, 4, &fields, &("uoss", body));
}

pub fn send(stream: &mut UnixStream, kind: u8, fields: &[(u8, Vec<u8>)], body: &(&str, Vec<u8>)) {
    let mut bytes = Vec::new();
    let signature =
        [&[1, b'g', 0, u8::try_from(body.0.len()).unwrap()][..], body.0.as_bytes(), &[0]].concat();
    for (code, value) in fields.iter().cloned().chain((!body.0.is_empty()).then_some((8, signature))) {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.push(code);
        bytes.extend(value);
    }
    let number = |n: usize| u32::try_from(n).unwrap().to_le_bytes();
    let mut message =
        [&[b'l', kind, 0, 1][..], &number(body.1.len()), &number(99), &number(bytes.len())].concat();
    message.extend(&bytes);
    message.resize(message.len().next_multiple_of(8), 0);
    message.extend(&body.1);
    // Whoever asked may have given up.
    let _ = stream.write_all(&message);
}
