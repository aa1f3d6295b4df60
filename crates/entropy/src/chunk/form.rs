//! What planes are made of: the values themselves, or their differences from something.

use tensorpress_tensor::kernels::planes::{join_planes, split_planes};
use tensorpress_tensor::{Error, Result};

use super::Effort;
use super::window::Window;
use crate::value::ValueType;

/// How values become the integers whose bytes are the planes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    difference: Difference,
    /// The sign moves from the top bit to the lowest, so that the exponent starts at a byte's edge.
    rotate: bool,
    /// Exponents lie in a [`Window`].
    window: bool,
}

/// From what; ids of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Difference {
    None = 0,
    /// Bit pattern less the base's, as a zigzag integer: near values have near patterns whatever their exponents.
    FromBase = 1,
    /// Exclusive or with the base (BitX in ZipLLM, 2025).
    XorBase = 2,
    /// Pattern less the previous value's, as a zigzag integer.
    FromPrevious = 3,
}

impl Form {
    pub(crate) fn id(self) -> u8 {
        self.difference as u8 | u8::from(self.window) << 6 | u8::from(self.rotate) << 7
    }

    pub(crate) fn from_id(id: u8) -> Result<Self> {
        use Difference::*;
        let difference = [None, FromBase, XorBase, FromPrevious]
            .into_iter()
            .find(|d| *d as u8 == id & 0x3f)
            .ok_or_else(|| Error::version(format!("unknown form {id} of planes")))?;
        let form = Self { difference, rotate: id & 0x80 != 0, window: id & 0x40 != 0 };
        if form.window && (!form.rotate || difference != None) {
            return Err(Error::corruption(format!("form {id}: a window of what is no exponent")));
        }
        Ok(form)
    }

    /// Forms worth a try, the likeliest first.
    pub(crate) fn candidates(values: ValueType, base: bool, effort: Effort) -> Vec<Self> {
        use Difference::*;
        let plain = |difference| Self { difference, rotate: false, window: false };
        let own = Self { difference: None, rotate: values.is_float(), window: false };
        match (base, effort) {
            (true, Effort::Fast) => vec![plain(FromBase)],
            (true, Effort::Best) => vec![plain(FromBase), plain(XorBase)],
            // Sorted or slowly changing integers: positions, offsets.
            (false, _) if !values.is_float() && values.width() > 1 => {
                vec![own, plain(FromPrevious)]
            }
            (false, Effort::Best) if values.is_float() => vec![own, Self { window: true, ..own }],
            (false, _) => vec![own],
        }
    }

    /// Whether planes are the values' own bytes after rotation.
    pub(crate) fn is_plain_float(self) -> bool {
        self.difference == Difference::None && self.rotate && !self.window
    }

    /// Planes of `body`, a whole number of values; plane k holds byte k. Appends to `head` what undoing needs to know.
    /// `None` if this form does not suit the values.
    pub(crate) fn planes(
        self,
        values: ValueType,
        body: &[u8],
        base: Option<&[u8]>,
        head: &mut Vec<u8>,
    ) -> Option<Vec<Vec<u8>>> {
        let width = values.width();
        let mut planes = vec![Vec::new(); width];
        if self.window {
            let mut rotated = body.to_vec();
            rotate(width, &mut rotated, Way::There);
            Window::apply(width, &mut rotated)?.write(width, head);
            split_planes(&rotated, false, &mut planes);
        } else if self.difference == Difference::None {
            split_planes(body, self.rotate, &mut planes);
        } else {
            let mut changed = body.to_vec();
            change(width, self.difference, base, &mut changed, Way::There);
            split_planes(&changed, self.rotate, &mut planes);
        }
        Some(planes)
    }

    /// Takes the window of `count` values from the front of `bytes`, if this form has one.
    ///
    /// # Errors
    /// `Corruption` or `InsufficientData`.
    pub(crate) fn take_window(
        self,
        bytes: &mut &[u8],
        width: usize,
        count: usize,
    ) -> Result<Option<Window>> {
        if !self.window {
            return Ok(None);
        }
        Window::take(bytes, width, count).map(Some)
    }

    /// Puts values together again.
    ///
    /// # Errors
    /// `InvalidArgument` if a base is needed.
    pub(crate) fn join(
        self,
        values: ValueType,
        planes: &[&[u8]],
        base: Option<&[u8]>,
        window: Option<&Window>,
        out: &mut [u8],
    ) -> Result<()> {
        if matches!(self.difference, Difference::FromBase | Difference::XorBase) && base.is_none() {
            return Err(Error::invalid("this chunk is a difference: it needs its base"));
        }
        if let Some(window) = window {
            join_planes(planes, false, out);
            window.undo(values.width(), out);
            rotate(values.width(), out, Way::Back);
            return Ok(());
        }
        join_planes(planes, self.rotate, out);
        if self.difference != Difference::None {
            change(values.width(), self.difference, base, out, Way::Back);
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    There,
    Back,
}

/// Moves the sign from the top bit to the lowest, or back.
fn rotate(width: usize, data: &mut [u8], way: Way) {
    macro_rules! by_width {
        ($($n:literal $u:ty;)*) => { match width { $($n => for v in data.as_chunks_mut::<$n>().0 {
            let value = <$u>::from_le_bytes(*v);
            let by = if way == Way::There { 1 } else { <$u>::BITS - 1 };
            *v = value.rotate_left(by).to_le_bytes();
        })* _ => unreachable!("widths are those of value types") } };
    }
    by_width! { 1 u8; 2 u16; 4 u32; 8 u64; }
}

/// Replaces values by differences, or differences by values, in place.
fn change(width: usize, difference: Difference, base: Option<&[u8]>, data: &mut [u8], way: Way) {
    macro_rules! by_width {
        ($($n:literal $u:ty, $i:ty;)*) => { match width { $($n => {
            const SIGN: u32 = <$u>::BITS - 1;
            let zigzag = |d: $u| (d << 1) ^ ((d as $i) >> SIGN) as $u;
            let unzigzag = |z: $u| (z >> 1) ^ (z & 1).wrapping_neg();
            let data = data.as_chunks_mut::<$n>().0;
            let base = base.unwrap_or_default().as_chunks::<$n>().0;
            let mut previous: $u = 0;
            match (difference, way) {
                (Difference::None, _) => {}
                (Difference::FromBase, Way::There) => for (v, b) in data.iter_mut().zip(base) {
                    let d = <$u>::from_le_bytes(*v).wrapping_sub(<$u>::from_le_bytes(*b));
                    *v = zigzag(d).to_le_bytes();
                },
                (Difference::FromBase, Way::Back) => for (v, b) in data.iter_mut().zip(base) {
                    let d = unzigzag(<$u>::from_le_bytes(*v));
                    *v = d.wrapping_add(<$u>::from_le_bytes(*b)).to_le_bytes();
                },
                (Difference::XorBase, _) => for (v, b) in data.iter_mut().zip(base) {
                    v.iter_mut().zip(b).for_each(|(v, b)| *v ^= b);
                },
                (Difference::FromPrevious, Way::There) => for v in data {
                    let value = <$u>::from_le_bytes(*v);
                    *v = zigzag(value.wrapping_sub(previous)).to_le_bytes();
                    previous = value;
                },
                (Difference::FromPrevious, Way::Back) => for v in data {
                    previous = previous.wrapping_add(unzigzag(<$u>::from_le_bytes(*v)));
                    *v = previous.to_le_bytes();
                },
            }
        })* _ => unreachable!("widths are those of value types") } };
    }
    by_width! { 1 u8, i8; 2 u16, i16; 4 u32, i32; 8 u64, i64; }
}

#[cfg(test)]
mod tests {
    use tensorpress_tensor::ndarray::{Array1, Array2};
    use tensorpress_tensor::testing::data;
    use tensorpress_tensor::{Checkpoint, DType, Tensor};

    use super::super::plane;
    use super::*;

    fn coded(difference: Difference, values: ValueType, data: &[u8], base: &[u8]) -> usize {
        let form = Form { difference, rotate: false, window: false };
        let mut stored = Vec::new();
        let planes = form.planes(values, data, Some(base), &mut stored).expect("no window");
        planes.iter().for_each(|p| plane::encode(p, Effort::Fast, &mut stored));
        stored.len()
    }

    /// 300 steps of gradient descent from real weights towards near ones, on inputs whose channels differ in scale.
    fn tuned(weight: &Array2<f32>, seed: f32) -> Array2<f32> {
        let [rows, cols] = [weight.nrows(), weight.ncols()];
        let wave = |i: usize, k: f32| (i as f32 * k + seed).sin();
        let size = (weight.iter().map(|w| w * w).sum::<f32>() / weight.len() as f32).sqrt();
        let shift = Array2::from_shape_fn((rows, cols), |(r, c)| {
            0.03 * size * (wave(r, 1.3) * wave(c, 2.1) + wave(r, 0.7) * wave(c, 5.3))
        });
        let target = weight + &shift;
        let inputs = Array2::from_shape_fn((2 * cols, cols), |(t, c)| {
            wave(t * cols + c, 12.9898) / (1.0 + c as f32).sqrt()
        });
        let gram = inputs.t().dot(&inputs);
        let rate = 1.0 / gram.diag().sum();
        let mut current = weight.clone();
        for _ in 0..300 {
            let step = (&current - &target).dot(&gram) * rate;
            current -= &step;
        }
        current
    }

    /// Bit patterns differ by little where values do, whatever carries run through them; exclusive or sees the carries.
    #[test]
    fn integer_differences_beat_exclusive_or_on_fine_tunes() {
        let Some(file) = data::find("data/models/stories260k/model.safetensors") else { return };
        let checkpoint = Checkpoint::open(file).expect("a model");
        for (dtype, values) in [(DType::BF16, ValueType::BF16), (DType::F32, ValueType::F32)] {
            let (mut base, mut data) = (Vec::new(), Vec::new());
            for (i, name) in checkpoint.names().enumerate() {
                let tensor = checkpoint.tensor(name).expect("a tensor");
                if tensor.shape().len() == 2 {
                    let weight = tensor.to_matrix().expect("floats");
                    let after: Array1<f32> = tuned(&weight, i as f32).into_iter().collect();
                    let before: Array1<f32> = weight.into_iter().collect();
                    dtype
                        .write_f32(before.as_slice().expect("one row"), &mut base)
                        .expect("floats");
                    dtype.write_f32(after.as_slice().expect("one row"), &mut data).expect("floats");
                }
            }
            let mut sizes = [0; 2];
            for (data, base) in data.chunks(1 << 20).zip(base.chunks(1 << 20)) {
                sizes[0] += coded(Difference::FromBase, values, data, base);
                sizes[1] += coded(Difference::XorBase, values, data, base);
            }
            let percent = sizes.map(|n| 100.0 * n as f64 / data.len() as f64);
            println!("{values:?}: difference {:.2}%, exclusive or {:.2}%", percent[0], percent[1]);
            assert!(sizes[0] < sizes[1], "{values:?}: {percent:?}");
            assert!(percent[0] < 60.0, "{values:?}: {percent:?}");
        }
    }
}
