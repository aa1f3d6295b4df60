use tensorpress_tensor::ndarray::{Array2, s};
use tensorpress_tensor::{DType, Error, RawTensor, Result};

use super::order::{GEMM, fast_place, padded_groups};
use super::{Layer, Layout, Unpacked, Zeros};
use crate::parts::{Fields, check_codes, store_floats, store_words};

impl Unpacked {
    /// The tensors of the layer as stored, bit for bit those of the official packer.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the part, for codes above 15, and for offsets in a layout of codes;
    /// `ShapeMismatch` if parts do not belong together, or do not fill the layout's words, tiles and groups.
    pub fn pack(&self, layout: Layout) -> Result<Layer> {
        self.check()?;
        check_codes("qweight", &self.codes, 4)?;
        if let Zeros::Codes(zeros) = &self.zeros {
            check_codes("qzeros", zeros, 4)?;
        }
        match layout {
            Layout::Gemm => self.pack_gemm(),
            Layout::Gemv => self.pack_gemv(),
            Layout::GemvFast => self.pack_fast(),
        }
    }

    fn zero_codes(&self) -> Result<&Array2<u8>> {
        match &self.zeros {
            Zeros::Codes(zeros) => Ok(zeros),
            Zeros::Offsets(_) => {
                Err(Error::invalid("offsets, where codes of zero belong").in_tensor("qzeros"))
            }
        }
    }

    fn pack_gemm(&self) -> Result<Layer> {
        let [outputs, inputs, groups, _] = self.check()?;
        let zeros = self.zero_codes()?;
        if !outputs.is_multiple_of(8) {
            let what = format!("{outputs} outputs do not fill whole words");
            return Err(Error::shape(what).in_tensor("qweight"));
        }
        let width = outputs / 8;
        let nibbles = Fields::dense(4);
        let pack = |codes: &Array2<u8>, rows: usize| {
            let mut words = vec![0; rows * width];
            for ((n, row), code) in codes.indexed_iter() {
                nibbles.put(GEMM[n % 8], *code, |_, bits| words[row * width + n / 8] |= bits);
            }
            store_words(&words, vec![rows, width])
        };
        Ok(Layer {
            qweight: pack(&self.codes, inputs)?,
            qzeros: pack(zeros, groups)?,
            scales: store_floats(&self.scales.t().to_owned(), self.dtype)?,
        })
    }

    fn pack_gemv(&self) -> Result<Layer> {
        let [outputs, inputs, groups, group] = self.check()?;
        let zeros = self.zero_codes()?;
        let (_, padded) = padded_groups(inputs, group)?;
        let nibbles = Fields::dense(4);
        let pack = |codes: &Array2<u8>, width: usize| {
            let mut words = vec![0; outputs * width];
            for ((n, col), code) in codes.indexed_iter() {
                nibbles.put(col, *code, |word, bits| words[n * width + word] |= bits);
            }
            store_words(&words, vec![outputs, width])
        };
        let mut scales = Array2::zeros((outputs, padded));
        scales.slice_mut(s![.., ..groups]).assign(&self.scales);
        Ok(Layer {
            qweight: pack(&self.codes, inputs / 8)?,
            qzeros: pack(zeros, padded / 8)?,
            scales: store_floats(&scales, self.dtype)?,
        })
    }

    fn pack_fast(&self) -> Result<Layer> {
        let [outputs, inputs, groups, group] = self.check()?;
        let (_, padded) = padded_groups(inputs, group)?;
        if !outputs.is_multiple_of(4) || !inputs.is_multiple_of(64) {
            let what = format!("[{outputs}, {inputs}] is not in tiles of 4 outputs and 64 inputs");
            return Err(Error::shape(what).in_tensor("qweight"));
        }
        let mut bytes = vec![0; outputs / 4 * inputs * 2];
        for ((n, k), code) in self.codes.indexed_iter() {
            let (word, nibble) = fast_place(inputs, n, k);
            bytes[2 * word + nibble / 2] |= code << (4 * (nibble % 2));
        }
        let store = |value: &dyn Fn([usize; 2]) -> f32| {
            let mut all = Array2::zeros((padded, outputs));
            for group in 0..groups {
                (0..outputs).for_each(|n| all[[group, n]] = value([n, group]));
            }
            store_floats(&all, self.dtype)
        };
        let offset = |at: [usize; 2]| match &self.zeros {
            Zeros::Codes(zeros) => -(self.scales[at] * f32::from(zeros[at])),
            Zeros::Offsets(offsets) => offsets[at],
        };
        Ok(Layer {
            qweight: RawTensor::new(DType::I16, vec![outputs / 4, inputs], bytes.into())?,
            qzeros: store(&offset)?,
            scales: store(&|at| self.scales[at])?,
        })
    }
}
