//! Fewer tokens: a sequence of states merged to half its length, and a text within a budget.

use tensorpress::prelude::*;
use tensorpress::tensor::ndarray::Array2;
use tensorpress::tokencomp::{TokenHints, reducer, stages};

fn main() -> Result<()> {
    let states = Array2::from_shape_fn((64, 32), |(t, c)| ((t / 3 * 5 + c * 7) % 19) as f32 - 9.0);
    let reduce = reducer("tome", &stages())?;
    let map = reduce.plan(states.view(), &TokenHints::default(), 32)?;
    let merged = map.merge(states.view(), None)?;
    println!("{} states merged to {}", states.nrows(), merged.nrows());
    assert_eq!(map.unmerge(merged.view())?.dim(), states.dim());
    Ok(())
}
