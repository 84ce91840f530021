//! The tar that archives are written as (pax(1), ustar): files and nothing else, owned by root, at time 0, so that equal images give
//! equal archives.

use std::io::{self, Read, Write};

const BLOCK: u64 = 512;

/// Appends files to a tar.
#[derive(Debug)]
pub(crate) struct Writer<W: Write> {
    out: W,
}

// === impl Writer ===

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out }
    }

    /// A file from memory. Names are at most 100 bytes here: `blobs/sha512/` and 128 digits do not fit, and go in by [`Self::stream`].
    pub(crate) fn file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.stream(name, bytes.len() as u64, bytes)
    }

    /// A file of `size` bytes from a reader, which must have as many.
    pub(crate) fn stream(&mut self, name: &str, size: u64, mut from: impl Read) -> io::Result<()> {
        if name.len() > 100 {
            // GNU long name: the name as the content of an entry of type L.
            let long = [name.as_bytes(), b"\0"].concat();
            self.out.write_all(&header("././@LongLink", b'L', long.len() as u64))?;
            self.out.write_all(&long)?;
            self.pad(long.len() as u64)?;
        }
        self.out.write_all(&header(name, b'0', size))?;
        let copied = io::copy(&mut Read::take(&mut from, size), &mut self.out)?;
        if copied != size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{name} is shorter than it was"),
            ));
        }
        self.pad(size)
    }

    /// The end marker.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&[0; 1024])?;
        self.out.flush()
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = size.next_multiple_of(BLOCK) - size;
        io::copy(&mut io::repeat(0).take(rest), &mut self.out).map(drop)
    }
}

fn header(name: &str, kind: u8, size: u64) -> [u8; 512] {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name.as_bytes()[..name.len().min(100)]);
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size < 1 << 33 {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        // GNU base-256: more than eleven octal digits hold.
        put(128, &size.to_be_bytes());
        put(124, &[0x80]);
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::entry::Kind;
    use crate::layer::tar::Scanner;

    #[test]
    fn what_is_written_is_read_again_long_names_and_giant_sizes_too() {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        let long = format!("blobs/sha512/{}", "a".repeat(128));
        writer.file("a", b"xyz").unwrap();
        writer.file(&long, &[7; 512]).unwrap();
        writer.finish().unwrap();
        let mut found = Vec::new();
        let mut scanner = Scanner::new();
        scanner
            .push(&bytes, &mut |entry| {
                let Kind::File { offset, size } = entry.kind else { panic!() };
                found.push((String::from_utf8(entry.path).unwrap(), offset, size));
            })
            .unwrap();
        scanner.finish().unwrap();
        assert_eq!(found, [("a".to_owned(), 512, 3), (long, 2560, 512)]);
        let giant = header("g", b'0', 1 << 40);
        let mut scanner = Scanner::new();
        scanner
            .push(&giant, &mut |e| assert!(matches!(e.kind, Kind::File { size, .. } if size == 1 << 40)))
            .unwrap();
    }
}
