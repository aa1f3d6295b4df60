use std::sync::OnceLock;

use ndarray::{ArrayView2, CowArray, Ix2};

use super::Scratch;
use crate::kernels::{Activations, InputForm, PanelInput};

/// The inputs of products, X `[tokens, in]`, and what kernels made of them on the way.
///
/// Matrices that share their inputs (queries, keys and values; gate and up) are best multiplied by the same `Input`, from as
/// many threads as there are: activations are rounded once for all of them.
///
/// ```
/// use tensorpress_tensor::ndarray::Array2;
/// use tensorpress_tensor::node::{Accum, Dense, Input, Node, Scratch};
///
/// let one = Array2::<f32>::eye(64);
/// let (q, k) = (Dense::from(one.clone()), Dense::from(one * 2.0));
/// let x = Array2::from_elem((3, 64), 1.5);
/// let (input, mut scratch) = (Input::new(x.view()), Scratch::default());
/// // Half of the rows of one, all of the other.
/// let (mut some, mut all) = (Array2::zeros((3, 32)), Array2::zeros((3, 64)));
/// q.matmul_rows(0..32, &input, some.view_mut(), Accum::Replace, &mut scratch)?;
/// k.matmul_rows(0..64, &input, all.view_mut(), Accum::Replace, &mut scratch)?;
/// assert!(some == Array2::from_elem((3, 32), 1.5) && all == Array2::from_elem((3, 64), 3.0));
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug)]
pub struct Input<'a> {
    x: CowArray<'a, f32, Ix2>,
    /// One for each form that was met first.
    panels: [OnceLock<PanelInput>; FORMS],
}

/// Forms in which activations are kept; a model has one or two.
const FORMS: usize = 4;

impl<'a> Input<'a> {
    /// Inputs `[tokens, in]`; copied only where they are not row-major without gaps.
    #[must_use]
    pub fn new(x: ArrayView2<'a, f32>) -> Self {
        let row_major = x.is_standard_layout();
        let x = if row_major { x.into() } else { x.as_standard_layout().into_owned().into() };
        Self { x, panels: Default::default() }
    }

    /// Calls `f` with inputs for a while, and leaves their memory in the workspace.
    pub fn with<R>(
        x: ArrayView2<'_, f32>,
        scratch: &mut Scratch,
        f: impl FnOnce(&Input<'_>, &mut Scratch) -> R,
    ) -> R {
        if !x.is_standard_layout() {
            return scratch.with_matrix(x.dim(), |mut copy, scratch| {
                copy.assign(&x);
                Self::with(copy.view(), scratch, f)
            });
        }
        let input = Input::new(x);
        let result = f(&input, scratch);
        input.reclaim(scratch);
        result
    }

    /// X.
    #[must_use]
    pub fn view(&self) -> ArrayView2<'_, f32> {
        self.x.view()
    }

    /// How many.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.x.nrows()
    }

    /// X, row-major.
    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        self.x.as_slice().expect("standard layout")
    }

    /// Calls `f` with the activations as panels of this form take them, made by the first who asks.
    pub(super) fn with_panels(
        &self,
        form: InputForm,
        scratch: &mut Scratch,
        f: impl FnOnce(&PanelInput, &mut Scratch),
    ) {
        let prepare = |scratch: &mut Scratch| {
            let work = scratch.work();
            let mut input = work.take_input();
            let (tokens, cols) = self.x.dim();
            let activations = Activations::default();
            input.prepare_on(work.isa(), self.as_slice(), tokens, cols, form, activations);
            input
        };
        for place in &self.panels {
            let made = place.get_or_init(|| prepare(scratch));
            if made.form() == form {
                return f(made, scratch);
            }
        }
        let made = prepare(scratch);
        f(&made, scratch);
        scratch.work().put_input(made);
    }

    /// Leaves its memory to the products that come after.
    pub fn reclaim(self, scratch: &mut Scratch) {
        for made in self.panels.into_iter().filter_map(OnceLock::into_inner) {
            scratch.work().put_input(made);
        }
    }
}
