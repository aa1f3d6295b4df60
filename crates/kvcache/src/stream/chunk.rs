use ndarray::{Array2, ArrayView2, Axis};
use tensorpress_tensor::{Error, Result, ndarray};

use super::level::Level;
use super::symbols::Bins;
use super::table::Tables;

/// Keys and values of some tokens of all layers, rounded to a [`Level`].
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    pub(super) level: Level,
    pub(super) tokens: usize,
    /// Of keys, and of values.
    pub(super) channels: [usize; 2],
    /// Layer after layer: keys, then values; of each the anchors, where there are some, then the other tokens.
    pub(super) planes: Vec<Plane>,
}

/// Rounded rows of one layer's keys or values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plane {
    /// Which it is.
    pub(super) at: At,
    /// `[rows, channels]`
    pub(super) symbols: Array2<u8>,
    /// By row.
    pub(super) largest: Vec<f32>,
}

/// Where a plane belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At {
    pub(super) layer: usize,
    pub(super) values: bool,
    pub(super) anchors: bool,
}

/// Bins of anchors: their differences stand on them.
const ANCHOR_BINS: usize = 256;

impl At {
    /// All planes of a level, in order.
    pub(super) fn all(level: &Level) -> Vec<Self> {
        let anchors: &[bool] = if level.group() > 0 { &[true, false] } else { &[false] };
        let mut all = Vec::new();
        for layer in 0..level.layers() {
            for values in [false, true] {
                all.extend(anchors.iter().map(|anchors| Self { layer, values, anchors: *anchors }));
            }
        }
        all
    }

    /// Rows of a plane of a chunk of so many tokens.
    pub(super) fn rows(self, level: &Level, tokens: usize) -> Vec<usize> {
        let group = level.group();
        (0..tokens).filter(|t| group == 0 || (t % group == 0) == self.anchors).collect()
    }

    pub(super) fn bins(self, level: &Level) -> Bins {
        if self.anchors {
            return Bins::new(ANCHOR_BINS).expect("an even number");
        }
        level.bins(self.layer, self.values)
    }

    /// For messages.
    pub(super) fn name(self) -> String {
        let what = if self.values { "values" } else { "keys" };
        let anchors = if self.anchors { " (anchors)" } else { "" };
        format!("layer {}, {what}{anchors}", self.layer)
    }
}

impl Chunk {
    /// Rounds the keys and values of all layers, each `[tokens, channels]` with all heads side by side.
    ///
    /// # Errors
    /// `ShapeMismatch` for other numbers of layers, or layers unlike each other; `InsufficientData` without tokens;
    /// `Numerical` for what is not finite, naming layer and channel.
    pub fn quantise(
        keys: &[ArrayView2<'_, f32>],
        values: &[ArrayView2<'_, f32>],
        level: &Level,
    ) -> Result<Self> {
        let layers = level.layers();
        if keys.len() != layers || values.len() != layers {
            let (k, v) = (keys.len(), values.len());
            return Err(Error::shape(format!(
                "keys of {k} and values of {v} layers: {layers} expected"
            )));
        }
        let first = |all: &[ArrayView2<'_, f32>]| all.first().map_or((0, 0), |x| x.dim());
        let ((tokens, of_keys), (_, of_values)) = (first(keys), first(values));
        if tokens == 0 {
            return Err(Error::insufficient("a chunk without tokens"));
        }
        let mut planes = Vec::new();
        for at in At::all(level) {
            let x = if at.values { values[at.layer] } else { keys[at.layer] };
            let channels = if at.values { of_values } else { of_keys };
            if x.dim() != (tokens, channels) {
                let (name, found) = (at.name(), x.dim());
                return Err(Error::shape(format!(
                    "{name}: {found:?}, ({tokens}, {channels}) expected"
                )));
            }
            if let Some(((_, channel), x)) = x.indexed_iter().find(|(_, x)| !x.is_finite()) {
                return Err(Error::numerical(format!("{}, channel {channel}: {x}", at.name())));
            }
            let mut rows = x.select(Axis(0), &at.rows(level, tokens));
            if level.group() > 0 && !at.anchors {
                // What was written of the anchors is what differences are taken to.
                let anchors: &Plane = planes.last().expect("anchors come first");
                let held = anchors.dequantise(level);
                for (mut row, t) in rows.rows_mut().into_iter().zip(at.rows(level, tokens)) {
                    row -= &held.row(t / level.group());
                }
            }
            let (bins, largest) = (at.bins(level), Bins::largest(rows.view()));
            planes.push(Plane { at, symbols: bins.quantise(rows.view(), &largest), largest });
        }
        Ok(Self { level: level.clone(), tokens, channels: [of_keys, of_values], planes })
    }

    /// Keys and values of all layers, each `[tokens, channels]`.
    #[must_use]
    pub fn dequantise(&self) -> (Vec<Array2<f32>>, Vec<Array2<f32>>) {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let group = self.level.group();
        let mut anchors = Array2::zeros((0, 0));
        for plane in &self.planes {
            let rows = plane.dequantise(&self.level);
            if plane.at.anchors {
                anchors = rows;
                continue;
            }
            let x = if group == 0 {
                rows
            } else {
                let mut x = Array2::zeros((self.tokens, rows.ncols()));
                for (t, mut row) in x.rows_mut().into_iter().enumerate() {
                    row.assign(&anchors.row(t / group));
                }
                for (row, t) in rows.rows().into_iter().zip(plane.at.rows(&self.level, self.tokens))
                {
                    let mut to = x.row_mut(t);
                    to += &row;
                }
                x
            };
            if plane.at.values { &mut values } else { &mut keys }.push(x);
        }
        (keys, values)
    }

    /// Symbols `[rows, channels]` of a layer's keys, or of its values: of all tokens, or of those that are no anchors.
    ///
    /// # Panics
    /// If there is no such layer.
    #[must_use]
    pub fn symbols(&self, layer: usize, values: bool) -> ArrayView2<'_, u8> {
        let at = At { layer, values, anchors: false };
        self.planes.iter().find(|p| p.at == at).expect("a layer").symbols.view()
    }

    /// Tables measured on this chunk; more texts may follow ([`Profile::and`]).
    ///
    /// # Errors
    /// None where the chunk was made here.
    pub fn profile(&self) -> Result<Profile> {
        let of = |p: &Plane| Tables::measure(p.symbols.view(), p.at.bins(&self.level));
        Ok(Profile(self.planes.iter().map(of).collect::<Result<_>>()?))
    }
}

impl Plane {
    fn dequantise(&self, level: &Level) -> Array2<f32> {
        self.at.bins(level).dequantise(self.symbols.view(), &self.largest)
    }
}

/// Tables of a model at one level, measured once on other texts: chunks then are written without theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile(pub(super) Vec<Tables>);

impl Profile {
    /// Measured on one more chunk of the same model and level.
    ///
    /// # Errors
    /// `ShapeMismatch` for a chunk of other layers, channels or levels.
    pub fn and(self, chunk: &Chunk) -> Result<Self> {
        if self.0.len() != chunk.planes.len() {
            let (tables, planes) = (self.0.len(), chunk.planes.len());
            return Err(Error::shape(format!("{tables} sets of tables, {planes} of symbols")));
        }
        let add = |(tables, plane): (Tables, &Plane)| tables.and(plane.symbols.view());
        Ok(Self(self.0.into_iter().zip(&chunk.planes).map(add).collect::<Result<_>>()?))
    }
}
