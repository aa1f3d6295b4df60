//! One matrix: compressed by a line of text, multiplied by, counted, written and read.

use tensorpress::prelude::*;
use tensorpress::tensor::node::{bits_per_weight, from_bytes, to_bytes};
use tensorpress::tensor::{Accum, Scratch, linalg::Par, ndarray::Array2, stats::Calibration};

fn main() -> Result<()> {
    let weight =
        Array2::from_shape_fn((64, 256), |(r, c)| ((r * 31 + c * 17) % 101) as f32 / 101.0 - 0.5);
    let inputs =
        Array2::from_shape_fn((512, 256), |(t, c)| ((t * 13 + c * 7) % 97) as f32 / 97.0 - 0.5);
    let calibration = Calibration::from_samples(inputs.clone(), Par::Seq);

    let node = tensorpress::compress(&weight, "gptq(bits=4, group=64)", &calibration)?.node;
    println!("{:.3} bits a weight", bits_per_weight(&*node)?);

    let mut outputs = Array2::zeros((512, 64));
    node.matmul(inputs.view(), outputs.view_mut(), Accum::Replace, &mut Scratch::default())?;
    let exact = inputs.dot(&weight.t());
    let error = (&outputs - &exact).mapv(|e| e * e).sum() / exact.mapv(|e| e * e).sum();
    println!("{:.2e} of the outputs' energy is lost", error);
    assert!(error < 1e-2);

    let again = from_bytes(to_bytes(&*node)?, &registry())?;
    assert_eq!(again.shape(), node.shape());
    Ok(())
}
