//! Importance matrices of llama.cpp: how much each input of a matrix matters, as the mean of its squares over a text.
//!
//! - Today's form is a GGUF file of `general.type` = `imatrix`, with two tensors for each matrix: `NAME.in_sum2`, f32
//!   `[experts, in]`, sums of squares, and `NAME.counts`, f32 `[experts, 1]`, over how many tokens.
//! - The older form is little-endian: an i32 number of matrices; for each an i32 length and a name, i32 calls, an i32
//!   number of values and as many f32, means of squares times the calls; then an i32 number of chunks, and an i32 length
//!   and the name of the text.
//!
//! Names are those of GGUF files (`blk.0.attn_q.weight`). (Source: `tools/imatrix` of llama.cpp.)

use std::collections::BTreeMap;

use tensorpress_tensor::{Bytes, DType, Error, Result};

use crate::gguf::{Array, Gguf, Header, Kind, Value};

/// Squares of the inputs of one matrix, or of all experts' that lie in one tensor.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Squares {
    /// Sums of squares, `in` for each expert after another.
    pub sums: Vec<f32>,
    /// Over how many tokens, for each expert; one of a matrix alone.
    pub counts: Vec<f32>,
}

/// An importance matrix.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Imatrix {
    /// By names of matrices in GGUF files.
    pub matrices: BTreeMap<String, Squares>,
    /// What texts were read.
    pub datasets: Vec<String>,
    /// Chunks of text.
    pub chunks: u32,
    /// Tokens of a chunk; 0 where the file does not say.
    pub chunk_size: u32,
}

/// Bytes of a name that are believed.
const LONGEST: usize = 1 << 12;
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

impl Squares {
    /// Sums over tokens; one count for each expert.
    ///
    /// # Errors
    /// `ShapeMismatch` unless sums divide evenly among the counts; `Numerical` for what is not finite or negative.
    pub fn new(sums: Vec<f32>, counts: Vec<f32>) -> Result<Self> {
        if counts.is_empty() || !sums.len().is_multiple_of(counts.len()) {
            let what = format!("{} sums of squares for {} experts", sums.len(), counts.len());
            return Err(Error::shape(what));
        }
        let bad = |value: &&f32| !value.is_finite() || **value < 0.0;
        if let Some(value) = sums.iter().chain(&counts).find(bad) {
            return Err(Error::numerical(format!("{value} among sums of squares and counts")));
        }
        Ok(Self { sums, counts })
    }

    /// Inputs of a matrix.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.sums.len() / self.counts.len().max(1)
    }

    /// The mean of squares of each input of an expert's matrix; none if there is no such expert, or no token came to it:
    /// then nothing is known of it.
    #[must_use]
    pub fn importance(&self, expert: usize) -> Option<Vec<f32>> {
        let count = self.counts.get(expert).copied().filter(|count| *count > 0.0)?;
        let inputs = self.inputs();
        let sums = &self.sums[expert * inputs..(expert + 1) * inputs];
        Some(sums.iter().map(|sum| sum / count).collect())
    }
}

/// Takes little-endian pieces from the front.
struct Front<'a>(&'a [u8]);

impl<'a> Front<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        match self.0.split_at_checked(len) {
            Some((taken, rest)) => {
                self.0 = rest;
                Ok(taken)
            }
            None => Err(Error::insufficient("an importance matrix that ends too early")),
        }
    }

    /// A number that is not negative.
    fn number(&mut self, what: &str, most: usize) -> Result<usize> {
        let bytes = self.take(4)?;
        let number = i32::from_le_bytes(bytes.try_into().expect("4 bytes"));
        let fits = usize::try_from(number).ok().filter(|number| *number <= most);
        fits.ok_or_else(|| Error::corruption(format!("{what} = {number}: allowed are 0 to {most}")))
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let len = self.number(what, LONGEST)?;
        let text = std::str::from_utf8(self.take(len)?);
        text.map(str::to_owned).map_err(|e| Error::corruption(format!("{what}: no UTF-8: {e}")))
    }
}

impl Imatrix {
    /// Reads either form.
    ///
    /// # Errors
    /// Those of [`Gguf::from_bytes`]; `Corruption`, `InsufficientData` or `ShapeMismatch` for bytes that are none, naming
    /// the matrix.
    pub fn read(bytes: impl Into<Bytes>) -> Result<Self> {
        let bytes = bytes.into();
        match bytes.starts_with(b"GGUF") {
            true => Self::read_gguf(&Gguf::from_bytes(bytes)?),
            false => Self::read_old(&bytes),
        }
    }

    fn read_gguf(file: &Gguf) -> Result<Self> {
        let header = file.header();
        let kind = header.get("general.type").and_then(Value::as_str).unwrap_or("model");
        if kind != "imatrix" {
            return Err(Error::corruption(format!("key `general.type` is {kind}, not imatrix")));
        }
        let number = |key: &str| header.get(key).and_then(Value::as_u64).unwrap_or(0) as u32;
        let texts = header.get("imatrix.datasets").and_then(Value::as_array);
        let mut read = Self {
            matrices: BTreeMap::new(),
            datasets: texts.iter().flat_map(|a| a.texts()).map(str::to_owned).collect(),
            chunks: number("imatrix.chunk_count"),
            chunk_size: number("imatrix.chunk_size"),
        };
        let floats = |name: &str| -> Result<Vec<f32>> {
            let info = header.tensor(name);
            let missing = || Error::insufficient("is not in the file").in_tensor(name);
            if info.ok_or_else(missing)?.type_id != 0 {
                return Err(Error::corruption("is not in f32").in_tensor(name));
            }
            let bytes = file.bytes(name)?;
            let mut values = vec![0.0; bytes.len() / 4];
            DType::F32.read_f32(&bytes, &mut values)?;
            Ok(values)
        };
        for info in header.tensors() {
            let Some(name) = info.name.strip_suffix(SUMS) else { continue };
            let squares = Squares::new(floats(&info.name)?, floats(&format!("{name}{COUNTS}"))?);
            read.matrices.insert(name.to_owned(), squares.map_err(|e| e.in_tensor(name))?);
        }
        Ok(read)
    }

    fn read_old(bytes: &[u8]) -> Result<Self> {
        let mut front = Front(bytes);
        // The smallest matrix takes 12 bytes.
        let count = front.number("the number of matrices", bytes.len() / 12)?;
        let mut read = Self::default();
        for _ in 0..count {
            let name = front.text("the length of a name")?;
            let within = |e: Error| e.in_tensor(&name);
            let calls = front.number("calls", i32::MAX as usize).map_err(within)?;
            let values = front.number("values", bytes.len() / 4).map_err(within)?;
            let stored = front.take(4 * values).map_err(within)?;
            let mut sums = vec![0.0; values];
            DType::F32.read_f32(stored, &mut sums)?;
            // Means times calls, so that both forms give the same means.
            let squares = Squares::new(sums, vec![calls.max(1) as f32]).map_err(within)?;
            if read.matrices.insert(name.clone(), squares).is_some() {
                return Err(Error::corruption("is there twice").in_tensor(name));
            }
        }
        if !front.0.is_empty() {
            read.chunks = front.number("chunks", i32::MAX as usize)? as u32;
            read.datasets = vec![front.text("the length of the text's name")?];
        }
        Ok(read)
    }

    /// A GGUF file, as llama.cpp writes it today.
    ///
    /// # Errors
    /// Those of [`Header::new`].
    pub fn write(&self) -> Result<Vec<u8>> {
        let datasets = self.datasets.iter().map(|text| Value::String(text.clone()));
        let metadata = vec![
            ("general.type".to_owned(), Value::String("imatrix".to_owned())),
            ("imatrix.datasets".to_owned(), Value::Array(Array::new(Kind::String, datasets)?)),
            ("imatrix.chunk_count".to_owned(), Value::U32(self.chunks)),
            ("imatrix.chunk_size".to_owned(), Value::U32(self.chunk_size)),
        ];
        let tensors = self.matrices.iter().flat_map(|(name, squares)| {
            let experts = squares.counts.len() as u64;
            [
                (format!("{name}{SUMS}"), vec![squares.inputs() as u64, experts], 0),
                (format!("{name}{COUNTS}"), vec![1, experts], 0),
            ]
        });
        let header = Header::new(metadata, tensors)?;
        let mut file = Vec::new();
        header.write(&mut file, &mut |info| {
            let of = |suffix: &str| info.name.strip_suffix(suffix);
            let (name, sums) = match of(SUMS) {
                Some(name) => (name, true),
                None => (of(COUNTS).unwrap_or_default(), false),
            };
            let squares = &self.matrices[name];
            let values = if sums { &squares.sums } else { &squares.counts };
            Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into())
        })?;
        Ok(file)
    }

    /// The older form: one expert's matrices alone, or all experts' in one as it has them.
    ///
    /// # Errors
    /// `InvalidArgument` for names and numbers that it has no room for.
    pub fn write_old(&self) -> Result<Vec<u8>> {
        let number = |what: usize| {
            let number = i32::try_from(what);
            number.map_err(|_| Error::invalid(format!("{what} in an importance matrix")))
        };
        let mut out = number(self.matrices.len())?.to_le_bytes().to_vec();
        let text = |text: &str, out: &mut Vec<u8>| -> Result<()> {
            out.extend(number(text.len())?.to_le_bytes());
            out.extend(text.as_bytes());
            Ok(())
        };
        for (name, squares) in &self.matrices {
            text(name, &mut out)?;
            let calls = squares.counts.iter().fold(0.0f32, |most, count| most.max(*count)).max(1.0);
            let calls = number(calls as usize)?.max(1);
            out.extend(calls.to_le_bytes());
            out.extend(number(squares.sums.len())?.to_le_bytes());
            for (i, sum) in squares.sums.iter().enumerate() {
                let count = squares.counts[i / squares.inputs().max(1)].max(1.0);
                out.extend((sum / count * calls as f32).to_le_bytes());
            }
        }
        out.extend(number(self.chunks as usize)?.to_le_bytes());
        text(self.datasets.first().map_or("", String::as_str), &mut out)?;
        Ok(out)
    }
}
