//! Containers that log numbered lines, as fast as they can or at a given pace, and a reader of such a log that finds what is missing or there twice.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;

use super::Pod;

/// Text behind the number of an ordinary line; one of a thousand is longer than a record can be, and a third of all have none.
const ORDINARY: usize = 740;
const LONG: usize = 40_000;
/// Nobody fills a disk whose test has died.
const MOST: u32 = 1_500_000;

/// What stands behind a line's number.
fn padding(number: u32) -> usize {
    if number.is_multiple_of(1000) {
        LONG
    } else if number.is_multiple_of(3) {
        0
    } else {
        ORDINARY
    }
}

/// A script that writes numbered lines to both streams until [`enough`], and ends with code 7: 600 lines (some 330 KB) at a time, with a
/// pause of so many milliseconds in between. The last line of a stream says how many there were before it.
pub fn script(pause: u32) -> String {
    let pause =
        if pause == 0 { String::new() } else { format!("system(\"sleep {}\")", f64::from(pause) / 1e3) };
    format!(
        r#"w() {{ awk 'BEGIN {{
            long = sprintf("%{LONG}s", ""); gsub(/ /, "x", long); ordinary = substr(long, 1, {ORDINARY});
            while (i < {MOST}) {{
                for (k = 0; k < 600; k++) {{
                    if (++i % 1000 == 0) print i " " long; else if (i % 3 == 0) print i " "; else print i " " ordinary
                }}
                if ((getline over < "/tmp/enough") >= 0) break
                close("/tmp/enough")
                {pause}
            }}
            print "end " i
        }}'; }}
        w >&2 & w; wait; exit 7"#
    )
}

/// Lets the containers of a pod come to their end.
pub fn enough(pod: &Pod) {
    fs::write(pod.dir.join("root/tmp/enough"), "").unwrap();
}

/// Asserts that a log holds every line of both streams once, whole and in order, and nothing else; its length in bytes.
pub fn assert_whole(path: &Path) -> u64 {
    let mut streams = [Stream::default(), Stream::default()];
    let mut file = BufReader::new(fs::File::open(path).unwrap());
    let (mut length, mut record) = (0, String::new());
    while file.read_line(&mut record).unwrap() > 0 {
        length += record.len() as u64;
        let said = record.strip_suffix('\n').expect("the last record has no end");
        let mut words = said.splitn(4, ' ').skip(1);
        let (stream, tag, text) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
        let which = ["stdout", "stderr"].iter().position(|name| *name == stream).unwrap();
        streams[which].take(tag, text).unwrap_or_else(|why| panic!("{}: {stream}: {why}", path.display()));
        record.clear();
    }
    for (stream, name) in streams.iter().zip(["stdout", "stderr"]) {
        assert!(stream.ended, "{}: {name} stops after line {}", path.display(), stream.lines);
    }
    length
}

/// What has been read of one stream.
#[derive(Default)]
struct Stream {
    /// Whole lines.
    lines: u32,
    /// The beginning of a line that goes on in the next record.
    partial: String,
    /// The last line has been seen.
    ended: bool,
}

impl Stream {
    fn take(&mut self, tag: &str, text: &str) -> Result<(), String> {
        self.partial.push_str(text);
        if tag == "P" {
            return Ok(());
        }
        let line = std::mem::take(&mut self.partial);
        let brief = &line[..line.len().min(40)];
        if self.ended {
            return Err(format!("{brief:?} follows the last line"));
        }
        if line == format!("end {}", self.lines) {
            self.ended = true;
            return Ok(());
        }
        self.lines += 1;
        let rest = line.strip_prefix(&format!("{} ", self.lines));
        match rest {
            Some(rest) if rest.len() == padding(self.lines) && rest.bytes().all(|byte| byte == b'x') => {
                Ok(())
            }
            _ => Err(format!("line {} is {brief:?}, {} bytes", self.lines, line.len())),
        }
    }
}

/// Says what was written, and how fast; `nanos`: for how long.
pub fn report(what: &str, bytes: u64, nanos: i64) {
    let (megabytes, seconds) = (bytes as f64 / 1e6, nanos as f64 / 1e9);
    println!("figures: {what}: {megabytes:.0} MB of log in {seconds:.1} s, {:.0} MB/s", megabytes / seconds);
}
