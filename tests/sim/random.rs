//! Random numbers that are the same for a seed for ever: splitmix64.
//!
//! Not for secrets. The asymmetry to know: every choice of a simulation draws from one generator, so that one more
//! draw anywhere changes everything after it.

use std::sync::LazyLock;

/// A generator.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0xA076_1D64_78BD_642F) ^ 0xE703_7ED1_A0B4_28DB)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).expect("below a usize")
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// True `percent` times in a hundred.
    pub(crate) fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// True once in `n` times.
    pub(crate) fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Bytes to cut payload from: cheaper than drawing each, and different at every offset.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random::new(0x0051_1CE5);
    (0..(1 << 17)).flat_map(|_| random.next().to_le_bytes()).collect()
});

/// Most bytes [`payload`] gives.
pub(crate) const PAYLOAD_MAX: usize = 512 * 1024;

/// `len` bytes of payload.
pub(crate) fn payload(random: &mut Random, len: usize) -> &'static [u8] {
    let at = random.below(NOISE.len() - PAYLOAD_MAX);
    &NOISE[at..at + len]
}
