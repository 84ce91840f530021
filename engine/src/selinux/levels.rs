//! Categories: each pod has a pair of its own, so that none may touch what is another's.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::{Error, Kind};

/// Number of categories of the usual policies.
const CATEGORIES: u32 = 1024;
/// Number of pairs of two different ones.
const PAIRS: u32 = CATEGORIES * (CATEGORIES - 1) / 2;

/// The levels in use, with how many pods use each: several only where the client has said so.
#[derive(Debug, Default)]
pub(super) struct Levels(Mutex<HashMap<String, usize>>);

impl Levels {
    /// Takes a level that no pod has.
    pub(super) fn take(&self) -> Result<String, Error> {
        let mut bytes = [0; 4];
        getrandom(&mut bytes, GetRandomFlags::empty())
            .map_err(|e| Error::with(Kind::Internal, "draw a pair of SELinux categories", e))?;
        self.take_from(u32::from_le_bytes(bytes))
    }

    /// The same from a random number: the first free pair from there on.
    fn take_from(&self, random: u32) -> Result<String, Error> {
        let mut used = self.lock();
        let level =
            (0..PAIRS).map(|n| level(random.wrapping_add(n) % PAIRS)).find(|level| !used.contains_key(level));
        let level = level.ok_or_else(|| {
            Error::new(
                Kind::ResourceExhausted,
                format!("all {PAIRS} pairs of SELinux categories are in use by pods: remove some, or give pods levels (selinux_options.level)"),
            )
        })?;
        used.insert(level.clone(), 1);
        Ok(level)
    }

    /// Takes this level.
    pub(super) fn hold(&self, level: Option<&str>) {
        if let Some(level) = level {
            *self.lock().entry(level.to_owned()).or_default() += 1;
        }
    }

    /// Gives a level back.
    pub(super) fn release(&self, level: Option<&str>) {
        let mut used = self.lock();
        let Some(count) = level.and_then(|level| used.get_mut(level)) else { return };
        *count -= 1;
        used.retain(|_, count| *count != 0);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The level of a pair by its number below [`PAIRS`]: for each category, those above it.
fn level(mut number: u32) -> String {
    let mut low = 0;
    // Category `low` is the lower one of so many pairs.
    while number >= CATEGORIES - 1 - low {
        number -= CATEGORIES - 1 - low;
        low += 1;
    }
    format!("s0:c{low},c{}", low + 1 + number)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_pair_has_one_number_and_its_categories_in_order() {
        assert_eq!(level(0), "s0:c0,c1");
        assert_eq!(level(1022), "s0:c0,c1023");
        assert_eq!(level(1023), "s0:c1,c2");
        assert_eq!(level(PAIRS - 1), "s0:c1022,c1023");
        let mut seen = HashSet::new();
        for number in 0..PAIRS {
            let text = level(number);
            let (low, high) = text.strip_prefix("s0:c").unwrap().split_once(",c").unwrap();
            let (low, high): (u32, u32) = (low.parse().unwrap(), high.parse().unwrap());
            assert!(low < high && high < CATEGORIES, "{text}");
            seen.insert((low, high));
        }
        assert_eq!(seen.len(), PAIRS as usize);
    }

    #[test]
    fn a_level_in_use_is_not_taken_again_until_all_its_pods_are_gone() {
        let levels = Levels::default();
        levels.hold(Some("s0:c0,c2"));
        levels.hold(Some("s0:c0,c2"));
        levels.hold(None);
        assert_eq!(levels.take_from(PAIRS).unwrap(), "s0:c0,c1");
        assert_eq!(levels.take_from(0).unwrap(), "s0:c0,c3");
        levels.release(Some("s0:c0,c2"));
        assert_eq!(levels.take_from(0).unwrap(), "s0:c0,c4");
        levels.release(Some("s0:c0,c2"));
        levels.release(Some("s0:c0,c2"));
        levels.release(None);
        assert_eq!(levels.take_from(0).unwrap(), "s0:c0,c2");
        assert_eq!(levels.lock().len(), 4);
    }

    #[test]
    fn when_all_pairs_are_in_use_that_is_said() {
        let levels = Levels::default();
        (0..PAIRS).for_each(|number| levels.hold(Some(&level(number))));
        assert_eq!(levels.take_from(7).unwrap_err().kind(), Kind::ResourceExhausted);
        levels.release(Some("s0:c3,c4"));
        assert_eq!(levels.take_from(u32::MAX).unwrap(), "s0:c3,c4");
    }

    proptest::proptest! {
        #[test]
        fn levels_taken_at_any_time_differ(randoms: Vec<u32>) {
            let levels = Levels::default();
            let taken: HashSet<String> = randoms.iter().map(|random| levels.take_from(*random).unwrap()).collect();
            proptest::prop_assert_eq!(taken.len(), randoms.len());
        }
    }
}
