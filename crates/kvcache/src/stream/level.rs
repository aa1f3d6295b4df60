use tensorpress_tensor::{Error, Result};

use super::symbols::Bins;

/// How finely the keys and values of each layer are held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    keys: Vec<Bins>,
    values: Vec<Bins>,
    group: usize,
}

impl Level {
    /// Bins of every layer's keys and values.
    ///
    /// # Errors
    /// `ShapeMismatch` for other numbers of layers; those of [`Bins::new`].
    pub fn new(keys: &[usize], values: &[usize]) -> Result<Self> {
        if keys.len() != values.len() {
            let (k, v) = (keys.len(), values.len());
            return Err(Error::shape(format!("bins of {k} layers' keys and {v} layers' values")));
        }
        let bins = |all: &[usize]| all.iter().map(|b| Bins::new(*b)).collect::<Result<Vec<_>>>();
        Ok(Self { keys: bins(keys)?, values: bins(values)?, group: 0 })
    }

    /// Deeper layers more coarsely, a third of the layers at a time: `first`, `second`, `third`.
    ///
    /// # Errors
    /// Those of [`Bins::new`].
    pub fn graded(layers: usize, [first, second, third]: [usize; 3]) -> Result<Self> {
        let bins: Vec<usize> = (0..layers)
            .map(|layer| match layer {
                l if 3 * l < layers => first,
                l if 3 * l < 2 * layers => second,
                _ => third,
            })
            .collect();
        Self::new(&bins, &bins)
    }

    /// Groups of this many tokens: the first, the anchor, is held with 256 bins, and of the others the difference to it.
    /// 0, what the released code does, holds every token for itself; the paper has 10.
    #[must_use]
    pub fn with_group(mut self, group: usize) -> Self {
        self.group = group;
        self
    }

    /// Layers.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.keys.len()
    }

    /// Tokens of a group; 0 where there are no differences.
    #[must_use]
    pub fn group(&self) -> usize {
        self.group
    }

    /// Bins of a layer's keys, or of its values.
    ///
    /// # Panics
    /// If there is no such layer.
    #[must_use]
    pub fn bins(&self, layer: usize, values: bool) -> Bins {
        if values { self.values[layer] } else { self.keys[layer] }
    }
}
