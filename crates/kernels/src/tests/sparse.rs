use super::*;
use crate::*;

type Mask = Bitmap<Vec<u8>>;

/// A support from what it keeps.
fn mask(rows: usize, cols: usize, mut keep: impl FnMut(usize, usize) -> bool) -> Mask {
    let stride = cols.div_ceil(8);
    let mut bits = vec![0u8; rows * stride];
    for row in 0..rows {
        for col in 0..cols {
            bits[row * stride + col / 8] |= u8::from(keep(row, col)) << (col % 8);
        }
    }
    Bitmap::new(rows, cols, bits).unwrap()
}

/// A random support in which about one of `every` entries stays: 0 for none, 1 for all.
fn support(rows: usize, cols: usize, every: u64, random: &mut Random) -> Mask {
    mask(rows, cols, |_, _| every > 0 && random.word().is_multiple_of(every))
}

/// Kept numbers in their stored type, and the dense matrix they stand for.
fn stored(mask: &Mask, format: FloatType, random: &mut Random) -> (Vec<u8>, Vec<f32>) {
    let [rows, cols] = mask.shape();
    let values = random.normals(mask.kept(0..rows));
    let (bytes, rounded) = store(format, &values);
    let mut rounded = rounded.into_iter();
    let mut dense = vec![0.0; rows * cols];
    for row in 0..rows {
        mask.for_each_kept(row, |c| dense[row * cols + c] = rounded.next().unwrap());
    }
    (bytes, dense)
}

/// Supports of every kind: random ones, none, all, n of m, odd sizes.
fn supports() -> Vec<Mask> {
    let mut random = Random(1);
    let mut masks = Vec::new();
    for (rows, cols) in
        [(0, 0), (0, 5), (5, 0), (1, 1), (3, 7), (4, 64), (5, 63), (9, 65), (6, 200), (17, 128)]
    {
        for every in [0, 1, 2, 9] {
            masks.push(support(rows, cols, every, &mut random));
        }
        // A full row between empty ones.
        masks.push(mask(rows, cols, |r, _| r == 2));
    }
    for (tall, wide) in [(4, 4), (16, 1), (8, 3), (3, 8), (40, 1)] {
        masks.push(mask(41, 50, |r, c| (r / tall * 3 + c / wide * 5) % 7 < 2));
    }
    for (n, m) in [(2, 4), (1, 2), (4, 8), (5, 8), (1, 16), (12, 16)] {
        for (rows, cols) in [(5, 64), (6, 16), (3, 208)] {
            masks.push(mask(rows, cols, |r, c| (c * 5 + r + c / m) % m < n));
        }
    }
    masks
}

#[test]
fn stored_numbers_multiply_and_decode() {
    on_every_isa(|isa| {
        let mut random = Random(2);
        for mask in supports() {
            let [rows, cols] = mask.shape();
            for format in FLOATS {
                for sparse in [true, false] {
                    let (mut values, dense) = stored(&mask, format, &mut random);
                    if !sparse {
                        values = store(format, &dense).0;
                    }
                    // An odd address.
                    let mut place = vec![0xffu8];
                    place.extend_from_slice(&values);
                    let support = sparse.then(|| mask.support());
                    let w = StoredRows { values: &place[1..], format, rows, cols, support };
                    check_stored(isa, &w, &dense, &mut random);
                }
            }
        }
    });
}

fn check_stored(isa: Isa, w: &StoredRows<'_>, dense: &[f32], random: &mut Random) {
    let (rows, cols) = (w.rows, w.cols);
    for row in 0..rows {
        let mut out = vec![f32::NAN; cols];
        stored_decode(w, row, &mut out, false, &mut Work::on(isa, Par::Seq));
        let expected = &dense[row * cols..(row + 1) * cols];
        assert_same_bits(&out, expected, "decoded");
        stored_decode(w, row, &mut out, true, &mut Work::on(isa, Par::Seq));
        let twice: Vec<f32> = expected.iter().map(|v| v + v).collect();
        assert_same_bits(&out, &twice, "decoded twice");
    }
    for t in [0, 1, 2, 3, 5, 33] {
        let x = random.normals(t * cols);
        let mut y = vec![f32::NAN; t * rows];
        let mut work = Work::on(isa, if t % 2 == 1 { Par::Rayon } else { Par::Seq });
        stored_matmul(w, 0..rows, &x, t, &mut y, false, &mut work);
        in_pieces(rows, t, &y, "rows", |some, y| {
            stored_matmul(w, some, &x, t, y, true, &mut work);
        });
        if w.support.is_some() {
            let mut blocks = vec![f32::NAN; t * rows];
            let inputs = BlockInputs::new(w);
            block_matmul(w, &inputs, 0..rows, &x, t, &mut blocks, false, &mut work);
            in_pieces(rows, t, &blocks, "rows of blocks", |some, y| {
                block_matmul(w, &inputs, some, &x, t, y, true, &mut work);
            });
            let y: Vec<f64> = y.iter().map(|y| f64::from(*y)).collect();
            assert_near(&blocks, &y, 1e-6 * (1.0 + cols as f64), "product in blocks");
        }
        let exact: Vec<f64> = (0..t * rows)
            .map(|i| {
                let (x, w) = (&x[i / rows * cols..], &dense[i % rows * cols..]);
                (0..cols).map(|c| f64::from(x[c]) * f64::from(w[c])).sum()
            })
            .collect();
        assert_near(&y, &exact, 1e-6 * (1.0 + cols as f64), "product");
        for token in 0..t {
            let mut one = vec![0.0; rows];
            let x = &x[token * cols..(token + 1) * cols];
            let mut work = Work::on(isa, Par::Threads(2));
            stored_matmul(w, 0..rows, x, 1, &mut one, true, &mut work);
            assert_same_bits(&one, &y[token * rows..(token + 1) * rows], "a token alone");
        }
    }
}

#[test]
fn entries_outside_touch_nothing() {
    // What lies behind a row, or in another one, may be NaN.
    let mut values = vec![1.0f32; 40];
    values.extend([f32::NAN; 60]);
    let mask = mask(2, 70, |r, c| if r == 0 { c < 40 } else { c < 60 });
    let (bytes, _) = store(FloatType::F32, &values);
    on_every_isa(|isa| {
        let w = StoredRows {
            values: &bytes,
            format: FloatType::F32,
            rows: 2,
            cols: 70,
            support: Some(mask.support()),
        };
        let mut y = [0.0; 2];
        stored_matmul(&w, 0..2, &[1.0; 70], 1, &mut y, false, &mut Work::on(isa, Par::Seq));
        assert!(y[0] == 40.0 && y[1].is_nan(), "{y:?}");
    });
}

#[test]
fn kept_codes_multiply_and_decode() {
    on_every_isa(|isa| {
        let mut random = Random(3);
        for mask in supports() {
            let [rows, cols] = mask.shape();
            for (bits, group) in [(4, 16), (4, 128), (3, 64), (8, 300), (1, 32)] {
                let codes = random.codes(mask.kept(0..rows), bits);
                let mut packed = vec![0; packed_len(codes.len(), bits)];
                pack_bits(&codes, bits, &mut packed);
                let groups = cols.div_ceil(group);
                let scales = random.normals(rows * groups);
                let zeros: Vec<f32> =
                    (0..rows * groups).map(|_| f32::from(random.byte())).collect();
                let w = KeptAffine {
                    support: mask.support(),
                    packed: &packed,
                    bits,
                    group,
                    scales: &scales,
                    zeros: &zeros,
                };
                let mut dense = vec![0.0; rows * cols];
                let mut codes = codes.iter();
                for row in 0..rows {
                    mask.for_each_kept(row, |c| {
                        let (grid, code) = (row * groups + c / group, codes.next().unwrap());
                        dense[row * cols + c] = scales[grid] * (f32::from(*code) - zeros[grid]);
                    });
                    let mut out = vec![f32::NAN; cols];
                    kept_affine_decode(&w, row, &mut out, false, &mut Work::on(isa, Par::Seq));
                    assert_same_bits(&out, &dense[row * cols..(row + 1) * cols], "decoded");
                }
                for t in [1, 3, 4] {
                    let x = random.normals(t * cols);
                    let mut y = vec![f32::NAN; t * rows];
                    let mut work = Work::on(isa, if t == 3 { Par::Rayon } else { Par::Seq });
                    kept_affine_matmul(&w, 0..rows, &x, t, &mut y, false, &mut work);
                    in_pieces(rows, t, &y, "rows", |some, y| {
                        kept_affine_matmul(&w, some, &x, t, y, true, &mut work);
                    });
                    let exact: Vec<f64> = (0..t * rows)
                        .map(|i| {
                            let (x, w) = (&x[i / rows * cols..], &dense[i % rows * cols..]);
                            (0..cols).map(|c| f64::from(x[c]) * f64::from(w[c])).sum()
                        })
                        .collect();
                    assert_near(&y, &exact, 1e-4 * (1.0 + cols as f64), "product");
                }
            }
        }
    });
}
