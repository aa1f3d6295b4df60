//! What products are made with.

use std::ops::{Deref, DerefMut, Range};

#[cfg(target_arch = "x86_64")]
use crate::blocks::Panel;
use crate::blocks::Unit;
use crate::panels::CodebookTables;
use crate::trellis;
use crate::{BlockActivations, Isa, PanelInput, Par};

/// How products are made: by how many threads, on which instruction set, and in which memory.
///
/// Buffers are kept from call to call. A product on one thread allocates nothing once a product of the same sizes was
/// made with the same `Work`.
#[derive(Debug)]
pub struct Work {
    par: Par,
    isa: Isa,
    floats: Vec<Vec<f32>>,
    inputs: Vec<PanelInput>,
    block_inputs: Vec<BlockActivations>,
    trellis_inputs: Vec<trellis::Inputs>,
    tables: Vec<CodebookTables>,
    pub(crate) places: Places,
}

/// Values that begin at a cache line; see [`Work::take_lines`].
#[derive(Debug)]
pub struct Lines {
    buffer: Vec<f32>,
    range: Range<usize>,
}

impl Deref for Lines {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.buffer[self.range.clone()]
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[self.range.clone()]
    }
}

/// Where one thread unpacks the rows it is at.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// Codes, or bytes of numbers, of rows that are read together.
    pub(crate) bytes: [Vec<u8>; 4],
    pub(crate) floats: Vec<f32>,
    /// Activations that the rows of a group share.
    pub(crate) gathered: Vec<f32>,
    /// Blocks that several tokens meet.
    pub(crate) units: Vec<Unit>,
    /// The same of 16 rows.
    #[cfg(target_arch = "x86_64")]
    pub(crate) panels: Vec<Panel>,
    /// Sums of 16 rows of trellis codes, by token.
    pub(crate) trellis_totals: Vec<trellis::Totals>,
}

/// How many of the tokens that are left go through a kernel of at most four together: never one alone behind others, which
/// would cost nearly as much as four.
#[inline(always)]
pub(crate) fn together(left: usize) -> usize {
    match left {
        0..=3 => left,
        5 | 6 | 9 => 3,
        _ => 4,
    }
}

impl Default for Work {
    fn default() -> Self {
        Self::new(Par::default())
    }
}

impl Work {
    /// For products by so many threads, on the best instruction set of this CPU.
    #[must_use]
    pub fn new(par: Par) -> Self {
        Self::on(Isa::detect(), par)
    }

    /// For products on a chosen instruction set; the portable code where this CPU lacks it.
    #[must_use]
    pub fn on(isa: Isa, par: Par) -> Self {
        let (floats, inputs, block_inputs, trellis_inputs, tables) = Default::default();
        let places = Places::default();
        Self { par, isa, floats, inputs, block_inputs, trellis_inputs, tables, places }
    }

    /// By how many threads.
    #[must_use]
    pub fn par(&self) -> Par {
        self.par
    }

    /// On which instruction set.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `f` with every item, and with the places of the thread that does it.
    pub(crate) fn for_each<I>(&mut self, items: I, f: impl Fn(&mut Places, I::Item) + Sync)
    where
        I: ExactSizeIterator + Send,
    {
        match self.par {
            par if par.threads() > 1 => par.for_each_init(items, Places::default, f),
            _ => items.for_each(|item| f(&mut self.places, item)),
        }
    }

    /// A buffer of `len` values, contents unspecified; give it back with [`Work::put`].
    #[must_use]
    pub fn take(&mut self, len: usize) -> Vec<f32> {
        // The smallest that is large enough, else the largest: a call that follows one like it finds what that one left.
        let fit = |buffer: &Vec<f32>| match buffer.capacity() {
            capacity if capacity >= len => (0, capacity - len),
            capacity => (1, len - capacity),
        };
        let best = (0..self.floats.len()).min_by_key(|i| fit(&self.floats[*i]));
        let mut buffer = best.map(|i| self.floats.swap_remove(i)).unwrap_or_default();
        buffer.resize(len, 0.0);
        buffer
    }

    /// Gives a buffer back.
    pub fn put(&mut self, buffer: Vec<f32>) {
        self.floats.push(buffer);
    }

    /// As [`Work::take`], beginning at a cache line: vectors read from it never straddle two.
    #[must_use]
    pub fn take_lines(&mut self, len: usize) -> Lines {
        const LINE: usize = 64 / size_of::<f32>();
        let buffer = self.take(len + LINE - 1);
        let skip = buffer.as_ptr().align_offset(64).min(LINE - 1);
        Lines { buffer, range: skip..skip + len }
    }

    /// Gives them back.
    pub fn put_lines(&mut self, lines: Lines) {
        self.put(lines.buffer);
    }

    /// A place for prepared activations; give it back with [`Work::put_input`].
    #[must_use]
    pub fn take_input(&mut self) -> PanelInput {
        self.inputs.pop().unwrap_or_default()
    }

    /// Gives prepared activations back.
    pub fn put_input(&mut self, input: PanelInput) {
        self.inputs.push(input);
    }

    /// A place for activations prepared for blocks; give it back with [`Work::put_block_activations`].
    #[must_use]
    pub fn take_block_activations(&mut self) -> BlockActivations {
        self.block_inputs.pop().unwrap_or_default()
    }

    /// Gives activations prepared for blocks back.
    pub fn put_block_activations(&mut self, input: BlockActivations) {
        self.block_inputs.push(input);
    }

    /// A place for activations prepared for trellis codes; give it back with [`Work::put_trellis`].
    pub(crate) fn take_trellis(&mut self) -> trellis::Inputs {
        self.trellis_inputs.pop().unwrap_or_default()
    }

    /// Gives them back.
    pub(crate) fn put_trellis(&mut self, inputs: trellis::Inputs) {
        self.trellis_inputs.push(inputs);
    }
    /// A place for tables of codebooks; give it back with [`Work::put_tables`].
    pub(crate) fn take_tables(&mut self) -> CodebookTables {
        self.tables.pop().unwrap_or_default()
    }

    /// Gives them back.
    pub(crate) fn put_tables(&mut self, tables: CodebookTables) {
        self.tables.push(tables);
    }
}
