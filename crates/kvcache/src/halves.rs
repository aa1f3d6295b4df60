//! Arrays in half precision where f32 is taken.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use ndarray::{Array3, ArrayView3};
use tensorpress_tensor::ndarray;

/// f16 and bf16.
pub trait Half: Copy + sealed::Sealed {
    #[doc(hidden)]
    fn widen(from: &[Self], to: &mut [f32]);
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

impl Half for f16 {
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

impl Half for bf16 {
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

/// An engine's keys, values or queries in half precision as the f32 that caches take, exactly. Held in the same type, they
/// come back bit for bit.
///
/// ```
/// use tensorpress_kvcache::{KvRecipe, widen};
/// use tensorpress_tensor::half::bf16;
/// use tensorpress_tensor::ndarray::Array3;
/// use tensorpress_tensor::Scratch;
///
/// let mut cache = "bf16".parse::<KvRecipe>()?.caches(1, 2, 1, 32)?.remove(0);
/// let [k, q] = [1, 2].map(|heads| Array3::from_elem((4, heads, 32), bf16::from_f32(0.3)));
/// cache.append(widen(k.view()).view(), widen(k.view()).view())?;
/// let mut out = Array3::zeros((4, 2, 32));
/// cache.attend(widen(q.view()).view(), None, out.view_mut(), &mut Scratch::default())?;
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[must_use]
pub fn widen<T: Half>(x: ArrayView3<'_, T>) -> Array3<f32> {
    let x = x.as_standard_layout();
    let mut out = Array3::zeros(x.dim());
    let (from, to) = (x.as_slice(), out.as_slice_mut());
    T::widen(from.expect("standard layout"), to.expect("standard layout"));
    out
}
