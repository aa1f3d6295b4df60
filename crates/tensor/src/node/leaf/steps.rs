//! Integers times a step of their row and a step of their column.

use std::sync::OnceLock;

use serde_json::json;

use super::{Child, Encoding, Format, Leaf, Slot};
use crate::error::{Error, Result};
use crate::node::plane::bits_of;
use crate::node::registry::field;
use crate::node::{Json, PackedPlane, Plane, Symbols};
use crate::storage::PartKind;

/// Integers of any size times a step of their row and a step of their column: `w = code (row step x column step)`.
pub type Steps = Leaf<StepFormat>;

/// The format of [`Steps`]: codes are symbols less a bias; steps are powers of 2^(1/8), their exponents symbols of a plane
/// a side, plus a base. Codes that symbols of 16 bits do not reach stand in a list.
///
/// The product of the steps is rounded to f32, then that with the code (rounded to f32 itself where it has more than 24
/// bits).
#[derive(Debug)]
pub struct StepFormat {
    bias: u32,
    /// Of the exponents of rows and of columns.
    bases: [i32; 2],
    /// Codes in the list.
    far: usize,
    ready: OnceLock<Ready>,
}

/// What rows are decoded with.
#[derive(Debug)]
struct Ready {
    rows: Vec<f32>,
    columns: Vec<f32>,
    /// Where the list of each row begins; as long as the rows if there is a list.
    starts: Vec<usize>,
}

/// Exponents beyond this, in eighths, count as this: products of two steps are finite and not 0.
const LARGEST: i32 = 480;

/// The largest distance of a code from 0.
const FARTHEST: i32 = 1 << 30;

/// Places of the slots.
const ROWS: usize = 0;
const COLUMNS: usize = 1;
const FAR_COUNTS: usize = 2;
const FAR_COLUMNS: usize = 3;
const FAR_CODES: usize = 4;

impl StepFormat {
    /// 2^(eighths / 8) as all readers know it.
    #[must_use]
    pub fn step(eighths: i32) -> f32 {
        /// 2^(k/8), rounded to f32.
        const ROOTS: [f32; 8] = [
            1.0,
            1.090_507_7,
            1.189_207_1,
            1.296_839_6,
            std::f32::consts::SQRT_2,
            1.542_210_8,
            1.681_792_9,
            1.834_008_1,
        ];
        let eighths = eighths.clamp(-LARGEST, LARGEST);
        let octave = (127 + eighths.div_euclid(8)) as u32;
        ROOTS[eighths.rem_euclid(8) as usize] * f32::from_bits(octave << 23)
    }

    /// The exponent whose step is nearest in size; the largest ones for 0 and infinity.
    #[must_use]
    pub fn eighths(step: f64) -> i32 {
        (8.0 * step.log2()).round().clamp(f64::from(-LARGEST), f64::from(LARGEST)) as i32
    }

    /// A leaf of codes (row-major), and the exponents of the steps of rows and columns, in eighths.
    ///
    /// # Errors
    /// `ShapeMismatch` if the codes are no matrix of them, `InvalidArgument` for codes beyond 2^30 and exponents more than
    /// 65,535 apart.
    pub fn leaf(codes: &[i32], rows: &[i32], columns: &[i32]) -> Result<Steps> {
        let shape = [rows.len(), columns.len()];
        if codes.len() != rows.len() * columns.len() {
            return Err(Error::shape(format!("{} codes for {shape:?}", codes.len())));
        }
        if let Some(code) = codes.iter().find(|code| code.unsigned_abs() > FARTHEST as u32) {
            return Err(Error::invalid(format!("code {code}: allowed are -2^30 to 2^30")));
        }
        let least = codes.iter().copied().min().unwrap_or(0).clamp(-32_768, 0);
        let most = codes.iter().copied().max().unwrap_or(0).clamp(0, 32_767);
        let bits = bits_of((most - least + 1) as u32);
        let is_far = |code: i32| !(least..=most).contains(&code);
        let mut counts = vec![0u32; rows.len()];
        let (mut far_columns, mut far_codes) = (Vec::new(), Vec::new());
        for (i, code) in codes.iter().enumerate().filter(|(_, code)| is_far(**code)) {
            counts[i / columns.len()] += 1;
            far_columns.push((i % columns.len()) as f32);
            far_codes.push(*code as f32);
        }
        // A code of the list keeps its remainder modulo 4 among the symbols, so that those still follow a trellis.
        let near = |code: i32| match code {
            _ if code > most => most - (most - code).rem_euclid(4),
            _ if code < least => least + (code - least).rem_euclid(4),
            _ => code,
        };
        let symbols = codes.iter().map(|code| (near(*code) - least) as u16);
        let plane = match bits {
            ..=8 => {
                let symbols: Vec<u8> = symbols.map(|s| s as u8).collect();
                PackedPlane::pack(&symbols, rows.len(), columns.len(), bits)?
            }
            _ => {
                let symbols: Vec<u16> = symbols.collect();
                PackedPlane::pack(&symbols, rows.len(), columns.len(), bits)?
            }
        };
        let base = |of: &[i32]| of.iter().copied().min().unwrap_or(0);
        let bases = [base(rows), base(columns)];
        let side = |of: &[i32], base: i32| {
            let above: Vec<u32> = of.iter().map(|e| e.abs_diff(base)).collect();
            packed(&above).map(Child::Plane)
        };
        let format = Self {
            bias: least.unsigned_abs(),
            bases,
            far: far_codes.len(),
            ready: OnceLock::new(),
        };
        let mut beside = vec![side(rows, bases[0])?, side(columns, bases[1])?];
        if format.far > 0 {
            let floats = |values| Child::Floats { dtype: crate::DType::F32, values };
            beside.extend([Child::Plane(packed(&counts)?), floats(far_columns), floats(far_codes)]);
        }
        Leaf::new(format, shape, Box::new(plane), beside)
    }

    /// The symbol of code 0.
    #[must_use]
    pub fn bias(&self) -> u32 {
        self.bias
    }

    fn ready(&self, beside: &[&[f32]]) -> &Ready {
        self.ready.get_or_init(|| {
            let steps = |slot: usize| {
                let step = |symbol: &f32| Self::step(*symbol as i32 + self.bases[slot]);
                beside[slot].iter().map(step).collect()
            };
            let mut starts = Vec::new();
            if self.far > 0 {
                let mut at = 0;
                starts.extend(beside[FAR_COUNTS].iter().map(|count| {
                    at += *count as usize;
                    at - *count as usize
                }));
            }
            Ready { rows: steps(ROWS), columns: steps(COLUMNS), starts }
        })
    }
}

/// A row of numbers, packed at as many bits as they need.
fn packed(numbers: &[u32]) -> Result<Box<dyn Plane>> {
    let most = numbers.iter().copied().max().unwrap_or(0);
    let symbols = numbers.iter().map(|n| u16::try_from(*n));
    let symbols: Vec<u16> = symbols
        .collect::<Result<_, _>>()
        .map_err(|_| Error::invalid(format!("{most} in a row of steps: allowed are 0 to 65535")))?;
    Ok(Box::new(match bits_of(most + 1) {
        bits @ ..=8 => {
            let symbols: Vec<u8> = symbols.iter().map(|s| *s as u8).collect();
            PackedPlane::pack(&symbols, 1, symbols.len(), bits)?
        }
        bits => PackedPlane::pack(&symbols, 1, symbols.len(), bits)?,
    }))
}

impl Format for StepFormat {
    const ID: &'static str = "steps.v1";

    fn read_from(json: &Json) -> Result<Self> {
        let far = if json.get("far").is_some() { field(json, "far")? } else { 0 };
        let bases: [i32; 2] = field(json, "bases")?;
        // Symbols are added to them.
        if bases.iter().any(|base| base.unsigned_abs() > 1 << 20) {
            return Err(Error::corruption(format!("bases {bases:?} of steps")));
        }
        Ok(Self { bias: field(json, "bias")?, bases, far, ready: OnceLock::new() })
    }

    fn describe(&self, json: &mut Json) {
        json["bias"] = self.bias.into();
        json["bases"] = json!(self.bases);
        if self.far > 0 {
            json["far"] = self.far.into();
        }
    }

    fn slots(&self, [rows, cols]: [usize; 2]) -> Vec<Slot> {
        let slot = |name, kind, count, encoding| Slot { name, kind, shape: [1, count], encoding };
        let mut slots = vec![
            slot("rows", PartKind::Scales, rows, Encoding::Plane),
            slot("columns", PartKind::Scales, cols, Encoding::Plane),
        ];
        if self.far > 0 {
            slots.extend([
                slot("far_counts", PartKind::Codes, rows, Encoding::Plane),
                slot("far_columns", PartKind::Codes, self.far, Encoding::Floats),
                slot("far_codes", PartKind::Codes, self.far, Encoding::Floats),
            ]);
        }
        slots
    }

    fn check(&self, _: [usize; 2], _: u32) -> Result<()> {
        match self.bias {
            ..=65_535 => Ok(()),
            bias => Err(Error::invalid(format!("bias = {bias}: allowed are 0 to 65535"))),
        }
    }

    fn decode_row(&self, row: usize, codes: Symbols<'_>, beside: &[&[f32]], out: &mut [f32]) {
        let ready = self.ready(beside);
        let (step, bias) = (ready.rows[row], self.bias as i32);
        let columns = &ready.columns[..out.len()];
        match codes {
            Symbols::U8(codes) => {
                for ((out, column), code) in out.iter_mut().zip(columns).zip(codes) {
                    *out = (i32::from(*code) - bias) as f32 * (step * column);
                }
            }
            Symbols::U16(codes) => {
                for ((out, column), code) in out.iter_mut().zip(columns).zip(codes) {
                    *out = (i32::from(*code) - bias) as f32 * (step * column);
                }
            }
        }
        if let Some(start) = ready.starts.get(row) {
            let end = ready.starts.get(row + 1).copied().unwrap_or(self.far);
            let [at, far] = [beside[FAR_COLUMNS], beside[FAR_CODES]]
                .map(|list| list.get(*start..end).unwrap_or_default());
            for (column, code) in at.iter().zip(far) {
                let column = *column as usize;
                if let Some(out) = out.get_mut(column) {
                    *out = code * (step * columns[column]);
                }
            }
        }
    }
}
