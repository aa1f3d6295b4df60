//! A byte plane, coded by whichever coder makes it smallest.

use tensorpress_tensor::kernels::{Isa, pack_bits, packed_len, unpack_bits};
use tensorpress_tensor::{Error, Result};

use super::Effort;
use crate::coder::blocks::{Blocks, Plan, count, histograms};
use crate::coder::{classes, huffman, range};
use crate::model::{Counts, Model, Table};
use crate::varint::{read_varint, write_varint};

/// How a plane is coded; ids of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Raw = 0,
    Constant = 1,
    Rans = 2,
    Huffman = 3,
    Packed = 4,
    Classes = 5,
    Range = 6,
}

impl Coding {
    fn from_id(id: u8) -> Result<Self> {
        [
            Self::Raw,
            Self::Constant,
            Self::Rans,
            Self::Huffman,
            Self::Packed,
            Self::Classes,
            Self::Range,
        ]
        .into_iter()
        .find(|c| *c as u8 == id)
        .ok_or_else(|| Error::version(format!("unknown coding {id} of a plane")))
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Constant => "constant",
            Self::Rans => "rans",
            Self::Huffman => "huffman",
            Self::Packed => "packed",
            Self::Classes => "classes",
            Self::Range => "range",
        }
    }
}

/// Planes shorter than this are not worth 128 states.
const SHORT: usize = 4096;

/// Planes up to this length are coded by every coder that is allowed, since their headers decide.
const MEDIUM: usize = 1 << 18;

/// Which coders a plane may be coded by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowed {
    pub(crate) rans: bool,
    pub(crate) huffman: bool,
    pub(crate) range: bool,
}

impl Allowed {
    /// What chunks use: range coding is too slow for them.
    pub(crate) const FAST: Self = Self { rans: true, huffman: true, range: false };
}

/// Appends id, length and body.
pub(crate) fn encode(plane: &[u8], effort: Effort, out: &mut Vec<u8>) {
    if effort == Effort::Fast && looks_like_noise(plane) {
        return append(Coding::Raw, plane, out);
    }
    encode_by(plane, effort, Allowed::FAST, out);
}

/// [`encode`] by some coders only.
pub(crate) fn encode_by(plane: &[u8], effort: Effort, allowed: Allowed, out: &mut Vec<u8>) {
    if plane.is_empty() {
        return append(Coding::Raw, plane, out);
    }
    let grains = histograms(plane);
    let counts: Counts = std::array::from_fn(|i| grains.iter().map(|g| g[i]).sum());
    let mut body = Vec::new();
    let coding = if counts.iter().filter(|n| **n > 0).count() == 1 {
        body.push(plane[0]);
        Coding::Constant
    } else {
        encode_varying(plane, &grains, &counts, effort, allowed, &mut body)
    };
    append(coding, &body, out);
}

fn append(coding: Coding, body: &[u8], out: &mut Vec<u8>) {
    out.push(coding as u8);
    write_varint(body.len() as u64, out);
    out.extend_from_slice(body);
}

/// Runs that are looked at, of 8 times as many.
const SAMPLE: usize = 1 << 11;

/// Whether an eighth of the plane, spread over it, says that it is not worth coding: mantissas mostly are not.
fn looks_like_noise(plane: &[u8]) -> bool {
    if plane.len() < 32 * SAMPLE {
        return false;
    }
    let mut counts = [0; 256];
    for run in plane.chunks_exact(8 * SAMPLE) {
        count(&run[..SAMPLE]).iter().zip(&mut counts).for_each(|(n, sum)| *sum += n);
    }
    let looked_at = counts.iter().sum::<u32>();
    // A sample this large has an entropy at most 0.3% too low.
    entropy(&counts) / 8.0 > (WORTH_FAST + 0.003) * f64::from(looked_at)
}

/// Coding that leaves more than this is not worth decoding: when speed counts, and when size does.
const WORTH_FAST: f64 = 0.985;
const WORTH_BEST: f64 = 0.998;

fn encode_varying(
    plane: &[u8],
    grains: &[Counts],
    counts: &Counts,
    effort: Effort,
    allowed: Allowed,
    body: &mut Vec<u8>,
) -> Coding {
    // Bits that are 0 in every symbol need not be stored: that is what coding must beat.
    let used = (0..=255u8).filter(|s| counts[usize::from(*s)] > 0).fold(0, |or, s| or | s);
    let (shift, bits) = (used.trailing_zeros(), 8 - used.leading_zeros() - used.trailing_zeros());
    let worth = if effort == Effort::Fast { WORTH_FAST } else { WORTH_BEST };
    let worth = packed_len(plane.len(), bits) as f64 * worth;
    let isa = Isa::detect();
    // What the coders would take; then the smallest is done.
    let none = f64::INFINITY;
    let short = plane.len() < if allowed.rans { SHORT } else { usize::MAX };
    let medium = plane.len() < MEDIUM || !allowed.rans;
    let huffman_bytes = if allowed.huffman && medium { huffman::estimate(counts) } else { none };
    let range_bytes = if allowed.range && medium { range_estimate(counts) } else { none };
    if allowed.rans && !short && (entropy(counts) / 8.0 < worth || grains.len() > 1) {
        // Narrow tables decode twice as fast.
        let (sizes, wide_worth): (&[u32], f64) = match effort {
            Effort::Fast => (&[16, 20], 0.005),
            Effort::Best => (&[14, 15, 16, 17, 18, 20], 0.0),
        };
        let plan = Plan::best(grains, sizes, wide_worth);
        let others = worth.min(huffman_bytes).min(range_bytes);
        if effort == Effort::Best && classes::encode(isa, plane, plan.bytes.min(others), body) {
            return Coding::Classes;
        }
        if plan.bytes < others {
            plan.encode(plane, body);
            return Coding::Rans;
        }
    }
    if range_bytes < huffman_bytes.min(worth) {
        encode_range(plane, counts, body);
        return Coding::Range;
    }
    if huffman_bytes < worth {
        huffman::encode(plane, counts, body);
        return Coding::Huffman;
    }
    body.clear();
    if bits < 8 {
        let shifted: Vec<u8> = plane.iter().map(|s| s >> shift).collect();
        body.resize(2 + packed_len(plane.len(), bits), 0);
        body[..2].copy_from_slice(&[shift as u8, bits as u8]);
        pack_bits(&shifted, bits, &mut body[2..]);
        return Coding::Packed;
    }
    body.extend_from_slice(plane);
    Coding::Raw
}

fn range_estimate(counts: &Counts) -> f64 {
    let table = Table::wide(counts);
    let head = Table::write_all(std::slice::from_ref(&table)).len();
    table.cost(counts) / 8.0 + head as f64 + 8.0
}

/// Length of the table, table, range code.
fn encode_range(plane: &[u8], counts: &Counts, body: &mut Vec<u8>) {
    let table = Table::wide(counts);
    let written = Table::write_all(std::slice::from_ref(&table));
    write_varint(written.len() as u64, body);
    body.extend_from_slice(&written);
    let coded = range::encode(plane, Model::Static(&table), body);
    coded.expect("the table has every symbol");
}

fn decode_range(body: &[u8], out: &mut [u8]) -> Result<()> {
    let mut rest = body;
    let len = usize::try_from(read_varint(&mut rest)?).unwrap_or(usize::MAX);
    let (table, code) =
        rest.split_at_checked(len).ok_or_else(|| Error::insufficient("table ends early"))?;
    let table = Table::read_all(table, 1)?;
    range::decode(code, Model::Static(&table[0]), out)
}

/// Bits of symbols with these counts, without any overhead.
pub(crate) fn entropy(counts: &Counts) -> f64 {
    let total: f64 = counts.iter().map(|n| f64::from(*n)).sum();
    counts.iter().filter(|n| **n > 0).map(|n| f64::from(*n) * (total / f64::from(*n)).log2()).sum()
}

/// A coded plane of `count` symbols within a chunk.
#[derive(Debug)]
pub(crate) struct Coded<'a> {
    pub(crate) coding: Coding,
    pub(crate) count: usize,
    /// The body, and everything behind it in the chunk.
    from_body: &'a [u8],
    pub(crate) len: usize,
}

impl<'a> Coded<'a> {
    /// Takes a plane from the front of `bytes`.
    ///
    /// # Errors
    /// `Corruption`, `InsufficientData`, or `Version` for unknown codings.
    pub(crate) fn take(bytes: &mut &'a [u8], count: usize) -> Result<Self> {
        let early = || Error::insufficient("plane ends early");
        let (id, rest) = bytes.split_first().ok_or_else(early)?;
        let coding = Coding::from_id(*id)?;
        let mut rest = rest;
        let len = usize::try_from(read_varint(&mut rest)?).unwrap_or(usize::MAX);
        let plane = Self { coding, count, from_body: rest, len };
        *bytes = rest.get(len..).ok_or_else(early)?;
        Ok(plane)
    }

    fn body(&self) -> &'a [u8] {
        &self.from_body[..self.len]
    }

    /// The symbols themselves, where they are stored so.
    ///
    /// # Errors
    /// `Corruption` if there are more or fewer than there should be.
    pub(crate) fn raw(&self) -> Result<Option<&'a [u8]>> {
        match self.coding {
            Coding::Raw if self.len == self.count => Ok(Some(self.body())),
            Coding::Raw => {
                Err(Error::corruption(format!("{} raw symbols, {} expected", self.len, self.count)))
            }
            _ => Ok(None),
        }
    }

    /// The rANS blocks, where it is coded so.
    ///
    /// # Errors
    /// `Corruption` or `InsufficientData`.
    pub(crate) fn blocks(&self) -> Result<Option<Blocks<'a>>> {
        match self.coding {
            Coding::Rans => Blocks::open(self.from_body, self.len, self.count).map(Some),
            _ => Ok(None),
        }
    }

    /// Decodes into `out`, `count` long.
    ///
    /// # Errors
    /// `Corruption` or `InsufficientData`.
    pub(crate) fn decode(&self, isa: Isa, out: &mut [u8]) -> Result<()> {
        assert_eq!(out.len(), self.count, "output length");
        if let Some(raw) = self.raw()? {
            out.copy_from_slice(raw);
            return Ok(());
        }
        match (self.blocks()?, self.coding, self.body()) {
            (Some(blocks), ..) => blocks.decode(isa, out),
            (None, Coding::Constant, [byte]) => {
                out.fill(*byte);
                Ok(())
            }
            (None, Coding::Huffman, body) => huffman::decode(body, out),
            (None, Coding::Classes, _) => classes::decode(isa, self.from_body, self.len, out),
            (None, Coding::Range, body) => decode_range(body, out),
            (None, Coding::Packed, body) => unpack(body, out),
            _ => Err(Error::corruption("constant plane without its byte")),
        }
    }
}

fn unpack(body: &[u8], out: &mut [u8]) -> Result<()> {
    let Some(([shift, bits], packed)) = body.split_first_chunk::<2>() else {
        return Err(Error::insufficient("packed plane ends early"));
    };
    let bits = u32::from(*bits);
    if !(1..8).contains(&bits)
        || u32::from(*shift) + bits > 8
        || packed.len() != packed_len(out.len(), bits)
    {
        return Err(Error::corruption(format!("{} bytes packed at {bits} bits", packed.len())));
    }
    unpack_bits(packed, bits, 0, out);
    out.iter_mut().for_each(|s| *s <<= shift);
    Ok(())
}
