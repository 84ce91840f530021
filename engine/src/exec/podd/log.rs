//! The CRI log format: `<RFC 3339 time> <stdout|stderr> <P|F> <text>\n`, one append per batch of whole records.

use std::os::fd::OwnedFd;

use super::ledger::Ledger;
use crate::exec::nanos;

/// Longest text of one record; a longer line becomes several, all but the last marked P.
pub(crate) const MAX_LINE: usize = 16 << 10;

/// The log of a container.
#[derive(Debug, Default)]
pub(crate) struct Log {
    file: Option<OwnedFd>,
    /// Bytes that could not be written (no space, I/O error): the container must never wait for its log.
    pub(crate) dropped: u64,
    batch: Vec<u8>,
    ledger: Option<Ledger>,
}

/// The stage of the stream that is being logged, and the stream's number.
pub(super) type Staged<'a> = Option<(usize, &'a OwnedFd)>;

/// One stream of a container: what has been read of a line that has not ended yet.
#[derive(Debug)]
pub(crate) struct Stream {
    name: &'static str,
    partial: Vec<u8>,
}

impl Stream {
    /// `stdout` or `stderr`.
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, partial: Vec::new() }
    }

    /// What has been read of a line that has not ended yet.
    pub(super) fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// A stream in the middle of a line.
    pub(super) fn resume(&mut self, partial: &[u8]) {
        self.partial = partial.to_vec();
    }

    /// Appends the records that `data` completes.
    pub(super) fn feed(&mut self, mut data: &[u8], stamp: &[u8], out: &mut Vec<u8>) {
        while !data.is_empty() {
            let room = MAX_LINE - self.partial.len();
            match data.iter().take(room + 1).position(|b| *b == b'\n') {
                Some(end) => {
                    self.record(&data[..end], b'F', stamp, out);
                    data = &data[end + 1..];
                }
                None if data.len() > room => {
                    self.record(&data[..room], b'P', stamp, out);
                    data = &data[room..];
                }
                None => {
                    self.partial.extend_from_slice(data);
                    return;
                }
            }
        }
    }

    /// One record out of what was kept and `text`.
    fn record(&mut self, text: &[u8], tag: u8, stamp: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(stamp);
        out.push(b' ');
        out.extend_from_slice(self.name.as_bytes());
        out.extend_from_slice(&[b' ', tag, b' ']);
        out.extend_from_slice(&self.partial);
        out.extend_from_slice(text);
        self.partial.clear();
        if tag == b'F' && out.ends_with(b"\r") {
            out.pop();
        }
        out.push(b'\n');
    }
}

impl Log {
    /// A log that goes to a file opened for appending, or nowhere.
    pub(crate) fn new(file: Option<OwnedFd>) -> Self {
        Self { file, ..Self::default() }
    }

    /// Keeps a ledger from now on.
    pub(super) fn keep_ledger(&mut self, ledger: OwnedFd) {
        self.ledger = Some(Ledger::new(ledger));
    }

    /// The ledger.
    pub(super) fn ledger(&self) -> Option<&Ledger> {
        self.ledger.as_ref()
    }

    /// Goes on with the ledger of a dead supervisor, after finishing what it was writing.
    pub(super) fn recover(&mut self, ledger: OwnedFd) {
        let Some(log) = &self.file else { return };
        let (ledger, missing) = Ledger::recover(ledger, log);
        self.batch = missing;
        self.append();
        self.batch.clear();
        ledger.clear();
        self.ledger = Some(ledger);
    }

    /// The file.
    pub(crate) fn file(&self) -> Option<&OwnedFd> {
        self.file.as_ref()
    }

    /// Goes on in another file. Records are written whole, so this is between two of them.
    pub(crate) fn switch(&mut self, file: OwnedFd) {
        if let Some(ledger) = &self.ledger {
            ledger.clear();
        }
        self.file = Some(file);
    }

    /// Logs what was read from a stream.
    pub(super) fn write(&mut self, stream: &mut Stream, data: &[u8], staged: Staged<'_>) {
        if self.file.is_none() {
            return;
        }
        let stamp = rfc3339(nanos(std::time::SystemTime::now()));
        stream.feed(data, &stamp, &mut self.batch);
        self.flush(stream.partial.len(), staged);
    }

    /// The stream has ended: what is left is a line without an end.
    pub(super) fn end(&mut self, stream: &mut Stream, staged: Staged<'_>) {
        if self.file.is_some() && !stream.partial.is_empty() {
            let stamp = rfc3339(nanos(std::time::SystemTime::now()));
            stream.record(&[], b'P', &stamp, &mut self.batch);
            self.flush(0, staged);
        }
    }

    /// Appends the batch, with a note in the ledger before and after; `held` bytes of the stage belong to a later one.
    fn flush(&mut self, held: usize, staged: Staged<'_>) {
        let Some(file) = self.file.as_ref().filter(|_| !self.batch.is_empty()) else { return };
        let noted = self.ledger.as_mut().zip(staged).map(|(ledger, (which, stage))| {
            (which, stage, ledger.intend(which, stage, held, file, &self.batch))
        });
        let before = self.dropped;
        self.append();
        if let (Some(ledger), Some((which, stage, after))) = (&mut self.ledger, noted) {
            ledger.settle(which, after, stage, self.batch.len(), self.dropped != before);
        }
        self.batch.clear();
        // One large batch must not stay in memory for the life of the pod.
        self.batch.shrink_to(4096);
    }

    /// A file system that is full or broken costs the batch, never the container's progress.
    fn append(&mut self) {
        let mut rest = &self.batch[..];
        while let (Some(file), false) = (&self.file, rest.is_empty()) {
            match rustix::io::write(file, rest) {
                Ok(written) => rest = &rest[written..],
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => {
                    self.dropped += rest.len() as u64;
                    break;
                }
            }
        }
    }
}

/// UTC time with nine digits of fraction.
pub(crate) fn rfc3339(nanos: i64) -> [u8; 30] {
    let (seconds, fraction) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let mut out = *b"0000-00-00T00:00:00.000000000Z";
    let mut put = |at: usize, width: usize, mut value: i64| {
        for digit in out[at..at + width].iter_mut().rev() {
            *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
            value /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, second / 3600);
    put(14, 2, second / 60 % 60);
    put(17, 2, second % 60);
    put(20, 9, fraction);
    out
}

/// Year, month and day of a day counted from 1970-01-01: count in eras of 400 years that begin on 1 March, so that the leap day is last.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(parts: &[&[u8]]) -> (String, Vec<u8>) {
        let (mut stream, mut out) = (Stream::new("stdout"), Vec::new());
        parts.iter().for_each(|part| stream.feed(part, b"T", &mut out));
        (String::from_utf8(out).unwrap(), stream.partial)
    }

    #[test]
    fn lines_are_records_however_they_arrive() {
        assert_eq!(
            fed(&[b"one\ntw", b"o\n", b"\n", b"crlf\r\n"]).0,
            "T stdout F one\nT stdout F two\nT stdout F \nT stdout F crlf\n"
        );
        assert_eq!(fed(&[b"tail"]), (String::new(), b"tail".to_vec()));
    }

    #[test]
    fn a_long_line_is_cut_into_partial_records_of_16_kib() {
        let exact = vec![b'x'; MAX_LINE];
        let (text, partial) = fed(&[&exact, b"\n"]);
        assert_eq!(
            (text.len(), partial.len()),
            ("T stdout F \n".len() + MAX_LINE, 0),
            "a line that just fits is one record"
        );
        let (text, _) = fed(&[&exact, b"yz\n"]);
        let tags: Vec<_> = text.lines().map(|l| (l.as_bytes()[9], l.len() - 11)).collect();
        assert_eq!(tags, [(b'P', MAX_LINE), (b'F', 2)]);
        let huge = vec![b'x'; 5 * MAX_LINE / 2];
        let (text, partial) = fed(&[&huge]);
        assert_eq!((text.lines().count(), partial.len()), (2, MAX_LINE / 2));
    }

    #[test]
    fn time_is_rfc3339_with_nanoseconds() {
        for (nanos, expected) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (1_735_689_599_999_999_999, "2024-12-31T23:59:59.999999999Z"),
        ] {
            assert_eq!(std::str::from_utf8(&rfc3339(nanos)).unwrap(), expected);
        }
    }

    #[test]
    fn a_full_disk_costs_the_log_and_not_the_container() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (mut log, mut stream) = (Log::new(Some(full.into())), Stream::new("stderr"));
        log.write(&mut stream, b"lost\n", None);
        assert_eq!(log.dropped, 30 + " stderr F lost\n".len() as u64);
    }
}
