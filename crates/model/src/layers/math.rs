//! Exponentials, and the place of the largest value.

pub(crate) use tensorpress_tensor::kernels::{exp, log_sum_exp, maximum as max, softmax};

/// Index of the largest value, the first of equals.
pub(crate) fn argmax(values: &[f32]) -> usize {
    let top = max(values);
    values.iter().position(|v| *v == top).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_is_taken() {
        for n in 1..40 {
            let values: Vec<f32> = (0..n).map(|i| (i * 7 % 11) as f32).collect();
            assert_eq!(argmax(&values), values.iter().position(|v| *v == max(&values)).unwrap());
        }
    }
}
