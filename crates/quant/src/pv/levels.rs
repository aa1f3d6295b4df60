use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::node::{
    Blocks, Child, Dense, KnownLevels, LevelFormat, LevelTable, Node, PackedPlane, SymbolBuf,
    Tables, as_node, decode,
};
use tensorpress_tensor::{DType, Error, Result};

use super::{Proposal, Representation};

/// A table of levels as it is tuned: with scales, these are fitted, and levels stay; without, the levels are.
#[derive(Debug, Clone)]
pub struct LevelCodes {
    format: LevelFormat,
    codes: Array2<u8>,
    bits: u8,
    /// `[tables, count]`, and what they were stored as.
    levels: Array2<f32>,
    stored: Stored,
    /// `[rows, blocks]` and their type, where there are scales.
    scales: Option<(Array2<f32>, DType)>,
    /// The table of each block, where blocks chose.
    chosen: Option<Vec<usize>>,
}

/// What a table of levels was.
#[derive(Debug, Clone, Copy)]
enum Stored {
    Known(KnownLevels),
    Dense(DType),
}

/// Of a system of equations, a row counts for nothing if its diagonal is below this part of the largest.
const NOTHING: f64 = 1e-12;

impl LevelCodes {
    /// Of a node.
    ///
    /// # Errors
    /// `Unsupported` for a support, an offset, more than 256 levels, and scales that are codes in turn or of blocks across the
    /// ends of rows; `Corruption` as reading it.
    pub fn of(node: &LevelTable) -> Result<Self> {
        let unlike = |what: &str| Err(Error::unsupported(format!("tuning of {what}")));
        let (format, [rows, cols]) = (*node.format(), node.shape());
        if format.has_offset() {
            return unlike("levels with an offset");
        }
        if node.codes().as_kept().is_some() {
            return unlike("a matrix of which only a support is kept");
        }
        let alphabet = node.codes().alphabet();
        if !alphabet.is_power_of_two() || alphabet > 256 {
            return unlike("more than 256 levels");
        }
        let whole = match format.blocks() {
            Blocks::Rows(size) => size,
            Blocks::Flat(size) if cols.is_multiple_of(size) => size,
            _ => return unlike("blocks across the ends of rows"),
        };
        let Child::Node(table) = node.child(0) else { return unlike("levels that are no node") };
        let stored = match (as_node::<KnownLevels>(&**table), as_node::<Dense>(&**table)) {
            (Some(known), _) => Stored::Known(*known),
            (_, Some(dense)) => Stored::Dense(dense.dtype()),
            _ => return unlike("levels that are codes in turn"),
        };
        let scales = match format.has_scales().then(|| node.child(1)) {
            None => None,
            Some(Child::Node(scales)) => {
                let Some(dense) = as_node::<Dense>(&**scales) else {
                    return unlike("scales that are codes in turn");
                };
                let values = decode(dense)?.into_raw_vec_and_offset().0;
                let values = Array2::from_shape_vec((rows, cols.div_ceil(whole)), values);
                Some((values.expect("one a block"), dense.dtype()))
            }
            _ => return unlike("scales that are no node"),
        };
        let chosen = match format.tables() {
            Tables::Chosen(tables) => {
                let slot = 1 + usize::from(format.has_scales());
                let Child::Plane(plane) = node.child(slot) else {
                    return unlike("choices that are no plane");
                };
                let mut symbols = SymbolBuf::of(&**plane);
                let symbols = symbols.read(&**plane, 0..plane.rows())?;
                Some(symbols.iter().map(|s| usize::from(s).min(tables - 1)).collect())
            }
            _ => None,
        };
        let mut symbols = SymbolBuf::of(node.codes());
        let codes = symbols.read(node.codes(), 0..rows)?.iter().map(|code| code as u8).collect();
        let codes = Array2::from_shape_vec((rows, cols), codes).expect("a code each");
        let levels = decode(&**table)?;
        let bits = alphabet.ilog2() as u8;
        Ok(Self { format, codes, bits, levels, stored, scales, chosen })
    }

    fn size(&self) -> usize {
        match self.format.blocks() {
            Blocks::Rows(size) | Blocks::Flat(size) => size,
            _ => self.codes.ncols().max(1),
        }
    }

    fn blocks(&self) -> usize {
        self.codes.ncols().div_ceil(self.size())
    }

    fn table(&self, row: usize, column: usize) -> usize {
        let block = row * self.blocks() + column / self.size();
        match (self.format.tables(), &self.chosen) {
            (Tables::Rows(each), _) => row / each,
            (Tables::Blocks, _) => block,
            (_, Some(chosen)) => chosen[block],
            _ => 0,
        }
    }

    fn scale(&self, row: usize, column: usize) -> f32 {
        self.scales.as_ref().map_or(1.0, |(scales, _)| scales[[row, column / self.size()]])
    }

    fn value(&self, row: usize, column: usize, code: u8) -> f32 {
        let level = self.levels[[self.table(row, column), usize::from(code)]];
        level * self.scale(row, column)
    }

    /// Rows that share what is fitted: a band of them.
    fn band(&self) -> usize {
        match (&self.scales, self.format.tables()) {
            (Some(_), _) | (_, Tables::Blocks) => 1,
            (None, Tables::Rows(each)) => each,
            _ => self.codes.nrows().max(1),
        }
    }

    /// Which of the fitted values of its band a weight is made of, and times what.
    fn term(&self, row: usize, column: usize) -> (usize, f64) {
        let (table, code) = (self.table(row, column), usize::from(self.codes[[row, column]]));
        match (&self.scales, self.format.tables()) {
            (Some(_), _) => (column / self.size(), f64::from(self.levels[[table, code]])),
            (None, Tables::Blocks) => (column / self.size() * self.levels.ncols() + code, 1.0),
            (None, Tables::Rows(_)) => (code, 1.0),
            (None, _) => (table * self.levels.ncols() + code, 1.0),
        }
    }

    /// Fitted values of a band.
    fn values(&self) -> usize {
        match (&self.scales, self.format.tables()) {
            (Some(_), _) => self.blocks(),
            (None, Tables::Blocks) => self.blocks() * self.levels.ncols(),
            (None, Tables::Rows(_)) => self.levels.ncols(),
            (None, _) => self.levels.len(),
        }
    }

    /// What to add to the values of a band of rows: least squares, of what `slope` = D H says is to be gained.
    fn better(
        &self,
        rows: std::ops::Range<usize>,
        slope: &Array2<f64>,
        gram: ArrayView2<'_, f64>,
    ) -> Vec<f64> {
        let (count, cols) = (self.values(), self.codes.ncols());
        let mut system = Array2::<f64>::zeros((count, count));
        let mut right = vec![0.0; count];
        for row in rows {
            let terms: Vec<(usize, f64)> = (0..cols).map(|c| self.term(row, c)).collect();
            for (c, (at, times)) in terms.iter().enumerate() {
                right[*at] += times * slope[[row, c]];
                let mut line = system.row_mut(*at);
                let line = line.as_slice_mut().expect("standard layout");
                let gram = gram.row(c);
                for ((other, by), h) in terms.iter().zip(gram) {
                    line[*other] += times * by * h;
                }
            }
        }
        solved(system, right)
    }
}

/// The solution of a symmetric system without negative eigenvalues; 0 for values that nothing depends on.
fn solved(mut system: Array2<f64>, mut right: Vec<f64>) -> Vec<f64> {
    let count = right.len();
    let most = system.diag().iter().fold(0.0, |most: f64, d| most.max(*d));
    // As little damping as makes it definite.
    system.diag_mut().iter_mut().for_each(|d| *d += 1e-9 * most);
    let mut gone = vec![false; count];
    for i in 0..count {
        let pivot = system[[i, i]];
        if pivot <= NOTHING * most || most == 0.0 {
            gone[i] = true;
            continue;
        }
        let line = system.row(i).to_owned();
        for j in i + 1..count {
            let by = system[[j, i]] / pivot;
            if by != 0.0 {
                system.row_mut(j).scaled_add(-by, &line);
                right[j] -= by * right[i];
            }
        }
    }
    for i in (0..count).rev() {
        let behind: f64 = (i + 1..count).map(|j| system[[i, j]] * right[j]).sum();
        right[i] = if gone[i] { 0.0 } else { (right[i] - behind) / system[[i, i]] };
    }
    right
}

impl Representation for LevelCodes {
    fn decode(&self) -> Array2<f32> {
        Array2::from_shape_fn(self.codes.dim(), |(r, c)| self.value(r, c, self.codes[[r, c]]))
    }

    fn fit(&mut self, weight: ArrayView2<'_, f32>, gram: ArrayView2<'_, f64>, par: Par) {
        let rest = (&weight - &self.decode()).mapv(f64::from);
        let mut slope = Array2::zeros(rest.dim());
        linalg::matmul(rest.view(), gram, slope.view_mut(), false, par);
        let (band, count, rows) = (self.band(), self.values(), self.codes.nrows());
        let mut changes = vec![Vec::new(); rows.div_ceil(band)];
        let this = &*self;
        par.for_each(changes.iter_mut().enumerate(), |(at, change)| {
            *change = this.better(at * band..rows.min((at + 1) * band), &slope, gram);
        });
        let add = |value: &mut f32, by: f64, dtype: DType| {
            let next = dtype.round((f64::from(*value) + by) as f32);
            *value = if next.is_finite() { next } else { *value };
        };
        match (&mut self.scales, self.stored) {
            (Some((scales, dtype)), _) => {
                let all = scales.iter_mut().zip(changes.iter().flatten());
                all.for_each(|(scale, by)| add(scale, *by, *dtype));
            }
            (None, Stored::Dense(dtype)) => {
                debug_assert_eq!(self.levels.len(), changes.len() * count, "a table a band");
                let all = self.levels.iter_mut().zip(changes.iter().flatten());
                all.for_each(|(level, by)| add(level, *by, dtype));
            }
            // A table with a name stays.
            (None, Stored::Known(_)) => {}
        }
    }

    fn proposals(&self, row: usize, slope: &[f64], gram: ArrayView2<'_, f64>) -> Vec<Proposal> {
        let one = |column: usize| {
            let now = f64::from(self.value(row, column, self.codes[[row, column]]));
            let gain = |code: u8| {
                let change = f64::from(self.value(row, column, code)) - now;
                2.0 * change * slope[column] - change * change * gram[[column, column]]
            };
            let all = (0..=u8::MAX).take(self.levels.ncols().min(1 << self.bits));
            let gains = all.map(|code| (gain(code), code));
            let best = gains.fold((0.0, 0), |best, next| if next.0 > best.0 { next } else { best });
            (best.0 > 0.0).then(|| Proposal { place: column, code: best.1.into(), gain: best.0 })
        };
        (0..self.codes.ncols()).filter_map(one).collect()
    }

    fn change(&self, row: usize, proposal: &Proposal, change: &mut [f64]) {
        let column = proposal.place;
        let [now, then] = [self.codes[[row, column]], proposal.code as u8]
            .map(|code| f64::from(self.value(row, column, code)));
        change[column] += then - now;
    }

    fn take(&mut self, row: usize, proposal: &Proposal) {
        self.codes[[row, proposal.place]] = proposal.code as u8;
    }

    fn units(&self) -> usize {
        self.codes.ncols()
    }

    fn copy(&self) -> Box<dyn Representation> {
        Box::new(self.clone())
    }

    fn node(&self) -> Result<Box<dyn Node>> {
        let (rows, cols) = self.codes.dim();
        let codes = self.codes.as_slice().expect("standard layout");
        let codes = PackedPlane::pack(codes, rows, cols, self.bits)?;
        let levels = match self.stored {
            Stored::Known(known) => known.boxed(),
            Stored::Dense(dtype) => Dense::from_f32(self.levels.view(), dtype)?.boxed(),
        };
        let mut beside = vec![Child::Node(levels)];
        if let Some((scales, dtype)) = &self.scales {
            let grid = self.format.blocks().grid([rows, cols]);
            let scales = scales.as_slice().expect("standard layout");
            let scales = ArrayView2::from_shape((grid[0], grid[1]), scales).expect("one a block");
            beside.push(Child::Node(Dense::from_f32(scales, *dtype)?.boxed()));
        }
        if let (Tables::Chosen(tables), Some(chosen)) = (self.format.tables(), &self.chosen) {
            let [high, wide] = self.format.blocks().grid([rows, cols]);
            let bits = (tables.max(2) - 1).ilog2() as u8 + 1;
            let plane = if bits <= 8 {
                let chosen: Vec<u8> = chosen.iter().map(|table| *table as u8).collect();
                PackedPlane::pack(&chosen, high, wide, bits)?
            } else {
                let chosen: Vec<u16> = chosen.iter().map(|table| *table as u16).collect();
                PackedPlane::pack(&chosen, high, wide, bits)?
            };
            beside.push(Child::Plane(Box::new(plane)));
        }
        Ok(LevelTable::new(self.format, [rows, cols], Box::new(codes), beside)?.boxed())
    }
}
