//! Whole numbers in proportion.

/// Whole numbers that sum to `total`, in proportion to `weights` (at least 0; all alike where all are 0), each of at least
/// `least` and at most its own of `most`: what a bound takes away or adds is shared out again, and fractions go to the
/// largest remainders, the first of equals. `total` lies between the sums of the bounds.
pub(crate) fn shares(weights: &[f64], total: usize, least: usize, most: &[usize]) -> Vec<usize> {
    let n = weights.len();
    let equal = weights.iter().all(|w| *w <= 0.0);
    let weight = |i: usize| if equal { 1.0 } else { weights[i].max(0.0) };
    let low = |i: usize| least.min(most[i]);
    let mut fixed: Vec<Option<usize>> = vec![None; n];
    let mut quotas = vec![0.0; n];
    loop {
        let open: Vec<usize> = (0..n).filter(|i| fixed[*i].is_none()).collect();
        let rest = total.saturating_sub(fixed.iter().flatten().sum()) as f64;
        let sum: f64 = open.iter().map(|i| weight(*i)).sum();
        for &i in &open {
            let share = if sum > 0.0 { weight(i) / sum } else { 1.0 / open.len() as f64 };
            quotas[i] = rest * share;
        }
        // How much the bounds add and take away: the larger side is certain.
        let below = |i: &usize| (low(*i) as f64 - quotas[*i]).max(0.0);
        let above = |i: &usize| (quotas[*i] - most[*i] as f64).max(0.0);
        let (adds, takes) =
            (open.iter().map(below).sum::<f64>(), open.iter().map(above).sum::<f64>());
        if adds <= 0.0 && takes <= 0.0 {
            break;
        }
        for i in open {
            if adds > takes && below(&i) > 0.0 {
                fixed[i] = Some(low(i));
            } else if adds <= takes && above(&i) > 0.0 {
                fixed[i] = Some(most[i]);
            }
        }
    }
    let mut found: Vec<usize> =
        (0..n).map(|i| fixed[i].unwrap_or(quotas[i].floor() as usize)).collect();
    let mut order: Vec<usize> = (0..n).filter(|i| fixed[*i].is_none()).collect();
    order.sort_by(|a, b| quotas[*b].fract().total_cmp(&quotas[*a].fract()));
    // Those that a bound fixed come last: they take what rounding leaves.
    order.extend((0..n).filter(|i| fixed[*i].is_some()));
    let mut left = total.saturating_sub(found.iter().sum());
    while left > 0 {
        let before = left;
        for &i in &order {
            if left > 0 && found[i] < most[i] {
                found[i] += 1;
                left -= 1;
            }
        }
        if left == before {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use tensorpress_tensor::linalg::SplitMix;

    use super::*;

    #[test]
    fn largest_remainders_by_hand() {
        assert_eq!(shares(&[5.0, 3.0, 2.0], 7, 0, &[9, 9, 9]), [4, 2, 1]); // 3.5, 2.1, 1.4
        assert_eq!(shares(&[5.0, 3.0, 2.0], 7, 0, &[2, 9, 9]), [2, 3, 2]); // 5 left as 3 : 2
        assert_eq!(shares(&[98.0, 1.0, 1.0], 10, 1, &[9, 9, 9]), [8, 1, 1]);
        assert_eq!(shares(&[0.0, 0.0], 3, 0, &[9, 9]), [2, 1]);
        assert_eq!(shares(&[0.0, 4.0], 5, 0, &[9, 3]), [2, 3]);
    }

    #[test]
    fn sums_and_bounds_hold() {
        let mut random = SplitMix::new(7);
        for _ in 0..3000 {
            let n = 1 + random.next_u64() as usize % 9;
            let weights: Vec<f64> = (0..n).map(|_| (random.next_f64() - 0.2).max(0.0)).collect();
            let most: Vec<usize> = (0..n).map(|_| random.next_u64() as usize % 12).collect();
            let least = random.next_u64() as usize % 4;
            let (low, high): (usize, usize) =
                (most.iter().map(|m| least.min(*m)).sum(), most.iter().sum());
            let total = low + random.next_u64() as usize % (high - low + 1);
            let found = shares(&weights, total, least, &most);
            assert_eq!(found.iter().sum::<usize>(), total, "{weights:?} {least} {most:?}");
            assert!(found.iter().zip(&most).all(|(f, m)| f <= m && *f >= least.min(*m)));
        }
    }
}
