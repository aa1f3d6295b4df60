//! A compressed layer in an engine's own threads: each has its rows and its scratch, all the same inputs, prepared once.

use tensorpress::prelude::*;
use tensorpress::tensor::ndarray::{Array2, Axis};
use tensorpress::tensor::{Accum, Scratch, linalg::Par, node::Input, stats::Calibration};

fn main() -> Result<()> {
    let weight =
        Array2::from_shape_fn((256, 512), |(r, c)| ((r * 31 + c * 17) % 101) as f32 / 101.0 - 0.5);
    let inputs =
        Array2::from_shape_fn((16, 512), |(t, c)| ((t * 13 + c * 7) % 97) as f32 / 97.0 - 0.5);
    let layer = tensorpress::compress(&weight, "rtn(bits=4, group=64)", &Calibration::none(512))?;
    let layer = layer.node.prepack()?; // laid out for this CPU; writes the same bytes

    let mut outputs = Array2::zeros((16, 256));
    let x = Input::new(inputs.view());
    std::thread::scope(|threads| {
        for (part, y) in outputs.axis_chunks_iter_mut(Axis(1), 64).enumerate() {
            let (layer, x, rows) = (&layer, &x, 64 * part..64 * (part + 1));
            threads.spawn(move || {
                let mut scratch = Scratch::new(Par::Seq); // keep it: a warm one is never grown again
                layer.matmul_rows(rows, x, y, Accum::Replace, &mut scratch).expect("it is whole");
            });
        }
    });

    let mut alone = Array2::zeros((16, 256));
    let mut two = Scratch::new(Par::Threads(2)); // of the rayon pool that is current, never more than two
    layer.matmul(inputs.view(), alone.view_mut(), Accum::Replace, &mut two)?;
    assert!((&outputs - &alone).iter().all(|difference| difference.abs() < 1e-4));
    Ok(())
}
