//! Doubles of the drivers, for tests of the engine and of whoever is built on it.
