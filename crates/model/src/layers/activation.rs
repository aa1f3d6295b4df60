use super::math::exp;
use crate::config::Activation;

impl Activation {
    /// Replaces every value by its activation.
    pub(crate) fn apply(self, values: &mut [f32]) {
        match self {
            Self::Silu => values.iter_mut().for_each(|v| *v = silu(*v)),
            Self::Gelu => values.iter_mut().for_each(|v| *v = gelu(*v)),
            Self::GeluTanh => values.iter_mut().for_each(|v| *v = gelu_tanh(*v)),
            Self::Relu => values.iter_mut().for_each(|v| *v = v.max(0.0)),
            Self::QuickGelu => values.iter_mut().for_each(|v| *v = quick_gelu(*v)),
        }
    }

    /// `gate = activation(gate) * up`.
    pub(crate) fn gate(self, gate: &mut [f32], up: &[f32]) {
        self.apply(gate);
        gate.iter_mut().zip(up).for_each(|(g, u)| *g *= u);
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
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
        near(erf(0.5), 0.520_499_9);
        near(erf(-1.5), -0.966_105_1);
        near(gelu(1.0), 0.841_344_7);
        near(gelu_tanh(1.0), 0.841_192);
        near(silu(1.0), 0.731_058_6);
        near(silu(-100.0), 0.0);
    }
}
