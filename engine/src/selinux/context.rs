//! A security context, `user:role:type[:level]` (selinux(8)).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A security context. As text, and in records, `user:role:type` with `:level` where the policy has levels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Context {
    /// SELinux user.
    pub user: String,
    /// Role.
    pub role: String,
    /// Type.
    pub kind: String,
    /// Sensitivity and categories; they may contain colons.
    pub level: Option<String>,
}

/// Text that is no security context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not user:role:type[:level]")]
pub struct NoContext;

impl FromStr for Context {
    type Err = NoContext;

    fn from_str(text: &str) -> Result<Self, NoContext> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let mut part = || parts.next().filter(|part| is_name(part)).ok_or(NoContext);
        let (user, role, kind) = (part()?, part()?, part()?);
        let level = parts.next();
        match &level {
            Some(level) if !is_level(level) => Err(NoContext),
            _ => Ok(Self { user, role, kind, level }),
        }
    }
}

impl TryFrom<String> for Context {
    type Error = NoContext;

    fn try_from(text: String) -> Result<Self, NoContext> {
        text.parse()
    }
}

impl From<Context> for String {
    fn from(context: Context) -> Self {
        context.to_string()
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        self.level.as_ref().map_or(Ok(()), |level| write!(f, ":{level}"))
    }
}

/// Whether this can be a user, role or type: what policies are written with, and nothing that could end the part or the label.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-$".contains(&b))
}

/// Whether this is a level or range by its form: `s0`, `s0:c1,c3.c7`, `s0-s0:c0.c1023`.
pub(super) fn is_level(text: &str) -> bool {
    let (low, high) = text.split_once('-').map_or((text, None), |(low, high)| (low, Some(high)));
    text.len() <= 1 << 10 && [Some(low), high].into_iter().flatten().all(is_one_level)
}

/// One sensitivity with its categories.
fn is_one_level(text: &str) -> bool {
    let (sensitivity, categories) = text.split_once(':').map_or((text, None), |(s, c)| (s, Some(c)));
    let category = |text: &str| is_numbered(text, 'c');
    let range =
        |text: &str| text.split_once('.').map_or_else(|| category(text), |(a, b)| category(a) && category(b));
    is_numbered(sensitivity, 's') && categories.is_none_or(|list| list.split(',').all(range))
}

/// A letter and a number of at most four digits.
fn is_numbered(text: &str, letter: char) -> bool {
    text.strip_prefix(letter)
        .is_some_and(|n| (1..=4).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_read_and_written_part_by_part() {
        for text in [
            "system_u:system_r:container_t:s0:c1,c2",
            "system_u:object_r:container_file_t:s0",
            "unconfined_u:unconfined_r:spc_t:s0-s0:c0.c1023",
            "u:r:t",
        ] {
            assert_eq!(text.parse::<Context>().unwrap().to_string(), text);
        }
        let parsed: Context = "u:r:t:s0:c1,c2".parse().unwrap();
        assert_eq!((parsed.kind.as_str(), parsed.level.as_deref()), ("t", Some("s0:c1,c2")));
        for text in [
            "",
            "u:r",
            "u:r:",
            ":r:t:s0",
            "u:r:t:",
            "u:r:t:s0:",
            "u:r t:t",
            "u:r:t\n:s0",
            "u:r:t:s0\0",
            "kernel",
        ] {
            assert_eq!(text.parse::<Context>(), Err(NoContext), "{text:?}");
        }
    }

    #[test]
    fn levels_are_judged_by_their_form() {
        for good in [
            "s0",
            "s15",
            "s0:c1",
            "s0:c1,c2",
            "s0:c0.c1023",
            "s0:c1,c5.c9,c22",
            "s0-s0:c0.c1023",
            "s0:c1-s0:c1,c2",
        ] {
            assert!(is_level(good), "{good}");
        }
        for bad in [
            "",
            "0",
            "s",
            "s0,c4,c5",
            "s0:",
            "s0:c",
            "s0:c1,",
            "s0:c1.",
            "s0:x1",
            "s0-",
            "s0:c12345",
            "s0:c1\0",
            "s0 ",
        ] {
            assert!(!is_level(bad), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic_and_what_it_takes_it_gives_back(text: String) {
            if let Ok(context) = text.parse::<Context>() {
                proptest::prop_assert_eq!(context.to_string(), text);
            }
        }

        #[test]
        fn what_is_taken_has_no_byte_that_ends_a_label(text in "[a-z_:.,0-9\\x00-\\x20-]{0,40}") {
            if let Ok(context) = text.parse::<Context>() {
                proptest::prop_assert!(context.to_string().bytes().all(|b| b > b' '));
            }
        }
    }
}
