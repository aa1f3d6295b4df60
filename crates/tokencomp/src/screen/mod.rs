//! Nearest rows in two steps: 8-bit products, whose error is bounded, leave a few candidates for each row; their exact
//! products decide. The answers are those of the exact products.

mod bound;

use ndarray::ArrayView2;
use tensorpress_tensor::Result;
use tensorpress_tensor::kernels::{self, Activations, AffinePanels, AffineRows, PanelInput, Par};

use crate::similarity::unit_rows;
use bound::{Errors, Rounding, step};

/// Products looked at together: they stay in the second-level cache.
const PRODUCTS: usize = 1 << 17;

/// Candidates of a row above which f32 products are cheaper.
const CANDIDATES: usize = 64;

/// The largest product of a row and its place, where it is decided.
type Found = Option<(f32, usize)>;

/// As [`super::similarity::nearest`], for rows in standard layout. Rows with many near-equals are left undecided: `None`.
pub(crate) fn nearest(
    x: ArrayView2<'_, f32>,
    from: &[usize],
    to: &[usize],
) -> Result<Option<Vec<Found>>> {
    let (cols, rows) = (x.ncols(), to.len());
    let Some(coded) = Coded::new(unit_rows(x, to)?, cols) else { return Ok(None) };
    let panels = rows.div_ceil(AffinePanels::ROWS);
    let step = (PRODUCTS / rows).clamp(8, 512);
    let mut products = vec![[0.0; AffinePanels::ROWS]; step * panels];
    let mut searches = vec![Search::default(); step];
    let mut best = Vec::with_capacity(from.len());
    for tile in from.chunks(step) {
        let values = unit_rows(x, tile)?;
        let form = coded.panels.input_form();
        let input = PanelInput::new(&values, tile.len(), cols, form, Activations::Int8);
        let products = &mut products[..tile.len() * panels];
        coded.panels.products_by_panel(&input, products);
        // What fills up the last panel is no product.
        let (last, held) = (tile.len() * (panels - 1), rows - (panels - 1) * AffinePanels::ROWS);
        products[last..].iter_mut().for_each(|filled| filled[held..].fill(f32::NEG_INFINITY));

        let values = || values.chunks(cols);
        let exact = |row: &[f32], at: usize| kernels::dot(row, coded.row(at));
        for (search, row) in searches.iter_mut().zip(values()) {
            search.start(coded.errors(row));
        }
        for (panel, products) in products.chunks(tile.len()).enumerate() {
            for (search, products) in searches.iter_mut().zip(products) {
                search.see(panel * AffinePanels::ROWS, products);
            }
        }
        // A loop of its own: rows wait for memory, not for one another.
        for (search, row) in searches.iter_mut().zip(values()) {
            search.decide_largest(|at| exact(row, at));
        }
        for (search, row) in searches.iter().zip(values()) {
            best.push(search.decide(|at| exact(row, at)));
        }
    }
    Ok(Some(best))
}

/// The search for the largest exact product of a row.
#[derive(Debug, Clone, Default)]
struct Search {
    errors: Errors,
    /// The largest product seen.
    most: f32,
    /// A product below this cannot be that of the best.
    least: f32,
    /// Products that were not below it when they were seen, and their places.
    candidates: Vec<(f32, usize)>,
    /// The exact product of the largest candidate, and its place; none where nothing is decided.
    largest: Found,
}

impl Search {
    fn start(&mut self, errors: Errors) {
        (self.errors, self.most, self.least) = (errors, f32::NEG_INFINITY, f32::NEG_INFINITY);
        self.candidates.clear();
    }

    /// Looks at the products from a place on.
    fn see(&mut self, first: usize, products: &[f32; AffinePanels::ROWS]) {
        // All before a branch, so that it becomes vector code: hardly any are candidates.
        if products.iter().fold(false, |any, product| any | (*product >= self.least)) {
            self.take(first, products);
        }
    }

    fn take(&mut self, first: usize, products: &[f32; AffinePanels::ROWS]) {
        let found =
            |mask, (i, product): (usize, &f32)| mask | u32::from(*product >= self.least) << i;
        let mut mask = products.iter().enumerate().fold(0, found);
        while mask != 0 {
            let i = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            self.candidates.push((products[i], first + i));
            if products[i] > self.most {
                self.most = products[i];
                self.least = self.errors.least_coded(self.errors.least_exact(self.most));
            }
        }
        if self.candidates.len() > 4 * CANDIDATES {
            self.candidates.retain(|(product, _)| *product >= self.least);
            if self.candidates.len() > CANDIDATES {
                // Too many: nothing more is looked at.
                self.least = f32::INFINITY;
            }
        }
    }

    fn decide_largest(&mut self, exact: impl Fn(usize) -> f32) {
        let left = self.candidates.iter().filter(|(product, _)| *product >= self.least);
        let largest = left.max_by(|a, b| a.0.total_cmp(&b.0));
        self.largest = largest.map(|(_, at)| (exact(*at), *at));
    }

    /// The largest exact product, the first of equals.
    fn decide(&self, exact: impl Fn(usize) -> f32) -> Found {
        let largest = self.largest?;
        let (mut best, mut decided) = (largest, 0);
        let mut least = self.errors.least_coded(best.0);
        for (product, at) in &self.candidates {
            if *product < least || *at == largest.1 {
                continue;
            }
            decided += 1;
            if decided > CANDIDATES {
                return None;
            }
            let value = exact(*at);
            if value > best.0 || (value == best.0 && *at < best.1) {
                best = (value, *at);
                least = self.errors.least_coded(value);
            }
        }
        Some(best)
    }
}

/// Rows, and the same in 8 bits.
struct Coded {
    /// In standard layout.
    exact: Vec<f32>,
    panels: AffinePanels,
    /// The most that coding changes any of them.
    rounding: Rounding,
}

impl Coded {
    fn new(exact: Vec<f32>, cols: usize) -> Option<Self> {
        if exact.is_empty() || !AffinePanels::supports(8, cols, cols) {
            return None;
        }
        let rows = exact.len() / cols;
        let mut codes = vec![0; exact.len()];
        let (mut scales, mut rounding) = (Vec::with_capacity(rows), Rounding::default());
        for (row, codes) in exact.chunks(cols).zip(codes.chunks_mut(cols)) {
            let scale = step(row);
            kernels::quantize_affine(row, scale, 128.0, 255, codes);
            rounding = rounding.max(Rounding::of(row, scale));
            scales.push(scale);
        }
        let zeros = vec![128.0; rows];
        let (packed, group) = (&codes[..], cols);
        let rows =
            AffineRows { packed, bits: 8, rows, cols, group, scales: &scales, zeros: &zeros };
        Some(Self { exact, panels: AffinePanels::new(&rows, Par::Seq)?, rounding })
    }

    fn row(&self, at: usize) -> &[f32] {
        let cols = self.panels.cols();
        &self.exact[at * cols..][..cols]
    }

    /// Those of the products of a row, which is coded as these are.
    fn errors(&self, row: &[f32]) -> Errors {
        Errors::new(Rounding::of(row, step(row)), self.rounding, row.len())
    }
}
