//! Softmax of attention scores, and their soft cap.

use super::{LANES, Wide, stamp};
use crate::Isa;

stamp! {
    /// `exp(scale * (x - max)) / sum` in place; minus infinity becomes 0. Nothing but minus infinity becomes zeros.
    pub fn softmax(x: &mut [f32], scale: f32) = softmax_body
}

#[inline(always)]
fn softmax_body<L: Wide>(l: L, x: &mut [f32], scale: f32) {
    let (_, sum) = exponentials_body(l, x, scale);
    let factor = if sum == 0.0 { 0.0 } else { 1.0 / sum };
    x.iter_mut().for_each(|x| *x *= factor);
}

stamp! {
    /// `exp(scale * (x - max))` in place; gives `max` and the sum. Nothing but minus infinity becomes zeros.
    pub fn exponentials(x: &mut [f32], scale: f32) -> (f32, f32) = exponentials_body
}

#[inline(always)]
fn exponentials_body<L: Wide>(_: L, x: &mut [f32], scale: f32) -> (f32, f32) {
    let mut maxima = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            maxima[i] = if chunk[i] > maxima[i] { chunk[i] } else { maxima[i] };
        }
    }
    let max = maxima.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    if max == f32::NEG_INFINITY {
        x.fill(0.0);
        return (max, 0.0);
    }
    let mut sums = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = exp::<L>(scale * (chunk[i] - max));
            sums[i] += chunk[i];
        }
    }
    for x in &mut *rest {
        *x = exp::<L>(scale * (*x - max));
    }
    (max, sums.iter().sum::<f32>() + rest.iter().sum::<f32>())
}

stamp! {
    /// `cap * tanh(scale * x / cap)` in place, to a relative 1e-6.
    pub fn softcap(x: &mut [f32], scale: f32, cap: f32) = softcap_body
}

#[inline(always)]
fn softcap_body<L: Wide>(_: L, x: &mut [f32], scale: f32, cap: f32) {
    let factor = scale / cap;
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for x in chunk {
            *x = cap * tanh::<L>(factor * *x);
        }
    }
    rest.iter_mut().for_each(|x| *x = cap * tanh::<L>(factor * *x));
}

/// Odd in x; NaN stays NaN. No branch, as in [`exp`].
#[inline(always)]
fn tanh<L: Wide>(x: f32) -> f32 {
    let a = x.abs();
    let e = exp::<L>(-2.0 * a);
    let far = (1.0 - e) / (1.0 + e);
    // Near 0 the difference would lose digits: the series, whose next term is below 2e-8 of the result there.
    let s = a * a;
    let mut p = -1382.0 / 155_925.0;
    for c in [62.0 / 2835.0, -17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0, 1.0] {
        p = mul_add::<L>(p, s, c);
    }
    let t = if a < 0.3 { a * p } else { far };
    t.copysign(x)
}

/// `e^x` for `x <= 0` to 2e-7 relative, 0 below -87; NaN stays NaN. No branch, so that loops become vector code.
#[inline(always)]
fn exp<L: Wide>(x: f32) -> f32 {
    let clamped = if x < -87.0 { -87.0 } else { x };
    let n = (clamped * std::f32::consts::LOG2_E).round_ties_even();
    // ln 2 in two parts, so that the remainder is exact.
    let r = mul_add::<L>(n, 2.121_944_4e-4, mul_add::<L>(n, -0.693_359_4, clamped));
    let mut p = 1.0 / 720.0;
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = mul_add::<L>(p, r, c);
    }
    // Adding this leaves the integer in the low bits; a cast would not become vector code.
    let bits = (n + (127.0 + 8_388_608.0)).to_bits() << 23;
    let e = p * f32::from_bits(bits);
    if x < -87.0 { 0.0 } else { e }
}

/// `a * b + c`, rounded once where the set has that: elsewhere it would be a call of a library.
#[inline(always)]
fn mul_add<L: Wide>(a: f32, b: f32, c: f32) -> f32 {
    if matches!(L::ISA, Isa::Generic) { a * b + c } else { a.mul_add(b, c) }
}

#[cfg(test)]
mod tests {
    use crate::simd::Portable;

    fn exp(x: f32) -> f32 {
        super::exp::<Portable>(x)
    }

    fn tanh(x: f32) -> f32 {
        super::tanh::<Portable>(x)
    }

    #[test]
    fn exp_is_accurate() {
        let mut x = 0.0f32;
        while x > -87.0 {
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 4e-7, "{x}");
            x -= 0.003_7;
        }
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }
    #[test]
    fn tanh_is_accurate() {
        let mut x = 1e-6f32;
        while x < 40.0 {
            let exact = f64::from(x).tanh();
            assert!((f64::from(tanh(x)) / exact - 1.0).abs() < 8e-7, "{x}");
            assert_eq!(tanh(-x).to_bits(), (-tanh(x)).to_bits());
            x *= 1.003;
        }
        assert_eq!((tanh(0.0), tanh(f32::NEG_INFINITY)), (0.0, -1.0));
        assert!(tanh(f32::NAN).is_nan());
    }
}
