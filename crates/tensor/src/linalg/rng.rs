//! Random numbers by counter: value i of a seed is a function of (seed, i), whatever the order of the calls.

/// The SplitMix64 sequence (Steele, Lea, Flood, 2014): 64 uniform bits per step, any step at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitMix {
    state: u64,
}

impl SplitMix {
    const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

    /// The sequence of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Value `i` of the sequence.
    #[must_use]
    pub fn at(self, i: u64) -> u64 {
        mix(self.state.wrapping_add(Self::GAMMA.wrapping_mul(i.wrapping_add(1))))
    }

    /// The next value.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(Self::GAMMA);
        mix(self.state)
    }

    /// The next value as a number in [0, 1), a multiple of 2⁻⁵³.
    pub fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

/// The output function of SplitMix64, a bijection that scatters nearby inputs.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Value `i` of the standard normal sequence of `seed` (Box, Muller, 1958).
#[must_use]
pub fn gaussian(seed: u64, i: u64) -> f64 {
    // The seed is scattered first, so that neighbouring seeds do not give shifted copies of one sequence.
    let bits = SplitMix::new(mix(seed ^ SplitMix::GAMMA));
    let unit = |v: u64| ((v >> 11) as f64 + 0.5) * (1.0 / (1u64 << 53) as f64);
    let (radius, angle) = (unit(bits.at(i & !1)), unit(bits.at(i | 1)));
    let radius = (-2.0 * radius.ln()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * angle).sin_cos();
    radius * if i & 1 == 0 { cos } else { sin }
}
