//! Importance matrices: both forms, written and read, and what is wrong with them.

use proptest::prelude::*;
use tensorpress_formats::imatrix::{Imatrix, Squares};
use tensorpress_tensor::ErrorKind;

fn made(matrices: usize, inputs: usize, experts: usize, seed: u64) -> Imatrix {
    let mut random = tensorpress_tensor::linalg::SplitMix::new(seed);
    let mut read = Imatrix::default();
    for i in 0..matrices {
        let sums = (0..inputs * experts).map(|_| random.next_f64() as f32 * 8.0).collect();
        let counts =
            (0..experts).map(|_| (1.0 + random.next_f64() * 99.0).floor() as f32).collect();
        let squares = Squares::new(sums, counts).expect("fits");
        read.matrices.insert(format!("blk.{i}.attn_q.weight"), squares);
    }
    (read.datasets, read.chunks, read.chunk_size) = (vec!["a text".to_owned()], 7, 512);
    read
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(
        matrices in 0usize..4, inputs in 1usize..40, experts in 1usize..4, seed: u64,
    ) {
        let imatrix = made(matrices, inputs, experts, seed);
        prop_assert_eq!(&Imatrix::read(imatrix.write().expect("written")).expect("reads"), &imatrix);
        let old = Imatrix::read(imatrix.write_old().expect("written")).expect("reads");
        prop_assert_eq!(old.matrices.len(), matrices);
        for (name, squares) in &imatrix.matrices {
            let means: Vec<f32> =
                (0..experts).flat_map(|e| squares.importance(e).expect("counted")).collect();
            let got = old.matrices[name].importance(0).expect("counted");
            for (a, b) in means.iter().zip(&got) {
                prop_assert!((a - b).abs() <= 1e-5 * a.abs(), "{a} {b}");
            }
        }
    }

    #[test]
    fn damage_is_an_error_or_another_matrix(at in 0usize..400, bit in 0u8..8, cut: bool) {
        for bytes in [made(2, 9, 2, 1).write().unwrap(), made(2, 9, 1, 1).write_old().unwrap()] {
            let mut bytes = bytes;
            let at = at % bytes.len();
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            let _ = Imatrix::read(bytes);
        }
    }
}

#[test]
fn what_is_wrong_is_said() {
    assert_eq!(
        Squares::new(vec![1.0; 3], vec![1.0; 2]).unwrap_err().kind(),
        ErrorKind::ShapeMismatch
    );
    assert_eq!(Squares::new(vec![f32::NAN], vec![1.0]).unwrap_err().kind(), ErrorKind::Numerical);
    let negative = i32::to_le_bytes(-1);
    assert_eq!(Imatrix::read(&negative[..]).unwrap_err().kind(), ErrorKind::Corruption);
    // A count that no bytes back is not believed.
    let many = i32::to_le_bytes(i32::MAX);
    assert_eq!(Imatrix::read(&many[..]).unwrap_err().kind(), ErrorKind::Corruption);
    let unseen = Squares::new(vec![0.0; 4], vec![0.0, 2.0]).unwrap();
    assert!(unseen.importance(0).is_none() && unseen.importance(1).is_some());
}
