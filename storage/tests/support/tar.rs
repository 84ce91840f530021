//! A tar writer that writes what it is told, right or wrong.

/// A tar under construction.
#[derive(Default)]
pub struct Tar(pub Vec<u8>);

/// The header fields of one entry.
#[derive(Clone)]
pub struct Entry<'a> {
    pub kind: u8,
    pub name: &'a str,
    pub link: &'a str,
    pub data: &'a [u8],
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u64,
    pub device: (u32, u32),
    pub pax: Vec<(&'a str, Vec<u8>)>,
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Self {
            kind: b'0',
            name: "",
            link: "",
            data: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            device: (0, 0),
            pax: Vec::new(),
        }
    }
}

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn entry(mut self, entry: Entry<'_>) -> Self {
        if !entry.pax.is_empty() {
            let mut records = Vec::new();
            for (key, value) in &entry.pax {
                let body = key.len() + value.len() + 3;
                let mut length = body + body.to_string().len();
                if length.to_string().len() != body.to_string().len() {
                    length += 1;
                }
                records.extend_from_slice(format!("{length} {key}=").as_bytes());
                records.extend_from_slice(value);
                records.push(b'\n');
            }
            self.raw(b'x', "PaxHeaders/x", "", &records, &Entry::default());
        }
        self.raw(entry.kind, entry.name, entry.link, entry.data, &entry);
        self
    }

    pub fn raw(&mut self, kind: u8, name: &str, link: &str, data: &[u8], like: &Entry<'_>) {
        let mut header = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &name.as_bytes()[..name.len().min(100)]);
        put(100, format!("{:07o}\0", like.mode).as_bytes());
        put(108, format!("{:07o}\0", like.uid).as_bytes());
        put(116, format!("{:07o}\0", like.gid).as_bytes());
        put(124, format!("{:011o}\0", data.len()).as_bytes());
        put(136, format!("{:011o}\0", like.mtime).as_bytes());
        put(156, &[kind]);
        put(157, &link.as_bytes()[..link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}\0", like.device.0).as_bytes());
        put(337, format!("{:07o}\0", like.device.1).as_bytes());
        seal(&mut header);
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    pub fn dir(self, name: &str, mode: u32) -> Self {
        self.entry(Entry { kind: b'5', name, mode, ..Entry::default() })
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(Entry { name, data, ..Entry::default() })
    }

    pub fn symlink(self, name: &str, link: &str) -> Self {
        self.entry(Entry { kind: b'2', name, link, mode: 0o777, ..Entry::default() })
    }

    pub fn hardlink(self, name: &str, link: &str) -> Self {
        self.entry(Entry { kind: b'1', name, link, ..Entry::default() })
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// Fills in the checksum.
pub fn seal(header: &mut [u8; 512]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
