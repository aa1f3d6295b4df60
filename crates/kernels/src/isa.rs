//! Which instruction set the kernels use, decided when the program runs.

use std::sync::OnceLock;

/// An instruction set for which kernels exist.
///
/// The value is only a name: passing a set that this CPU lacks to a kernel is safe and runs the
/// portable code instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Portable safe Rust.
    Generic,
    /// x86-64 with AVX2, FMA, F16C, BMI2 and POPCNT.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL, VBMI, VBMI2 and VNNI (Ice Lake, Zen 4 and later).
    Avx512,
    /// AArch64 with NEON.
    Neon,
}

impl Isa {
    /// The environment variable that pins a path for a whole process: `generic`, `avx2`,
    /// `avx512` or `neon`. A name that is unknown here, or a set that this CPU lacks, is ignored.
    pub const ENV: &'static str = "TENSORPRESS_ISA";

    /// The set that kernels use unless told otherwise: the best one of this CPU, or the one that
    /// [`Isa::ENV`] pins. Read once per process.
    pub fn detect() -> Isa {
        static CHOSEN: OnceLock<Isa> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let pin = std::env::var(Self::ENV).ok().and_then(|name| Self::from_name(&name));
            pin.filter(|isa| isa.is_available()).unwrap_or_else(Self::best)
        })
    }

    /// Every set this CPU has, the portable code first and the best one last.
    pub fn available() -> Vec<Isa> {
        [Isa::Generic, Isa::Neon, Isa::Avx2, Isa::Avx512]
            .into_iter()
            .filter(|isa| isa.is_available())
            .collect()
    }

    /// Whether this CPU can run the set.
    #[inline]
    pub fn is_available(self) -> bool {
        match self {
            Isa::Generic => true,
            Isa::Avx2 => matches!(Self::best(), Isa::Avx2 | Isa::Avx512),
            other => other == Self::best(),
        }
    }

    /// The set itself where this CPU has it, else [`Isa::Generic`].
    #[inline]
    pub(super) fn or_generic(self) -> Isa {
        if self.is_available() { self } else { Isa::Generic }
    }

    /// The name that [`Isa::ENV`] understands.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Generic => "generic",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
        }
    }

    fn from_name(name: &str) -> Option<Isa> {
        [Isa::Generic, Isa::Avx2, Isa::Avx512, Isa::Neon]
            .into_iter()
            .find(|isa| isa.name().eq_ignore_ascii_case(name.trim()))
    }

    /// The best set of the hardware, whatever the environment says.
    #[inline]
    fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(Self::probe)
    }

    #[cfg(target_arch = "x86_64")]
    fn probe() -> Isa {
        let avx2 = crate::simd::avx2_features!(detected);
        let avx512 = crate::simd::avx512_features!(detected);
        match (avx2, avx512) {
            (true, true) => Isa::Avx512,
            (true, false) => Isa::Avx2,
            _ => Isa::Generic,
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn probe() -> Isa {
        // The kernels reinterpret bytes as wider lanes, in little-endian order.
        let little = cfg!(target_endian = "little");
        let neon = little && std::arch::is_aarch64_feature_detected!("neon");
        if neon { Isa::Neon } else { Isa::Generic }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn probe() -> Isa {
        Isa::Generic
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
