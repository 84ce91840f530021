//! What pods notice of kinds of links that not every kernel has.

use crate::Test;

pub(crate) const TESTS: &[Test] = &[];
