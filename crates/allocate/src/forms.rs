use tensorpress_tensor::{Error, Result};

use crate::{Choice, Unit};

/// What a matrix may become: so many bits a weight, as it is or as two factors of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Form {
    /// Bits of a weight, of either factor.
    pub bits: u32,
    /// Columns of the first factor; none where the matrix is kept as one.
    pub rank: Option<usize>,
}

impl Form {
    /// The matrix at so many bits.
    #[must_use]
    pub fn dense(bits: u32) -> Self {
        Self { bits, rank: None }
    }

    /// Two factors of a rank at so many bits.
    #[must_use]
    pub fn factored(bits: u32, rank: usize) -> Self {
        Self { bits, rank: Some(rank) }
    }

    /// Bits that a matrix of `[out, in]` takes so.
    #[must_use]
    pub fn cost(&self, (rows, columns): (usize, usize)) -> u64 {
        let [rows, columns] = [rows, columns].map(|n| n as u64);
        let weights = match self.rank {
            Some(rank) => rows.saturating_add(columns).saturating_mul(rank as u64),
            None => rows.saturating_mul(columns),
        };
        weights.saturating_mul(u64::from(self.bits))
    }
}

/// The first stage of MLoRQ (Gordon et al., *MLoRQ: Bridging Low-Rank and Quantization for Transformer Compression*, 2025):
/// of all pairs of bits and rank, and of the matrix as it is at all bits, those that no other beats in both size and error.
/// Level i of the unit is form i; the second stage is a [`crate::Solver`] on a table of such units.
///
/// `error` measures a form, so that its metric is the caller's: the error of the outputs, as a rule.
///
/// # Errors
/// `InvalidArgument`, naming the matrix, for a rank of 0 or above the matrix's, and without any form; `Numerical` for an
/// error that is no finite number; those of `error`.
pub fn forms(
    name: &str,
    shape: (usize, usize),
    bits: &[u32],
    ranks: &[usize],
    error: &mut dyn FnMut(Form) -> Result<f64>,
) -> Result<(Unit, Vec<Form>)> {
    let most = shape.0.min(shape.1);
    if let Some(rank) = ranks.iter().find(|rank| !(1..=most).contains(*rank)) {
        let message = format!("a rank of {rank}: allowed are those from 1 to {most}");
        return Err(Error::invalid(message).in_tensor(name));
    }
    let of = |bits: &u32| {
        let factored = ranks.iter().map(|rank| Form::factored(*bits, *rank));
        std::iter::once(Form::dense(*bits)).chain(factored).collect::<Vec<Form>>()
    };
    let all: Vec<Form> = bits.iter().flat_map(of).collect();
    let mut choices = Vec::with_capacity(all.len());
    for form in &all {
        let error = error(*form).map_err(|refused| refused.in_tensor(name))?;
        if !error.is_finite() {
            let message = format!("the error of {form:?} is {error}");
            return Err(Error::numerical(message).in_tensor(name));
        }
        choices.push(Choice::new(form.cost(shape), error));
    }
    if all.is_empty() {
        return Err(Error::invalid("has no bits to choose").in_tensor(name));
    }
    let front = Unit::new(name, choices.clone()).pareto();
    let kept: Vec<Choice> = front.iter().map(|at| choices[*at]).collect();
    Ok((Unit::new(name, kept), front.into_iter().map(|at| all[at]).collect()))
}
