//! A tar archive as small as an image layer needs it: plain files and directories in POSIX ustar format.
//!
//! Reproducible: every entry has modification time 0, so the same executable always gives the same layer digest.
//! Format: POSIX.1-2017, pax(1), "ustar Interchange Format".

/// Size of a header and unit of padding.
const BLOCK: usize = 512;
/// Longest name that fits the header without a prefix field.
const NAME_MAX: usize = 100;

/// Why an entry cannot be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// The name is empty or longer than the header's field.
    #[error("tar entry name {0:?} is not between 1 and {NAME_MAX} bytes long")]
    Name(String),
    /// The content is larger than eleven octal digits can say.
    #[error("tar entry {name:?} is too large: {size} bytes")]
    Size {
        /// Entry name.
        name: String,
        /// Content size in bytes.
        size: u64,
    },
}

/// An archive under construction.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
}

impl Archive {
    /// An empty archive with room for `capacity` bytes of content.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity + 16 * BLOCK) }
    }

    /// Adds a directory owned by root; `name` gets its trailing slash here.
    pub fn directory(&mut self, name: &str, mode: u32) -> Result<(), TarError> {
        let header = header(&format!("{name}/"), mode, 0, b'5')?;
        self.bytes.extend_from_slice(&header);
        Ok(())
    }

    /// Adds a regular file owned by root.
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<(), TarError> {
        let header = header(name, mode, content.len() as u64, b'0')?;
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(content);
        let padded = self.bytes.len().next_multiple_of(BLOCK);
        self.bytes.resize(padded, 0);
        Ok(())
    }

    /// Ends the archive with its two zero blocks.
    pub fn finish(mut self) -> Vec<u8> {
        let end = self.bytes.len() + 2 * BLOCK;
        self.bytes.resize(end, 0);
        self.bytes
    }
}

/// One ustar header block. Owner and group are 0, the time is 0.
fn header(name: &str, mode: u32, size: u64, kind: u8) -> Result<[u8; BLOCK], TarError> {
    if name.is_empty() || name.len() > NAME_MAX {
        return Err(TarError::Name(name.to_owned()));
    }
    if size >= 1 << 33 {
        return Err(TarError::Size { name: name.to_owned(), size });
    }
    let mut block = [0u8; BLOCK];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, &format!("{:07o}", mode & 0o7777));
    put(108, "0000000"); // uid
    put(116, "0000000"); // gid
    put(124, &format!("{size:011o}"));
    put(136, "00000000000"); // mtime
    put(148, "        "); // checksum counts as spaces while it is computed
    put(257, "ustar\x0000");
    put(265, "root");
    put(297, "root");
    block[156] = kind;
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(block)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::with_capacity(64);
        archive.directory("tmp", 0o1777).unwrap();
        archive.file("etc/passwd", 0o644, b"root:x:0:0::/:\n").unwrap();
        archive.file("empty", 0o600, b"").unwrap();
        archive.finish()
    }

    #[test]
    fn gnu_tar_lists_what_was_put_in() {
        let mut tar = Command::new("tar")
            .args(["--list", "--verbose", "--numeric-owner", "--utc"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        tar.stdin.take().unwrap().write_all(&sample()).unwrap();
        let output = tar.wait_with_output().unwrap();
        assert!(output.status.success());
        let lines: Vec<String> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "drwxrwxrwt 0/0 0 1970-01-01 00:00 tmp/",
                "-rw-r--r-- 0/0 15 1970-01-01 00:00 etc/passwd",
                "-rw------- 0/0 0 1970-01-01 00:00 empty",
            ]
        );
    }

    #[test]
    fn same_content_gives_same_bytes_in_whole_blocks() {
        assert_eq!(sample(), sample());
        assert_eq!(sample().len() % BLOCK, 0);
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        let long = "x".repeat(101);
        assert_eq!(Archive::default().file(&long, 0o644, b""), Err(TarError::Name(long)));
        assert_eq!(Archive::default().file("", 0o644, b""), Err(TarError::Name(String::new())));
    }
}
