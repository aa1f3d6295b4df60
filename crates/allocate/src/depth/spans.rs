use tensorpress_tensor::{Error, Result};

/// Something for each span of layers from one boundary to a later one, where the span can be.
#[derive(Debug, Clone, PartialEq)]
pub struct Spans<T> {
    layers: usize,
    of: Vec<Option<T>>,
}

impl<T> Spans<T> {
    /// What `of` says of the layers after one boundary up to another; nothing where they can be no span.
    ///
    /// # Errors
    /// `InvalidArgument` for more than 4,096 layers, as all pairs are asked.
    pub fn new(layers: usize, of: impl FnMut(usize, usize) -> Option<T>) -> Result<Self> {
        if layers > 4096 {
            return Err(Error::invalid(format!("{layers} layers: allowed are those up to 4096")));
        }
        Ok(Self::of(layers, of))
    }

    pub(super) fn of(layers: usize, mut of: impl FnMut(usize, usize) -> Option<T>) -> Self {
        let pairs = (0..layers).flat_map(|from| (from + 1..=layers).map(move |to| (from, to)));
        Self { layers, of: pairs.map(|(from, to)| of(from, to)).collect() }
    }

    /// How many layers there are.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// What is known of a span; nothing where it can be none.
    #[must_use]
    pub fn get(&self, from: usize, to: usize) -> Option<&T> {
        if from >= to || to > self.layers {
            return None;
        }
        // Spans that begin earlier: one more from each boundary than from the next.
        let before = from * (2 * self.layers - from + 1) / 2;
        self.of[before + to - from - 1].as_ref()
    }

    /// All spans that can be.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize, &T)> {
        let pairs = (0..self.layers)
            .flat_map(move |from| (from + 1..=self.layers).map(move |to| (from, to)));
        pairs.zip(&self.of).filter_map(|((from, to), of)| of.as_ref().map(|of| (from, to, of)))
    }
}
