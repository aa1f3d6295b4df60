use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};

use super::code::Code;

/// Codes the targets `[codes, length]` over atoms of length 1 `[atoms, length]` by orthogonal matching pursuit (Pati,
/// Rezaiifar, Krishnaprasad, 1993): atom by atom the one nearest to what is left, all numbers fitted anew each time. A
/// code that explains no more than the atoms it had (fitted anew) keeps those.
pub(super) fn pursue(
    targets: ArrayView2<'_, f32>,
    dictionary: &Array2<f32>,
    nonzeros: usize,
    before: Option<&Code>,
    par: Par,
) -> Code {
    let (codes, atoms) = (targets.nrows(), dictionary.nrows());
    let mut gram = Array2::<f64>::zeros((atoms, atoms));
    let wide = dictionary.mapv(f64::from);
    linalg::matmul_nt(wide.view(), wide.view(), gram.view_mut(), false, par);
    let mut code = Code::empty(codes, atoms, nonzeros);
    let rows: Vec<_> = code
        .places
        .chunks_exact_mut(nonzeros.max(1))
        .zip(code.values.chunks_exact_mut(nonzeros.max(1)))
        .enumerate()
        .collect();
    let one = |along: &mut Vec<f64>, (i, (places, values)): (usize, (&mut [u32], &mut [f32]))| {
        let target = targets.row(i).mapv(f64::from);
        along.clear();
        along.extend(wide.rows().into_iter().map(|atom| atom.dot(&target)));
        let mut fit = Fit::default();
        fit.greedy(along, &gram, nonzeros);
        if let Some(before) = before {
            let mut old = Fit::default();
            for place in &before.places[i * nonzeros..(i + 1) * nonzeros] {
                old.add(*place as usize, along, &gram);
            }
            if old.explained(along) >= fit.explained(along) {
                fit = old;
            }
        }
        fit.pad(atoms, nonzeros);
        let mut entries: Vec<_> = fit.places.iter().zip(&fit.values).collect();
        entries.sort_unstable_by_key(|(place, _)| **place);
        for ((place, value), (to, number)) in entries.iter().zip(places.iter_mut().zip(values)) {
            (*to, *number) = (**place as u32, **value as f32);
        }
    };
    par.for_each_init(rows.into_iter(), Vec::new, one);
    code
}

/// The best numbers for some atoms, by a Cholesky factor of their scalar products that grows.
#[derive(Default)]
struct Fit {
    places: Vec<usize>,
    values: Vec<f64>,
    /// Rows of the lower factor.
    lower: Vec<Vec<f64>>,
    /// The factor's solution, before the backward step.
    half: Vec<f64>,
}

/// Squares of what is new of an atom, below which it is nothing but others.
const DEPENDENT: f64 = 1e-10;

impl Fit {
    fn greedy(&mut self, along: &[f64], gram: &Array2<f64>, nonzeros: usize) {
        let mut left = along.to_vec();
        let most = along.iter().fold(0.0f64, |most, v| most.max(v.abs()));
        while self.places.len() < nonzeros {
            // Of equals the first.
            let next = (0..left.len()).fold(0, |best, i| match left[i].abs() > left[best].abs() {
                true => i,
                false => best,
            });
            if left[next].abs() <= 1e-12 * most || !self.add(next, along, gram) {
                break;
            }
            left.copy_from_slice(along);
            for (place, value) in self.places.iter().zip(&self.values) {
                for (left, g) in left.iter_mut().zip(gram.row(*place)) {
                    *left -= value * g;
                }
            }
            // Nothing is left along those that were fitted, but for rounding.
            self.places.iter().for_each(|place| left[*place] = 0.0);
        }
    }

    /// Takes one more atom and fits all numbers anew, unless it is a sum of the others.
    fn add(&mut self, atom: usize, along: &[f64], gram: &Array2<f64>) -> bool {
        let mut row: Vec<f64> = Vec::with_capacity(self.places.len() + 1);
        for (i, place) in self.places.iter().enumerate() {
            let known: f64 = row.iter().zip(&self.lower[i]).map(|(a, b)| a * b).sum();
            row.push((gram[[atom, *place]] - known) / self.lower[i][i]);
        }
        let new = gram[[atom, atom]] - row.iter().map(|v| v * v).sum::<f64>();
        if new <= DEPENDENT {
            return false;
        }
        let known: f64 = row.iter().zip(&self.half).map(|(a, b)| a * b).sum();
        self.half.push((along[atom] - known) / new.sqrt());
        row.push(new.sqrt());
        self.lower.push(row);
        self.places.push(atom);
        self.values = self.half.clone();
        for i in (0..self.values.len()).rev() {
            let known: f64 =
                (i + 1..self.values.len()).map(|j| self.lower[j][i] * self.values[j]).sum();
            self.values[i] = (self.values[i] - known) / self.lower[i][i];
        }
        true
    }

    /// How much of the target's square the atoms explain.
    fn explained(&self, along: &[f64]) -> f64 {
        self.places.iter().zip(&self.values).map(|(place, value)| along[*place] * value).sum()
    }

    /// Zeros at the first atoms that are free, so that every code has as many numbers.
    fn pad(&mut self, atoms: usize, nonzeros: usize) {
        for atom in 0..atoms {
            if self.places.len() >= nonzeros {
                break;
            }
            if !self.places.contains(&atom) {
                self.places.push(atom);
                self.values.push(0.0);
            }
        }
    }
}
