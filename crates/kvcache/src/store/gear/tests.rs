use ndarray::{Array2, s};
use tensorpress_tensor::{Checkpoint, DType, ndarray};

use super::GearCode;
use super::code::factors;
use crate::store::Axis;
use crate::store::coded::{Code, floats};
use crate::store::tests::{golden, near, rows_of};

/// The released code lays grids over all heads' channels of a token, 64 at a time.
fn code(axis: Axis, bits: u32) -> GearCode {
    GearCode {
        dim: 128,
        chunk: 192,
        axis,
        group: 64,
        most: bits * bits - 1,
        outliers: 0,
        rank: 0,
        steps: 3,
        seed: 0,
        dtype: DType::F32,
    }
}

fn decoded(code: GearCode, x: &Array2<f32>) -> Array2<f32> {
    let mut streams = vec![Vec::new(); 7];
    code.encode(x.view(), &mut streams);
    let unit: Vec<&[u8]> = streams.iter().map(Vec::as_slice).collect();
    let mut out = vec![0.0; x.len()];
    code.decode(&unit, &mut out);
    Array2::from_shape_vec(x.dim(), out).expect("as it was")
}

fn start(file: &Checkpoint, name: &str, head: usize) -> Array2<f32> {
    let values = floats(DType::F32, file.tensor(name).expect("there").bytes());
    Array2::from_shape_vec((32, 4), values[head * 128..][..128].to_vec()).expect("32 x 4")
}

/// Integers alone, with sparse entries, and all three parts of the released code; its factors are those of each head.
#[test]
fn golden_gear() {
    let Some(file) = golden("gear_g64") else { return };
    let mut checked = 0;
    for (short, input, axis) in [("key", "in.k", Axis::Channel), ("val", "in.v", Axis::Token)] {
        let x = rows_of(&file, input, 4, 192, 32);
        for bits in [2, 4] {
            let case = format!("{short}_b{bits}");
            let close = |mine: &Array2<f32>, name: &str, tolerance| {
                let theirs = rows_of(&file, name, 4, 192, 32);
                let theirs = theirs.as_slice().expect("standard layout");
                near(mine.as_slice().expect("standard layout"), theirs, tolerance, name);
            };
            let plain = code(axis, bits);
            let integers = decoded(plain, &x);
            close(&integers, &format!("quant_only_{case}"), 2e-6);
            let sparse = GearCode { outliers: 1, ..plain };
            let both = decoded(sparse, &x);
            // Theirs is rounded to f16.
            close(&both, &format!("GEAR_{case}.quant_plus_sparse"), 5e-4);
            for (name, base) in [("GEARL", &integers), ("GEAR", &both)] {
                let mut all = base.clone();
                let name = format!("{name}_{case}");
                for h in 0..4 {
                    let head = s![.., 32 * h..32 * h + 32];
                    let error = &x.slice(head) - &base.slice(head);
                    let start = start(&file, &format!("{name}.p_init"), h);
                    let (left, right) = factors(error.view(), start, 3);
                    let mut sum = all.slice_mut(head);
                    sum += &left.dot(&right.t());
                }
                close(&all, &format!("{name}.out"), 1e-3);
                checked += 1;
            }
            checked += 2;
        }
    }
    println!("gear: 1 file, {checked} tensors equal");
}

/// What is packed is what the parts give, in f64 by plain loops; each part takes its share of the error away.
#[test]
fn each_part_helps() {
    let mut random = tensorpress_tensor::linalg::SplitMix::new(1);
    let mut noise = || random.next_f64() as f32 - 0.5;
    // Two directions that all rows share, noise and a few large entries.
    let sides: Vec<f32> = (0..2 * (64 + 32)).map(|_| noise()).collect();
    let x = Array2::from_shape_fn((64, 32), |(t, c)| {
        let shared = 3.0 * (sides[t] * sides[128 + c] + sides[64 + t] * sides[160 + c]);
        shared + noise() + if (t * 32 + c) % 97 == 5 { 6.0 } else { 0.0 }
    });
    for axis in [Axis::Channel, Axis::Token] {
        let plain = GearCode { dim: 32, chunk: 64, group: 32, ..code(axis, 2) };
        let error = |code: GearCode| (&decoded(code, &x) - &x).mapv(|e| f64::from(e).powi(2)).sum();
        let errors = [
            error(plain),
            error(GearCode { outliers: 1, ..plain }),
            error(GearCode { rank: 4, ..plain }),
            error(GearCode { outliers: 1, rank: 4, ..plain }),
        ];
        let [plain, sparse, low, all] = errors;
        assert!(sparse < 0.9 * plain && low < 0.9 * plain, "{axis:?}: {errors:?}");
        assert!(all < 0.9 * sparse && all < 0.9 * low, "{axis:?}: {errors:?}");
    }
}
