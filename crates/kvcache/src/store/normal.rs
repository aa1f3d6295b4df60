//! The standard normal distribution.

/// The share of it below `x`: the series of odd powers (Marsaglia, 2004), exact to rounding for |x| < 7.
fn below(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 2.0;
        term *= x * x / n;
        sum += term;
    }
    0.5 + sum * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
}

/// The number that this share of it is below, for shares from 1e-9 to 1 - 1e-9.
pub(crate) fn quantile(share: f64) -> f64 {
    let (mut low, mut high) = (-6.5, 6.5);
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        if below(middle) < share { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// As many evenly likely numbers of it, ascending.
pub(crate) fn sample(count: usize) -> Vec<f32> {
    (0..count).map(|i| quantile((i as f64 + 0.5) / count as f64) as f32).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn quantiles_are_those_of_tables() {
        for (share, x) in [(0.5, 0.0), (0.975, 1.959_963_984_540), (0.001, -3.090_232_306_168)] {
            assert!((super::quantile(share) - x).abs() < 1e-9, "{share}");
        }
    }
}
