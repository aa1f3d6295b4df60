//! Means of experts in the place of clusters of them.

use tensorpress_tensor::rewrite::{BlockView, Change, Edit, LinearSpec};
use tensorpress_tensor::{Error, RawTensor, Result, Tensor as _};

/// Which experts become one: for each expert of a block the one that stays whose cluster it is in.
pub(super) struct Clusters<'a> {
    pub(super) kept: &'a [usize],
    pub(super) of: &'a [usize],
}

impl Clusters<'_> {
    fn members(&self) -> impl Iterator<Item = impl Iterator<Item = usize>> {
        self.kept.iter().map(|kept| (0..self.of.len()).filter(|index| self.of[*index] == *kept))
    }

    /// The edit that leaves the mean of each cluster: of all matrices and biases of its experts, of their rows of the router,
    /// and of what stands beside it. Means are f64, and stored in the type that the tensor has.
    pub(super) fn edit(&self, block: &BlockView<'_>) -> Result<Edit> {
        let layout = block.layout();
        // The shape, and the errors of what cannot stay.
        let mut edit = Edit::experts(layout, self.kept)?;
        let Some(experts) = &layout.experts else { return Ok(edit) };
        if self.of.len() != experts.count {
            return Err(Error::shape("clusters of another number of experts"));
        }
        let mut whole: Vec<&str> = vec![&experts.router];
        whole.extend(experts.beside.iter().map(String::as_str));
        for place in layout.linears.iter().filter_map(|spec| spec.place.as_ref()) {
            let stacks = [Some(&place.tensor), place.bias.as_ref()].into_iter().flatten();
            whole.extend(stacks.filter(|_| place.index == Some(0)).map(String::as_str));
        }
        for name in whole {
            if let Some(stack) = stored(block, name)? {
                edit = edit.with_change(name, Change::New(self.stack(&stack)?));
            }
        }
        let alone = |index: usize| layout.of_expert(index).filter(|spec| spec.place.is_none());
        // The names of the first ones stay.
        for (at, spec) in alone(0).enumerate() {
            let which: [fn(&LinearSpec) -> &String; 2] = [|spec| &spec.name, |spec| &spec.bias];
            for name in which {
                let of = |index: usize| alone(index).nth(at).map(name);
                if stored(block, name(spec))?.is_none() {
                    continue;
                }
                for (new, members) in self.members().enumerate() {
                    let parts = members.filter_map(of).map(|name| block.tensor(name));
                    let mean = mean(&parts.collect::<Result<Vec<_>>>()?)?;
                    edit = of(new)
                        .into_iter()
                        .fold(edit, |edit, name| edit.with_change(name, Change::New(mean.clone())));
                }
                for gone in (self.kept.len()..experts.count).filter_map(of) {
                    edit = edit.with_change(gone, Change::Gone);
                }
            }
        }
        Ok(edit)
    }

    /// Of a tensor with a part an expert along its first axis.
    fn stack(&self, stack: &RawTensor) -> Result<RawTensor> {
        let mut shape = stack.shape().to_vec();
        let Some(first) = shape.first_mut().filter(|first| **first == self.of.len()) else {
            let (shape, experts) = (stack.shape(), self.of.len());
            return Err(Error::shape(format!("{shape:?} of {experts} experts")));
        };
        *first = self.kept.len();
        let values = stack.to_matrix()?.into_raw_vec_and_offset().0;
        let width = values.len() / self.of.len();
        let mut means = Vec::with_capacity(self.kept.len() * width);
        for members in self.members() {
            let parts: Vec<&[f32]> =
                members.map(|index| &values[index * width..(index + 1) * width]).collect();
            means.extend(mean_of(&parts));
        }
        tensor(stack, shape, &means)
    }
}

/// A tensor, if there is one of this name.
fn stored(block: &BlockView<'_>, name: &str) -> Result<Option<RawTensor>> {
    match block.tensor(name) {
        Err(e) if e.kind() == tensorpress_tensor::ErrorKind::InsufficientData => Ok(None),
        found => found.map(Some),
    }
}

/// Of whole tensors of one shape.
fn mean(parts: &[RawTensor]) -> Result<RawTensor> {
    let first = parts.first().ok_or_else(|| Error::insufficient("a cluster of no experts"))?;
    let read = |part: &RawTensor| Ok(part.to_matrix()?.into_raw_vec_and_offset().0);
    let values = parts.iter().map(read).collect::<Result<Vec<Vec<f32>>>>()?;
    let views: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
    if views.iter().any(|view| view.len() != views[0].len()) {
        return Err(Error::unsupported("the mean of experts of different widths"));
    }
    tensor(first, first.shape().to_vec(), &mean_of(&views))
}

fn mean_of(parts: &[&[f32]]) -> Vec<f32> {
    let sum = |at: usize| parts.iter().map(|part| f64::from(part[at])).sum::<f64>();
    let width = parts.first().map_or(0, |part| part.len());
    (0..width).map(|at| (sum(at) / parts.len() as f64) as f32).collect()
}

/// Values in the type of another tensor.
fn tensor(like: &RawTensor, shape: Vec<usize>, values: &[f32]) -> Result<RawTensor> {
    let mut bytes = Vec::new();
    like.dtype().write_f32(values, &mut bytes)?;
    RawTensor::new(like.dtype(), shape, bytes.into())
}
