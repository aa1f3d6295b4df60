//! Hadamard matrices of orders that are no powers of two.

use ndarray::Array2;

/// A Hadamard matrix of this order: entries 1 and -1, orthogonal rows (H Hᵀ = n I). By Paley (1933), first construction for
/// orders q + 1 with a prime q = 3 mod 4 (12, 20, 24, 44 ...), second for 2 (q + 1) with a prime q = 1 mod 4 (12, 28, 36, 60 ...);
/// `None` for all others. Powers of two are [`super::hadamard`]'s; orders in between are Kronecker products of both.
#[must_use]
pub fn hadamard_matrix(order: usize) -> Option<Array2<f32>> {
    if order < 4 || !order.is_multiple_of(4) {
        return None;
    }
    let q = order - 1;
    if is_prime(q) {
        // Order is 0 mod 4, so q is 3 mod 4. H = I + S with a skew S.
        let squares = squares(q);
        return Some(Array2::from_shape_fn((order, order), |(i, j)| match (i, j) {
            (i, j) if i == j => 1.0,
            (0, _) => 1.0,
            (_, 0) => -1.0,
            (i, j) => squares[(q + i - j) % q],
        }));
    }
    let half = order / 2;
    let q = half - 1;
    if q % 4 != 1 || !is_prime(q) {
        return None;
    }
    // C is the symmetric conference matrix; each entry becomes a 2 x 2 block.
    let squares = squares(q);
    let conference = |i: usize, j: usize| match (i, j) {
        (i, j) if i == j => 0.0,
        (0, _) | (_, 0) => 1.0,
        (i, j) => squares[(q + i - j) % q],
    };
    Some(Array2::from_shape_fn((order, order), |(i, j)| {
        let both = (i % 2, j % 2) == (1, 1);
        match conference(i / 2, j / 2) {
            // [[1, -1], [-1, -1]]
            0.0 => {
                if (i % 2, j % 2) == (0, 0) {
                    1.0
                } else {
                    -1.0
                }
            }
            // [[1, 1], [1, -1]]
            c => {
                if both {
                    -c
                } else {
                    c
                }
            }
        }
    }))
}

/// For each residue mod q: 1 for squares, -1 for the others, 0 for 0.
fn squares(q: usize) -> Vec<f32> {
    let mut character = vec![-1.0; q];
    (1..q).for_each(|i| character[i * i % q] = 1.0);
    character[0] = 0.0;
    character
}

fn is_prime(n: usize) -> bool {
    n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}
