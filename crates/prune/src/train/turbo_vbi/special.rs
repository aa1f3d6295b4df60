/// Where the asymptotic series are exact to rounding.
const FAR: f64 = 12.0;

/// The derivative of ln Γ, for x > 0: by its recurrence to where the asymptotic series holds (Abramowitz & Stegun,
/// 6.3.5 and 6.3.18).
pub(super) fn digamma(mut x: f64) -> f64 {
    let mut sum = 0.0;
    while x < FAR {
        sum -= 1.0 / x;
        x += 1.0;
    }
    let s = 1.0 / (x * x);
    let series =
        s * (1.0 / 12.0 - s * (1.0 / 120.0 - s * (1.0 / 252.0 - s * (1.0 / 240.0 - s / 132.0))));
    sum + x.ln() - 0.5 / x - series
}

/// ln Γ, for x > 0 (Abramowitz & Stegun, 6.1.15 and 6.1.40).
pub(super) fn ln_gamma(mut x: f64) -> f64 {
    let mut sum = 0.0;
    while x < FAR {
        sum -= x.ln();
        x += 1.0;
    }
    let s = 1.0 / (x * x);
    let series =
        (1.0 / 12.0 - s * (1.0 / 360.0 - s * (1.0 / 1260.0 - s * (1.0 / 1680.0 - s / 1188.0)))) / x;
    sum + (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + series
}
