use super::*;
use crate::*;

/// Shapes on both sides of vectors and words of columns, and of four rows.
const SHAPES: [[usize; 2]; 9] =
    [[0, 0], [0, 5], [5, 0], [1, 1], [3, 7], [9, 63], [6, 64], [17, 65], [41, 203]];

/// None, one, all, every other one, and some in any order, some of them twice.
fn picks(rows: usize, random: &mut Random) -> Vec<Vec<usize>> {
    let mut picks = vec![vec![], (0..rows).collect(), (0..rows).step_by(2).collect()];
    if rows > 0 {
        picks.push(vec![rows - 1]);
        picks.push((0..7).map(|_| random.word() as usize % rows).collect());
    }
    picks
}

/// A matrix in which every row that is not picked is NaN: a product that reads one, and be it times 0, is NaN.
fn matrix(
    [rows, cols]: [usize; 2],
    picked: &[usize],
    format: FloatType,
    random: &mut Random,
) -> (Vec<u8>, Vec<f32>) {
    let mut values = random.normals(rows * cols);
    for row in (0..rows).filter(|row| !picked.contains(row)) {
        values[row * cols..(row + 1) * cols].fill(f32::NAN);
    }
    store(format, &values)
}

fn check(each: impl Fn(Isa, &StoredRows<'_>, &[f32], &[usize], &mut Random)) {
    on_every_isa(|isa| {
        let mut random = Random(11);
        for [rows, cols] in SHAPES {
            for picked in picks(rows, &mut random) {
                for format in FLOATS {
                    let (bytes, dense) = matrix([rows, cols], &picked, format, &mut random);
                    // An odd address.
                    let mut place = vec![0xffu8];
                    place.extend_from_slice(&bytes);
                    let w = StoredRows { values: &place[1..], format, rows, cols, support: None };
                    each(isa, &w, &dense, &picked, &mut random);
                }
            }
        }
    });
}

/// The bits of the whole product's rows; rows that are not picked are not read.
#[test]
fn picked_rows_are_those_of_the_product() {
    check(|isa, w, _, picked, random| {
        for t in [0, 1, 2, 3, 5, 8, 9] {
            let x = random.normals(t * w.cols);
            let mut whole = vec![f32::NAN; t * w.rows];
            let mut work = Work::on(isa, Par::Seq);
            stored_matmul(w, 0..w.rows, &x, t, &mut whole, false, &mut work);
            let rows = (0..t).flat_map(|t| picked.iter().map(move |row| (t, row)));
            let whole: Vec<f32> = rows.map(|(t, row)| whole[t * w.rows + row]).collect();
            let mut y = vec![f32::NAN; t * picked.len()];
            picked_matmul(w, picked, &x, t, &mut y, false, &mut work);
            assert!(w.cols == 0 || y.iter().all(|y| y.is_finite()), "a row that was not picked");
            assert_same_bits(&y, &whole, "picked rows");
            let mut added = vec![1.0; y.len()];
            let mut work = Work::on(isa, Par::Threads(3));
            picked_matmul(w, picked, &x, t, &mut added, true, &mut work);
            let expected: Vec<f32> = whole.iter().map(|y| 1.0 + y).collect();
            assert_same_bits(&added, &expected, "picked rows, added");
        }
    });
}

/// Against f64; the same bits for any number of tokens and threads; rows that are not picked are not read.
#[test]
fn picked_rows_are_summed() {
    check(|isa, w, dense, picked, random| {
        for t in [0, 1, 2, 3, 5, 8] {
            let a = random.normals(t * picked.len());
            let mut exact = vec![0.0; t * w.cols];
            for (token, exact) in exact.chunks_mut(w.cols.max(1)).enumerate() {
                for (i, row) in picked.iter().enumerate() {
                    let factor = f64::from(a[token * picked.len() + i]);
                    let row = &dense[row * w.cols..(row + 1) * w.cols];
                    exact.iter_mut().zip(row).for_each(|(e, w)| *e += factor * f64::from(*w));
                }
            }
            let mut y = vec![f32::NAN; t * w.cols];
            picked_sum(w, picked, &a, t, &mut y, false, &mut Work::on(isa, Par::Seq));
            assert_near(&y, &exact, 2e-6 * (1.0 + picked.len() as f64), "sums of picked rows");
            let mut added = vec![1.0; y.len()];
            picked_sum(w, picked, &a, t, &mut added, true, &mut Work::on(isa, Par::Threads(3)));
            let expected: Vec<f32> = y.iter().map(|y| 1.0 + y).collect();
            assert_same_bits(&added, &expected, "added, by threads");
            for token in 0..t {
                let mut one = vec![f32::NAN; w.cols];
                let a = &a[token * picked.len()..(token + 1) * picked.len()];
                picked_sum(w, picked, a, 1, &mut one, false, &mut Work::on(isa, Par::Threads(2)));
                assert_same_bits(&one, &y[token * w.cols..][..w.cols], "a token alone");
            }
        }
    });
}

/// One factor that is 0 or more changes nothing but what is read: an engine may gather the union of several tokens' inputs.
#[test]
fn zeros_in_a_union_change_nothing() {
    on_every_isa(|isa| {
        let (bytes, _) = store(FloatType::Bf16, &Random(12).normals(12 * 70));
        let w = StoredRows {
            values: &bytes,
            format: FloatType::Bf16,
            rows: 12,
            cols: 70,
            support: None,
        };
        let mut work = Work::on(isa, Par::Seq);
        let (mut few, mut union) = ([0.0; 70], [0.0; 70]);
        picked_sum(&w, &[1, 4, 9], &[0.5, -2.0, 3.0], 1, &mut few, false, &mut work);
        let factors = [0.5, 0.0, -2.0, 0.0, 3.0];
        picked_sum(&w, &[1, 2, 4, 5, 9], &factors, 1, &mut union, false, &mut work);
        assert_same_bits(&few, &union, "a union");
    });
}
