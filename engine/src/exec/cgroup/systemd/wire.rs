//! Messages of D-Bus as far as systemd's manager needs them (dbus.freedesktop.org/doc/dbus-specification.html, "Message Protocol").
//!
//! We write little-endian; what we read says itself which way round it is. Every length in a message is checked against what is there.

/// Largest message that is taken, in bytes: an answer of systemd has a few hundred.
pub(super) const LARGEST: usize = 1 << 20;
/// Bytes of a message before its fields.
pub(super) const FIXED: usize = 16;

/// Kinds of messages.
pub(super) const CALL: u8 = 1;
pub(super) const ANSWER: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;

/// A message that does not read: what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a D-Bus message {0}")]
pub(super) struct Garbled(pub(super) &'static str);

/// The value of a property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// `b`.
    Flag(bool),
    /// `t`.
    Number(u64),
    /// `s`.
    Text(String),
    /// `ay`.
    Bytes(Vec<u8>),
    /// `au`.
    Numbers(Vec<u32>),
}

/// A property of a unit.
pub(super) type Property = (&'static str, Value);

/// The arguments of a call, with their signature.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Body {
    signature: String,
    bytes: Vec<u8>,
}

impl Body {
    /// `s`.
    pub(super) fn text(mut self, text: &str) -> Self {
        self.signature.push('s');
        put_text(&mut self.bytes, text);
        self
    }

    /// `b`.
    pub(super) fn flag(mut self, flag: bool) -> Self {
        self.signature.push('b');
        put_u32(&mut self.bytes, flag.into());
        self
    }

    /// `au`.
    pub(super) fn numbers(mut self, numbers: &[u32]) -> Self {
        self.signature.push_str("au");
        put_numbers(&mut self.bytes, numbers);
        self
    }

    /// `a(sv)`: names with values of any type.
    pub(super) fn properties(mut self, properties: &[Property]) -> Self {
        self.signature.push_str("a(sv)");
        put_array(&mut self.bytes, 8, |out| {
            for (name, value) in properties {
                align(out, 8);
                put_text(out, name);
                put_variant(out, value);
            }
        });
        self
    }

    /// `a(sa(sv))`, empty: units to be made along with another.
    pub(super) fn no_units(mut self) -> Self {
        self.signature.push_str("a(sa(sv))");
        put_array(&mut self.bytes, 8, |_| {});
        self
    }
}

/// A method call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
}

impl Call<'_> {
    /// The whole message.
    pub(super) fn encode(&self, serial: u32, body: &Body) -> Vec<u8> {
        let mut out = vec![b'l', CALL, 0, 1];
        // A body is a few kilobytes.
        put_u32(&mut out, u32::try_from(body.bytes.len()).unwrap_or(u32::MAX));
        put_u32(&mut out, serial);
        put_array(&mut out, 8, |out| {
            let fields = [
                (1, 'o', self.path),
                (2, 's', self.interface),
                (3, 's', self.member),
                (6, 's', self.destination),
                (8, 'g', body.signature.as_str()),
            ];
            for (code, kind, text) in fields.into_iter().filter(|(.., text)| !text.is_empty()) {
                align(out, 8);
                out.push(code);
                put_signature(out, kind.encode_utf8(&mut [0; 4]));
                if kind == 'g' { put_signature(out, text) } else { put_text(out, text) }
            }
        });
        align(&mut out, 8);
        out.extend_from_slice(&body.bytes);
        out
    }
}

fn align(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    align(out, 4);
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_u32(out, u32::try_from(text.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

fn put_signature(out: &mut Vec<u8>, signature: &str) {
    out.push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(signature.as_bytes());
    out.push(0);
}

fn put_numbers(out: &mut Vec<u8>, numbers: &[u32]) {
    put_array(out, 4, |out| numbers.iter().for_each(|n| put_u32(out, *n)));
}

/// An array: its length does not count the padding before its first element, which is there even when there is no element.
fn put_array(out: &mut Vec<u8>, alignment: usize, elements: impl FnOnce(&mut Vec<u8>)) {
    put_u32(out, 0);
    let at = out.len() - 4;
    align(out, alignment);
    let start = out.len();
    elements(out);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

fn put_variant(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Flag(flag) => {
            put_signature(out, "b");
            put_u32(out, (*flag).into());
        }
        Value::Number(number) => {
            put_signature(out, "t");
            align(out, 8);
            out.extend_from_slice(&number.to_le_bytes());
        }
        Value::Text(text) => {
            put_signature(out, "s");
            put_text(out, text);
        }
        Value::Bytes(bytes) => {
            put_signature(out, "ay");
            put_array(out, 1, |out| out.extend_from_slice(bytes));
        }
        Value::Numbers(numbers) => {
            put_signature(out, "au");
            put_numbers(out, numbers);
        }
    }
}

/// A message that came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: u8,
    pub(super) answers: Option<u32>,
    pub(super) interface: String,
    pub(super) member: String,
    pub(super) error: String,
    pub(super) sender: String,
    pub(super) signature: String,
    big: bool,
    body: Vec<u8>,
}

/// Length of a message, from its first [`FIXED`] bytes.
pub(super) fn length(head: &[u8]) -> Result<usize, Garbled> {
    let big = big_endian(head)?;
    let mut reader = Reader { bytes: head, at: 4, big };
    let body = reader.number()? as usize;
    reader.number()?;
    let fields = reader.number()? as usize;
    let length = FIXED + fields.min(LARGEST).next_multiple_of(8) + body.min(LARGEST);
    if length > LARGEST { Err(Garbled("is larger than 1 MiB")) } else { Ok(length) }
}

fn big_endian(head: &[u8]) -> Result<bool, Garbled> {
    match (head.first(), head.get(3)) {
        (Some(b'l'), Some(1)) => Ok(false),
        (Some(b'B'), Some(1)) => Ok(true),
        _ => Err(Garbled("is of no known version or byte order")),
    }
}

impl Message {
    /// Reads a whole message.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Garbled> {
        let big = big_endian(bytes)?;
        let kind = *bytes.get(1).ok_or(Garbled("is cut off"))?;
        let mut message = Self { kind, big, ..Self::default() };
        let mut reader = Reader { bytes, at: 12, big };
        let end = reader.number()? as usize + FIXED;
        if end > bytes.len() {
            return Err(Garbled("is cut off"));
        }
        while reader.at < end {
            reader.align(8)?;
            let code = reader.byte()?;
            let kind = reader.signature()?;
            match (code, kind) {
                (5, "u") => message.answers = Some(reader.number()?),
                (_, "u" | "i") => _ = reader.number()?,
                (_, "y") => _ = reader.byte()?,
                (8, "g") => reader.signature()?.clone_into(&mut message.signature),
                (_, "g") => _ = reader.signature()?,
                (code, "s" | "o") => {
                    let text = reader.text()?.to_owned();
                    match code {
                        2 => message.interface = text,
                        3 => message.member = text,
                        4 => message.error = text,
                        7 => message.sender = text,
                        _ => {}
                    }
                }
                _ => return Err(Garbled("has a field of a type that fields do not have")),
            }
        }
        reader.at = end;
        reader.align(8)?;
        message.body = bytes.get(reader.at..).unwrap_or_default().to_vec();
        Ok(message)
    }

    /// The body, if it is what is expected.
    pub(super) fn body(&self, signature: &str) -> Result<Reader<'_>, Garbled> {
        if self.signature != signature {
            return Err(Garbled("is not of the type that was expected"));
        }
        Ok(Reader { bytes: &self.body, at: 0, big: self.big })
    }

    /// The first text of the body, which is where errors have theirs; else nothing.
    pub(super) fn words(&self) -> &str {
        let mut reader = Reader { bytes: &self.body, at: 0, big: self.big };
        if self.signature.starts_with('s') { reader.text().unwrap_or_default() } else { "" }
    }
}

/// Reads values one after the other.
#[derive(Clone, Debug)]
pub(super) struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
    big: bool,
}

impl<'b> Reader<'b> {
    fn align(&mut self, to: usize) -> Result<(), Garbled> {
        self.at = self.at.next_multiple_of(to);
        if self.at > self.bytes.len() { Err(Garbled("is cut off")) } else { Ok(()) }
    }

    fn take(&mut self, length: usize) -> Result<&'b [u8], Garbled> {
        let end = self.at.checked_add(length).ok_or(Garbled("is cut off"))?;
        let taken = self.bytes.get(self.at..end).ok_or(Garbled("is cut off"))?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Garbled> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// `u`.
    pub(super) fn number(&mut self) -> Result<u32, Garbled> {
        self.align(4)?;
        let bytes = self.take(4)?.try_into().map_err(|_| Garbled("is cut off"))?;
        Ok(if self.big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    /// `s` or `o`.
    pub(super) fn text(&mut self) -> Result<&'b str, Garbled> {
        let length = self.number()? as usize;
        self.ended(length)
    }

    /// `g`.
    pub(super) fn signature(&mut self) -> Result<&'b str, Garbled> {
        let length = self.byte()?.into();
        self.ended(length)
    }

    /// A text and the zero behind it.
    fn ended(&mut self, length: usize) -> Result<&'b str, Garbled> {
        let text = self.take(length)?;
        if self.byte()? != 0 || text.contains(&0) {
            return Err(Garbled("has a text without its end"));
        }
        std::str::from_utf8(text).map_err(|_| Garbled("has a text that is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANAGER: Call<'_> = Call {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        member: "StopUnit",
    };

    /// Written down by hand from the specification, padding and all.
    #[test]
    fn a_call_is_the_bytes_of_the_specification() {
        let call = Call { destination: "d", path: "/p", interface: "a.b", member: "M" };
        let bytes = call.encode(7, &Body::default().text("x.scope").flag(true));
        #[rustfmt::skip]
        let expected = [
            &b"l\x01\0\x01"[..], &16u32.to_le_bytes(), &7u32.to_le_bytes(), &72u32.to_le_bytes(),
            b"\x01\x01o\0", &2u32.to_le_bytes(), b"/p\0", b"\0\0\0\0\0",
            b"\x02\x01s\0", &3u32.to_le_bytes(), b"a.b\0", b"\0\0\0\0",
            b"\x03\x01s\0", &1u32.to_le_bytes(), b"M\0", b"\0\0\0\0\0\0",
            b"\x06\x01s\0", &1u32.to_le_bytes(), b"d\0", b"\0\0\0\0\0\0",
            b"\x08\x01g\0", b"\x02sb\0",
            b"\x07\0\0\0x.scope\0\x01\0\0\0",
        ]
        .concat();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn properties_are_aligned_as_structures_are() {
        let body = Body::default().properties(&[
            ("A", Value::Number(5)),
            ("B", Value::Numbers(vec![9])),
            ("C", Value::Bytes(vec![3])),
        ]);
        #[rustfmt::skip]
        let expected = [
            &65u32.to_le_bytes()[..], b"\0\0\0\0",
            b"\x01\0\0\0A\0", b"\x01t\0", b"\0\0\0\0\0\0\0", &5u64.to_le_bytes(),
            b"\x01\0\0\0B\0", b"\x02au\0", b"\0\0", &4u32.to_le_bytes(), &9u32.to_le_bytes(), b"\0\0\0\0",
            b"\x01\0\0\0C\0", b"\x02ay\0", b"\0\0", &1u32.to_le_bytes(), b"\x03",
        ]
        .concat();
        assert_eq!(body.signature, "a(sv)");
        assert_eq!(body.bytes, expected);
        assert_eq!(Body::default().no_units().bytes, [0; 8], "padding of an empty array");
    }

    #[test]
    fn both_byte_orders_are_read() {
        let fields =
            |n: fn(u32) -> [u8; 4]| [&b"\x05\x01u\0"[..], &n(3), b"\x08\x01g\0", b"\x01s\0", b"\0"].concat();
        for (letter, n) in [(b'l', u32::to_le_bytes as fn(u32) -> [u8; 4]), (b'B', u32::to_be_bytes)] {
            let fields = fields(n);
            let head = [&[letter, ANSWER, 0, 1][..], &n(7), &n(1), &n(15)].concat();
            let bytes = [&head[..], &fields, &n(2), b"ok\0"].concat();
            assert_eq!(length(&bytes[..FIXED]), Ok(bytes.len()));
            let message = Message::decode(&bytes).unwrap();
            assert_eq!((message.answers, message.words()), (Some(3), "ok"));
            assert!(message.body("o").is_err(), "another type");
        }
    }

    #[test]
    fn a_length_beyond_the_message_is_refused() {
        let mut bytes = MANAGER.encode(1, &Body::default().text("x"));
        let whole = bytes.len();
        for cut in 0..whole - 1 {
            let decoded = Message::decode(&bytes[..cut]);
            assert!(
                decoded.is_err() || decoded.unwrap().body("s").and_then(|mut b| b.text().map(drop)).is_err(),
                "{cut}"
            );
        }
        bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(length(&bytes[..FIXED]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(mut bytes: Vec<u8>) {
            let _ = length(&bytes).and_then(|_| Message::decode(&bytes));
            if bytes.len() > 4 {
                (bytes[0], bytes[3]) = (b'l', 1);
                let _ = length(&bytes);
                if let Ok(message) = Message::decode(&bytes) {
                    let _ = message.body(&message.signature).and_then(|mut b| b.text().map(str::to_owned));
                    message.words();
                }
            }
        }
    }
}
