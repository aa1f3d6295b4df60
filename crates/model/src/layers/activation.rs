use tensorpress_tensor::kernels;

use super::math::exp;
use crate::config::Activation;

impl Activation {
    /// Replaces every value by its activation.
    pub(crate) fn apply(self, values: &mut [f32]) {
        match self {
            Self::Silu => kernels::swish(values, 1.0),
            Self::Gelu => values.iter_mut().for_each(|v| *v = gelu(*v)),
            Self::GeluTanh => values.iter_mut().for_each(|v| *v = gelu_tanh(*v)),
            Self::Relu => values.iter_mut().for_each(|v| *v = v.max(0.0)),
            Self::QuickGelu => kernels::swish(values, 1.702),
        }
    }

    /// `gate = activation(gate) * up`.
    pub(crate) fn gate(self, gate: &mut [f32], up: &[f32]) {
        self.apply(gate);
        gate.iter_mut().zip(up).for_each(|(g, u)| *g *= u);
    }

    /// `value(activation(x), its derivative at x)` of every value of `x`, in turn.
    pub(crate) fn with_slopes(self, x: &[f32], value: impl FnMut(usize, f32, f32)) {
        match self {
            Self::Silu => each(x, |x| sloped(x, 1.0), value),
            Self::QuickGelu => each(x, |x| sloped(x, 1.702), value),
            Self::Gelu => each(x, gelu_slope, value),
            Self::GeluTanh => each(x, gelu_tanh_slope, value),
            Self::Relu => each(x, |x| (x.max(0.0), f32::from(u8::from(x > 0.0))), value),
        }
    }
}

fn each(x: &[f32], both: impl Fn(f32) -> (f32, f32), mut value: impl FnMut(usize, f32, f32)) {
    for (i, x) in x.iter().enumerate() {
        let (y, slope) = both(*x);
        value(i, y, slope);
    }
}

/// x sigmoid(a x), and its derivative.
pub(crate) fn sloped(x: f32, a: f32) -> (f32, f32) {
    let share = 1.0 / (1.0 + exp(-a * x));
    (x * share, share * (1.0 + a * x * (1.0 - share)))
}

fn gelu_slope(x: f32) -> (f32, f32) {
    let below = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
    let density = exp(-0.5 * x * x)
        * 0.5
        * std::f32::consts::FRAC_2_SQRT_PI
        * std::f32::consts::FRAC_1_SQRT_2;
    (x * below, below + x * density)
}

fn gelu_tanh_slope(x: f32) -> (f32, f32) {
    let root = (2.0 / std::f32::consts::PI).sqrt();
    let t = (root * (x + 0.044_715 * x * x * x)).tanh();
    let inner = root * (1.0 + 3.0 * 0.044_715 * x * x);
    (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner)
}

/// x sigmoid(1.702 x)
pub(crate) fn quick_gelu(x: f32) -> f32 {
    x / (1.0 + exp(-1.702 * x))
}

fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

fn gelu_tanh(x: f32) -> f32 {
    let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

/// The error function to 2e-7: formula 7.1.26 of Abramowitz and Stegun.
fn erf(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * a);
    let poly = 1.061_405_4;
    let poly = poly * t - 1.453_152;
    let poly = poly * t + 1.421_413_7;
    let poly = poly * t - 0.284_496_74;
    let poly = poly * t + 0.254_829_6;
    (1.0 - poly * t * exp(-a * a)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let near = |a: f32, b: f32| assert!((a - b).abs() < 2e-6, "{a} {b}");
        let silu = |x: f32| {
            let mut values = [x];
            Activation::Silu.apply(&mut values);
            values[0]
        };
        near(erf(0.5), 0.520_499_9);
        near(erf(-1.5), -0.966_105_1);
        near(gelu(1.0), 0.841_344_7);
        near(gelu_tanh(1.0), 0.841_192);
        near(silu(1.0), 0.731_058_6);
        near(silu(-100.0), 0.0);
    }

    #[test]
    fn slopes_are_those_of_the_values() {
        use Activation::{Gelu, GeluTanh, QuickGelu, Relu, Silu};
        let x: Vec<f32> = (-400..400).map(|i| i as f32 * 0.01 + 0.005).collect();
        for kind in [Silu, Gelu, GeluTanh, Relu, QuickGelu] {
            let (step, mut values, mut got) = (1.0 / 128.0, x.clone(), Vec::new());
            kind.apply(&mut values);
            kind.with_slopes(&x, |_, y, slope| got.push((y, slope)));
            let mut around = [-step, step].map(|d| x.iter().map(|v| v + d).collect::<Vec<_>>());
            around.iter_mut().for_each(|values| kind.apply(values));
            for (i, (y, slope)) in got.into_iter().enumerate() {
                assert!((y - values[i]).abs() < 1e-6, "{kind:?} at {}", x[i]);
                let near = (around[1][i] - around[0][i]) / (2.0 * step);
                let kink = kind == Relu && x[i].abs() < step;
                assert!(
                    kink || (slope - near).abs() < 2e-4,
                    "{kind:?} at {}: {slope} {near}",
                    x[i]
                );
            }
        }
    }
}
