use ndarray::ArrayViewMut2;

use crate::kernels::{Accum, Work};
use crate::linalg::Par;

/// Buffers reused between calls, and the parallelism a call may use.
///
/// A fused product with [`Par::Seq`] allocates nothing once one of the same sizes was made with the same workspace (with more
/// than a few tokens: on CPUs for which there are SIMD kernels).
#[derive(Debug, Default)]
pub struct Scratch {
    work: Work,
}

impl Scratch {
    /// An empty workspace whose products run with `par`.
    #[must_use]
    pub fn new(par: Par) -> Self {
        Self { work: Work::new(par) }
    }

    /// Parallelism of the products.
    #[must_use]
    pub fn par(&self) -> Par {
        self.work.par()
    }

    /// What kernels take.
    pub fn work(&mut self) -> &mut Work {
        &mut self.work
    }

    /// A buffer of `len` values, contents unspecified; give it back with [`Scratch::put`].
    #[must_use]
    pub fn take(&mut self, len: usize) -> Vec<f32> {
        self.work.take(len)
    }

    /// Calls `f` with a matrix whose contents are unspecified and begin at a cache line, and this workspace for what `f` calls
    /// in turn.
    pub fn with_matrix<R>(
        &mut self,
        shape: (usize, usize),
        f: impl FnOnce(ArrayViewMut2<'_, f32>, &mut Self) -> R,
    ) -> R {
        let mut buffer = self.work.take_lines(shape.0 * shape.1);
        let view = ArrayViewMut2::from_shape(shape, &mut buffer).expect("taken with this length");
        let result = f(view, self);
        self.work.put_lines(buffer);
        result
    }

    /// Gives a buffer back.
    pub fn put(&mut self, buffer: Vec<f32>) {
        self.work.put(buffer);
    }
}

/// Calls `f(y, whether to add, ...)` with Y as one slice, of a copy where it is not one.
pub(super) fn with_slice(
    mut y: ArrayViewMut2<'_, f32>,
    accum: Accum,
    scratch: &mut Scratch,
    f: impl FnOnce(&mut [f32], bool, &mut Scratch),
) {
    let add = accum == Accum::Add;
    if let Some(y) = y.as_slice_mut() {
        return f(y, add, scratch);
    }
    scratch.with_matrix(y.dim(), |mut copy, scratch| {
        if add {
            copy.assign(&y);
        }
        f(copy.as_slice_mut().expect("contiguous"), add, scratch);
        y.assign(&copy);
    });
}
