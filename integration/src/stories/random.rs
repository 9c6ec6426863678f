//! Pseudo-random numbers.

/// A pseudo-random number generator that returns the same numbers every time.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Returns a generator with this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number, which is below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The constants are from the generator of Knuth's MMIX.
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}
