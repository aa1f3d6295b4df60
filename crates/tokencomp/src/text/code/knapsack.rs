//! The 0/1 knapsack.

/// Of items with weights and values above 0, those of the most value within a capacity, in order: exact, in time and memory of
/// items x capacity.
pub(super) fn best(weights: &[usize], values: &[f64], capacity: usize) -> Vec<usize> {
    let capacity = capacity.min(weights.iter().sum());
    let mut most = vec![0.0f64; capacity + 1];
    let mut taken = vec![false; weights.len() * (capacity + 1)];
    for (item, (weight, value)) in weights.iter().zip(values).enumerate() {
        for room in (*weight..=capacity).rev() {
            let with = most[room - weight] + value;
            if with > most[room] {
                most[room] = with;
                taken[item * (capacity + 1) + room] = true;
            }
        }
    }
    let (mut room, mut chosen) = (capacity, Vec::new());
    for item in (0..weights.len()).rev() {
        if taken[item * (capacity + 1) + room] {
            room -= weights[item];
            chosen.push(item);
        }
    }
    chosen.reverse();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_best_of_all_subsets() {
        let mut seed = 3u32;
        for _ in 0..300 {
            let mut draw = |below: u32| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 16) % below
            };
            let n = draw(9) as usize;
            let weights: Vec<usize> = (0..n).map(|_| draw(12) as usize).collect();
            let values: Vec<f64> = (0..n).map(|_| f64::from(draw(100)) / 7.0).collect();
            let capacity = draw(40) as usize;
            let sum = |set: u32| {
                let items = (0..n).filter(|i| set >> i & 1 == 1);
                items.fold((0, 0.0), |(w, v), i| (w + weights[i], v + values[i]))
            };
            let fits = (0..1u32 << n).map(sum).filter(|(w, _)| *w <= capacity);
            let exact = fits.map(|(_, v)| v).fold(0.0, f64::max);
            let chosen = best(&weights, &values, capacity);
            let (weight, value) =
                chosen.iter().fold((0, 0.0), |(w, v), i| (w + weights[*i], v + values[*i]));
            assert!(weight <= capacity && (value - exact).abs() < 1e-9, "{value} {exact}");
        }
    }
}
