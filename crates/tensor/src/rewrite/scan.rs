//! Heads of a state-space layer, and what is left of it.

use super::{BlockLayout, Change, Edit};
use crate::error::{Error, Result};

/// A state-space layer with heads (Mamba 2). Heads forget as one; those of a group share what they remember by and how it is
/// read (B and C).
///
/// The rows of the matrix into it are, in this order: the gate of every channel, every channel, B and then C of every group,
/// the step of every head. Channels are those of the first head, of the second, and so on; the convolution has the channels,
/// B and C.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScanLayout {
    /// Heads.
    pub heads: usize,
    /// Channels of a head.
    pub width: usize,
    /// Groups of as many consecutive heads.
    pub groups: usize,
    /// Values that a channel remembers.
    pub state: usize,
    /// Name of the matrix into it.
    pub input: String,
    /// Name of the bias of that matrix, which may be missing.
    pub input_bias: String,
    /// Name of the matrix out of it, `[hidden, channels]`.
    pub output: String,
    /// Tensors with an entry or a row for each channel of the convolution.
    pub convolution: Vec<String>,
    /// Vectors with a number a head.
    pub per_head: Vec<String>,
    /// Weights of the norm behind the scan, a number a channel.
    pub norm: Option<String>,
}

impl ScanLayout {
    /// A layer with tensors of these names: the matrices into it and out of it.
    ///
    /// # Panics
    /// Unless the groups divide the heads.
    #[must_use]
    pub fn new(
        heads: usize,
        width: usize,
        groups: usize,
        state: usize,
        input: impl Into<String>,
        output: impl Into<String>,
    ) -> Self {
        assert!(groups > 0 && heads.is_multiple_of(groups), "groups of as many heads");
        let (input, output) = (input.into(), output.into());
        let input_bias = format!("{}.bias", input.strip_suffix(".weight").unwrap_or(&input));
        let (convolution, per_head, norm) = (Vec::new(), Vec::new(), None);
        Self { heads, width, groups, state, input, input_bias, output, convolution, per_head, norm }
    }

    /// Sets the tensors of the convolution, the vectors with a number a head, and the norm behind the scan.
    #[must_use]
    pub fn with_tensors(
        mut self,
        convolution: Vec<String>,
        per_head: Vec<String>,
        norm: Option<String>,
    ) -> Self {
        (self.convolution, self.per_head, self.norm) = (convolution, per_head, norm);
        self
    }

    /// All channels of all heads.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.heads * self.width
    }

    /// The channels that stay with these heads and these channels of each of them.
    #[must_use]
    pub fn kept(&self, heads: &[usize], channels: &[usize]) -> Vec<usize> {
        heads.iter().flat_map(|head| channels.iter().map(move |c| head * self.width + c)).collect()
    }
}

impl Edit {
    /// These heads stay, as many of each group, and these channels of each of them: all tensors of the layer are cut to
    /// them, but for the norm behind the scan, which is cut alone.
    ///
    /// # Errors
    /// `Unsupported` for a block without heads of a state-space layer; `InvalidArgument`, naming the block, for numbers out
    /// of range or order, and for groups that lose unequally.
    pub fn scan(layout: &BlockLayout, heads: &[usize], channels: &[usize]) -> Result<Self> {
        let block = layout.block;
        let Some(scan) = &layout.scan else {
            let message = format!("block {block} has no heads of a state-space layer");
            return Err(Error::unsupported(message));
        };
        let within = |kept: &[usize], all: usize, what: &str| {
            let ascending = kept.windows(2).all(|pair| pair[0] < pair[1]);
            match kept.last() {
                Some(last) if ascending && *last < all => Ok(()),
                _ => Err(Error::invalid(format!(
                    "block {block}: {what} that stay: allowed are ascending numbers below {all}, at least one"
                ))),
            }
        };
        within(heads, scan.heads, "heads")?;
        within(channels, scan.width, "channels of a head")?;
        let (size, each) = (scan.heads / scan.groups, heads.len() / scan.groups);
        let even = |group: usize| heads.iter().filter(|h| **h / size == group).count() == each;
        if each == 0 || !(0..scan.groups).all(even) {
            let message = format!("block {block}: allowed are as many heads of each group");
            return Err(Error::invalid(message));
        }
        let (all, kept) = (scan.channels(), scan.kept(heads, channels));
        let shared = 2 * scan.groups * scan.state;
        let inner = kept.len();
        let edit = Self::new().with_shape(layout.shape.clone().with_scan(heads.len(), inner));
        if inner == all {
            return Ok(edit);
        }
        let behind = |first: usize, rows: &[usize]| -> Vec<usize> {
            rows.iter().map(|row| first + row).collect()
        };
        let both: Vec<usize> = (0..shared).collect();
        let convolved = [kept.clone(), behind(all, &both)].concat();
        let steps = behind(2 * all + shared, heads);
        let rows = [kept.clone(), behind(all, &convolved), steps].concat();
        let mut edit = edit
            .with_change(&scan.input, Change::Rows(rows.clone()))
            .with_change(&scan.input_bias, Change::Columns(rows))
            .with_change(&scan.output, Change::Columns(kept.clone()));
        for name in &scan.convolution {
            // A vector has entries; a stack of kernels, rows.
            let cut = match name.ends_with(".bias") {
                true => Change::Columns(convolved.clone()),
                false => Change::Rows(convolved.clone()),
            };
            edit = edit.with_change(name, cut);
        }
        for name in &scan.per_head {
            edit = edit.with_change(name, Change::Columns(heads.to_vec()));
        }
        if let Some(name) = &scan.norm {
            edit = edit.with_change(name, Change::Columns(kept.clone()));
        }
        Ok(edit)
    }
}
