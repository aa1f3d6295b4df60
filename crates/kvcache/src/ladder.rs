use std::collections::BTreeSet;

use tensorpress_tensor::{Error, Result};

/// Which slots stay of each layer where all hold as many: a ladder (LaCache, Shi et al., 2025). Of every `rung` tokens that
/// were held a layer keeps a few, later ones the deeper it stands, so that together the layers reach back farther than each
/// of them; sinks and the newest stay. Where the ladder has reached the end of the cache it starts over on what is left.
///
/// It remembers how far it has come, so each cache has its own, and each call must be followed by keeping what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ladder {
    layers: usize,
    size: usize,
    sinks: usize,
    span: usize,
    overlap: usize,
    /// Slots before it are rungs already.
    cursor: usize,
    started: bool,
}

impl Ladder {
    /// For models of `layers`, caches of `size` tokens with `sinks` first ones. Tokens of one rung are kept by `span` layers;
    /// the next rung begins `overlap` layers before the last of them.
    ///
    /// # Errors
    /// `InvalidArgument` for layers that all hold the same: span at least `layers`, or an overlap that is no less than
    /// the span; for a size that cannot hold sinks and a token for each layer.
    pub fn new(
        layers: usize,
        size: usize,
        sinks: usize,
        (span, overlap): (usize, usize),
    ) -> Result<Self> {
        let ladder = Self { layers, size, sinks, span, overlap, cursor: sinks, started: false };
        if span >= layers || overlap >= span || ladder.gone() == 0 {
            return Err(Error::invalid(format!(
                "span = {span}, overlap = {overlap}: the span less than the {layers} layers and more than the overlap, and no more rungs in a span than in the model"
            )));
        }
        if size < sinks + layers + ladder.kept() {
            return Err(Error::invalid(format!(
                "tokens = {size}: at least {}, the sinks and a token of each layer",
                sinks + layers + ladder.kept()
            )));
        }
        Ok(ladder)
    }

    /// One that has come so far, and holds no more than was asked for.
    pub(crate) fn at(self, cursor: usize) -> Self {
        Self { cursor, started: true, ..self }
    }

    /// Tokens of a rung.
    fn rung(&self) -> usize {
        1 + (self.layers - self.span).div_ceil(self.span - self.overlap)
    }

    /// Those of them that a layer keeps.
    fn kept(&self) -> usize {
        self.span.div_ceil(self.span - self.overlap).min(self.rung())
    }

    /// Those that go.
    fn gone(&self) -> usize {
        self.rung() - self.kept()
    }

    /// Tokens a layer may hold: somewhat more than was asked for, since others then hold less.
    #[must_use]
    pub fn size(&self) -> usize {
        if self.started { self.size } else { self.size + self.gone() / 2 }
    }

    /// The slots that each layer keeps of `held`, as many in all layers; nothing where all may stay. Where the ladder
    /// starts over a rung may reach into what follows the last one, and its slots are named twice, as by the official code:
    /// [`Ladder::distinct`] tells what a cache shall keep then.
    #[must_use]
    pub fn step(&mut self, held: usize) -> Option<Vec<Vec<usize>>> {
        if held <= self.size {
            return None;
        }
        (self.size, self.started) = (self.size(), true);
        if held <= self.size {
            return None;
        }
        let (rung, kept, gone) = (self.rung(), self.kept(), self.gone());
        let over = held - self.size;
        let room = self.size.saturating_sub(self.cursor + self.layers);
        let fits = room / kept * gone;
        let again = over > fits;
        let rungs = if again { room / kept } else { over.div_ceil(gone) };
        let first = |layer: usize| -> Vec<usize> {
            let at = |j: usize| self.cursor + layer % (gone + 1) + rung * j;
            let stays = (0..rungs).flat_map(|j| (0..kept).map(move |k| at(j) + k));
            (0..self.cursor).chain(stays).chain(self.cursor + rung * rungs..held).collect()
        };
        let mut slots: Vec<Vec<usize>> = (0..self.layers).map(first).collect();
        if again {
            let left = over - fits;
            let whole = ((self.size - self.sinks - self.layers) / kept * gone).max(1);
            let times = left.div_ceil(whole);
            let rung = rung + (times - 1) * (rung - 1);
            let gone = rung - kept;
            let rungs = left.div_ceil(gone);
            for (layer, slots) in slots.iter_mut().enumerate() {
                let at = |j: usize| self.sinks + layer % (gone + 1) + rung * j;
                let stays = (0..rungs).flat_map(|j| (0..kept).map(move |k| at(j) + times * k));
                let places =
                    (0..self.sinks).chain(stays).chain(self.sinks + rung * rungs..slots.len());
                *slots = places.filter_map(|place| slots.get(place).copied()).collect();
            }
            self.cursor = self.sinks + rungs * kept;
        } else {
            self.cursor += rungs * kept;
        }
        Some(slots)
    }

    /// As many slots as were named, ascending, each once: in the place of second mentions the newest of `held` that were
    /// not named.
    #[must_use]
    pub fn distinct(slots: &[usize], held: usize) -> Vec<usize> {
        let named: BTreeSet<usize> = slots.iter().copied().filter(|s| *s < held).collect();
        let more = slots.len() - named.len();
        let free: Vec<usize> = (0..held).rev().filter(|s| !named.contains(s)).take(more).collect();
        named.into_iter().chain(free).collect::<BTreeSet<_>>().into_iter().collect()
    }
}
