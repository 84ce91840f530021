//! PAX extended headers: `LENGTH KEY=VALUE\n` records (POSIX pax(1), "pax Extended Header").

use base64::Engine;

use super::sparse::PaxSparse;

/// Largest sum of xattr names and values of one entry, in bytes.
const XATTRS_MAX: usize = 1 << 20;
/// Largest xattr value Linux accepts (XATTR_SIZE_MAX), in bytes; EROFS stores one less.
const XATTR_VALUE_MAX: usize = 65_535;

/// What is wrong with a PAX header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PaxError {
    #[error("record length does not fit")]
    Length,
    #[error("record without `=`")]
    NoValue,
    #[error("value of {0} is not valid")]
    Value(String),
    #[error("{0} is given twice with different values")]
    Twice(&'static str),
    #[error("extended attributes are larger than {XATTRS_MAX} bytes, or one than {XATTR_VALUE_MAX}")]
    XattrsTooLarge,
}

/// The records that matter, of one `x` header.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

impl Pax {
    pub(super) fn parse(mut data: &[u8]) -> Result<Self, PaxError> {
        let mut pax = Self::default();
        while !data.is_empty() {
            let space = data.iter().take(8).position(|b| *b == b' ').ok_or(PaxError::Length)?;
            let length: usize =
                decimal(&data[..space]).and_then(|n| n.try_into().ok()).ok_or(PaxError::Length)?;
            if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
                return Err(PaxError::Length);
            }
            let record = &data[space + 1..length - 1];
            let equals = record.iter().position(|b| *b == b'=').ok_or(PaxError::NoValue)?;
            pax.record(&record[..equals], &record[equals + 1..])?;
            data = &data[length..];
        }
        Ok(pax)
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), PaxError> {
        let bad = || PaxError::Value(String::from_utf8_lossy(key).into_owned());
        let number = || decimal(value).ok_or_else(bad);
        match key {
            // An empty value deletes the record, which here means: the header's own field counts.
            b"path" => self.path = (!value.is_empty()).then(|| value.to_vec()),
            b"linkpath" => self.link = (!value.is_empty()).then(|| value.to_vec()),
            b"size" if !value.is_empty() => {
                let size = number()?;
                if self.size.is_some_and(|before| before != size) {
                    return Err(PaxError::Twice("size"));
                }
                self.size = Some(size);
            }
            b"uid" if !value.is_empty() => self.uid = Some(number()?),
            b"gid" if !value.is_empty() => self.gid = Some(number()?),
            b"mtime" if !value.is_empty() => self.mtime = Some(time(value).ok_or_else(bad)?),
            key if key.starts_with(b"GNU.sparse.") => {
                self.sparse.record(&key[11..], value).ok_or_else(bad)?;
            }
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattr(name.to_vec(), value.to_vec())?;
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let digits = value.trim_ascii_end();
                    let digits = &digits[..digits.iter().rposition(|b| *b != b'=').map_or(0, |at| at + 1)];
                    let value =
                        base64::engine::general_purpose::STANDARD_NO_PAD.decode(digits).map_err(|_| bad())?;
                    self.xattr(percent_decode(name), value)?;
                }
            }
        }
        Ok(())
    }

    /// Keeps an attribute that means something in an image (images' SELinux labels and overlayfs' own marks do not).
    fn xattr(&mut self, name: Vec<u8>, value: Vec<u8>) -> Result<(), PaxError> {
        let foreign = name == b"security.selinux"
            || name.starts_with(b"trusted.overlay.")
            || name.starts_with(b"user.overlay.")
            || name.contains(&0);
        if foreign || name.is_empty() {
            return Ok(());
        }
        self.xattrs.retain(|(before, _)| *before != name);
        let sum: usize = self.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
        if name.len() > 255 || value.len() > XATTR_VALUE_MAX || sum + name.len() + value.len() > XATTRS_MAX {
            return Err(PaxError::XattrsTooLarge);
        }
        self.xattrs.push((name, value));
        Ok(())
    }
}

/// An unsigned decimal number, digits only.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `[-]seconds[.fraction]`; huge values are clamped.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text.iter().position(|b| *b == b'.').unwrap_or(text.len());
    let (whole, fraction) = (&text[..dot], text.get(dot + 1..).unwrap_or_default());
    if !whole.iter().chain(fraction).all(u8::is_ascii_digit) || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let seconds =
        if whole.is_empty() { 0 } else { std::str::from_utf8(whole).ok()?.parse().unwrap_or(i64::MAX) };
    let mut nanoseconds = 0_u32;
    for at in 0..9 {
        let digit = fraction.get(at).map_or(0, |b| u32::from(b - b'0'));
        nanoseconds = nanoseconds * 10 + digit;
    }
    Some(match (negative, nanoseconds) {
        (false, n) => (seconds, n),
        (true, 0) => (-seconds, 0),
        // The kernel counts nanoseconds upwards from the second below.
        (true, n) => (-seconds - 1, 1_000_000_000 - n),
    })
}

/// `%41` → `A`, as libarchive writes names.
fn percent_decode(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut at = 0;
    while at < name.len() {
        let hex = (name[at] == b'%').then(|| name.get(at + 1..at + 3)).flatten();
        let byte = hex.and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        out.push(byte.unwrap_or(name[at]));
        at += if byte.is_some() { 3 } else { 1 };
    }
    out
}
