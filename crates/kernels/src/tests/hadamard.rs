use super::*;
use crate::*;

const LANES: [usize; 7] = [1, 3, 8, 17, 64, 100, 300];

/// The definition, in f64: entry (i, j) is the parity of the bits that i and j share.
fn slow(x: &[f32], lane: usize) -> Vec<f64> {
    let lanes = x.len() / lane;
    let entry = |at: usize| {
        let (i, k) = (at / lane, at % lane);
        let signed = |j: usize| {
            let v = f64::from(x[j * lane + k]);
            if (i & j).count_ones() % 2 == 1 { -v } else { v }
        };
        (0..lanes).map(signed).sum()
    };
    (0..x.len()).map(entry).collect()
}

#[test]
fn lanes_are_transformed_as_defined_to_the_same_bits_everywhere() {
    on_every_isa(|isa| {
        for lane in LANES {
            for lanes in [1usize, 2, 4, 8, 16, 32, 64, 128, 256] {
                let x = Random(21).normals(lane * lanes);
                let (mut all, mut portable) = (x.clone(), x.clone());
                hadamard_lanes_on(isa, &mut all, lane);
                hadamard_lanes_on(Isa::Generic, &mut portable, lane);
                assert_same_bits(&all, &portable, "lanes");
                assert_near(&all, &slow(&x, lane), 1e-3, "lanes");
            }
        }
        hadamard_lanes_on(isa, &mut [], 3);
        let odd = std::panic::catch_unwind(|| hadamard_lanes_on(isa, &mut [0.0; 6], 2));
        assert!(odd.is_err());
    });
}

#[test]
fn the_last_levels_may_go_elsewhere() {
    on_every_isa(|isa| {
        for width in LANES {
            for (parts, rows) in [(1usize, 3usize), (2, 1), (2, 5), (4, 3), (8, 1), (8, 4)] {
                let x = Random(22).normals(parts * rows * width);
                // A matrix that is wider than what is written to.
                let mut out = vec![7.0; parts * rows * (width + 2)];
                let mut to: Vec<_> =
                    out.chunks_mut(width + 2).map(|row| &mut row[1..=width]).collect();
                hadamard_rows_on(isa, &x, parts, &mut to);
                let mut expected = x.clone();
                hadamard_lanes_on(Isa::Generic, &mut expected, rows * width);
                for (row, expected) in out.chunks(width + 2).zip(expected.chunks(width)) {
                    assert_same_bits(&row[1..=width], expected, "rows");
                    assert_eq!((row[0], row[width + 1]), (7.0, 7.0));
                }
            }
        }
        hadamard_rows_on(isa, &[], 8, &mut []);
        hadamard_rows_on(isa, &[], 2, &mut [&mut [], &mut []]);
    });
}

#[test]
fn lanes_are_scaled() {
    on_every_isa(|isa| {
        for lane in LANES {
            let (x, factors) = (Random(23).normals(5 * lane), Random(24).normals(5));
            let mut scaled = x.clone();
            scale_lanes_on(isa, &mut scaled, &factors);
            let expected: Vec<f32> =
                x.iter().enumerate().map(|(i, x)| x * factors[i / lane]).collect();
            assert_same_bits(&scaled, &expected, "scaled");
        }
        scale_lanes_on(isa, &mut [], &[]);
    });
}

#[test]
fn parts_are_those_of_whole_rows() {
    on_every_isa(|isa| {
        for bits in 1..=8 {
            for (cols, group) in [(1, 1), (40, 5), (300, 32), (300, 128), (301, 64), (512, 512)] {
                let rows = 11;
                let (groups, bytes) = (usize::div_ceil(cols, group), packed_len(cols, bits));
                let mut packed = vec![0; rows * bytes];
                for row in packed.chunks_mut(bytes) {
                    pack_bits(&Random(25).codes(cols, bits), bits, row);
                }
                let scales = Random(26).normals(rows * groups);
                let zeros = Random(27).normals(rows * groups);
                let w = AffineRows {
                    packed: &packed,
                    bits,
                    rows,
                    cols,
                    group,
                    scales: &scales,
                    zeros: &zeros,
                };
                let mut whole = vec![0.0; rows * cols];
                for (r, out) in whole.chunks_mut(cols).enumerate() {
                    let (packed, scales, zeros) = w.row(r);
                    decode_affine_on(
                        Isa::Generic,
                        packed,
                        bits,
                        0,
                        scales,
                        zeros,
                        group,
                        out,
                        false,
                    );
                }
                for columns in [0..cols, 0..cols / 2, cols / 3..cols, 16.min(cols)..cols, 0..0] {
                    for range in [0..rows, 3..4, 9..rows, 5..5] {
                        let mut part = vec![0.0; range.len() * columns.len()];
                        decode_part_on(isa, &w, range.clone(), columns.clone(), &mut part);
                        let expected = range
                            .flat_map(|r| &whole[r * cols + columns.start..r * cols + columns.end]);
                        let expected: Vec<f32> = expected.copied().collect();
                        assert_same_bits(&part, &expected, "part");
                    }
                }
            }
        }
    });
}
