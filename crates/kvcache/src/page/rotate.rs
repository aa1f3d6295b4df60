use tensorpress_tensor::linalg::{self, SplitMix};

/// Signs of each head, then one orthonormal Hadamard matrix for all channels of a head, or one for each block of them.
#[derive(Debug, Clone)]
pub(crate) struct Rotation {
    dim: usize,
    /// `[heads, dim]`, 1 or -1; times the unit of the matrix where there is a factor.
    signs: Vec<f32>,
    factor: Option<Factor>,
}

/// A Hadamard matrix Q of an order that is no power of two: H ⊗ Q is one too.
#[derive(Debug, Clone)]
struct Factor {
    order: usize,
    /// Row after row, 1 and -1.
    rows: Vec<f32>,
    columns: Vec<f32>,
}

/// The largest order of Q: 2 x 256 operations a channel are more than any head that models have takes.
const MOST: usize = 256;

impl Rotation {
    /// Bit `c % 64` of value `word + h x ceil(dim / 64) + c / 64` of the seed's sequence is the sign of channel `c` of head `h`.
    pub(crate) fn new(heads: usize, dim: usize, seed: u64, word: u64) -> Self {
        let (random, words) = (SplitMix::new(seed), dim.div_ceil(64) as u64);
        let factor = Factor::of(dim);
        let unit = factor.as_ref().map_or(1.0, |_| (dim as f64).sqrt().recip() as f32);
        let sign = |h: usize, c: usize| {
            let bits = random.at(word + h as u64 * words + (c / 64) as u64);
            if bits >> (c % 64) & 1 == 1 { -unit } else { unit }
        };
        let sign = &sign;
        let signs = (0..heads).flat_map(|h| (0..dim).map(move |c| sign(h, c))).collect();
        Self { dim, signs, factor }
    }

    /// x := x T for each head of a token.
    pub(crate) fn apply(&self, x: &mut [f32]) {
        self.flip(x);
        for head in x.chunks_exact_mut(self.dim) {
            match &self.factor {
                None => linalg::hadamard(head),
                Some(factor) => {
                    product(head, factor.order, &factor.rows);
                    linalg::hadamard_lanes(head, factor.order);
                }
            }
        }
    }

    /// x := x Tᵀ for each head of a token.
    pub(crate) fn invert(&self, x: &mut [f32]) {
        for head in x.chunks_exact_mut(self.dim) {
            match &self.factor {
                None => linalg::hadamard(head),
                Some(factor) => {
                    linalg::hadamard_lanes(head, factor.order);
                    product(head, factor.order, &factor.columns);
                }
            }
        }
        self.flip(x);
    }

    fn flip(&self, x: &mut [f32]) {
        x.iter_mut().zip(&self.signs).for_each(|(x, sign)| *x *= sign);
    }
}

impl Factor {
    /// The smallest that makes all channels one block; none where a power of two does, or nothing.
    fn of(dim: usize) -> Option<Self> {
        if dim == 0 || dim.is_power_of_two() {
            return None;
        }
        let odd = dim >> dim.trailing_zeros();
        let orders = (0..=dim.trailing_zeros()).map(|twos| odd << twos);
        let matrix = orders.take_while(|order| *order <= MOST).find_map(linalg::hadamard_matrix)?;
        let rows = matrix.iter().copied().collect();
        let columns = matrix.t().iter().copied().collect();
        Some(Self { order: matrix.nrows(), rows, columns })
    }
}

/// Each `order` values times a matrix, one row of it after the other.
fn product(x: &mut [f32], order: usize, rows: &[f32]) {
    let mut product = [0.0f32; MOST];
    let product = &mut product[..order];
    for x in x.chunks_exact_mut(order) {
        product.fill(0.0);
        for (x, row) in x.iter().zip(rows.chunks_exact(order)) {
            product.iter_mut().zip(row).for_each(|(y, q)| *y += x * q);
        }
        x.copy_from_slice(product);
    }
}
