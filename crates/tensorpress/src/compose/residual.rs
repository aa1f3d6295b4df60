use tensorpress_tensor::grid::GridSpec;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{Sum, decode};
use tensorpress_tensor::stage::{Inside, Row, WeightPart, WeightRole};
use tensorpress_tensor::stats::{Calibration, Needs};
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, DynCompress, Error, Fold, Group, Method, Node,
    Result, Target,
};

/// A method, and another for what it leaves over.
///
/// Where the method folds scales into the norm before its input, the correction sees the input as it will be: scaled
/// weights, scaled statistics. A matrix that the method kept exactly is not corrected.
#[derive(Debug, Clone, Copy)]
pub struct Residual<A, B> {
    method: A,
    correction: B,
}

impl<A, B> Residual<A, B> {
    pub(super) fn new(method: A, correction: B) -> Self {
        Self { method, correction }
    }
}

pub(super) fn stage() -> Row<WeightPart> {
    let name = "residual";
    let about = "compresses what the stages before left over; the result is the sum";
    let build = move |(), correction| {
        let Some(WeightPart::Method(correction)) = correction else {
            return Err(Error::invalid(format!("{name}: needs a method inside")));
        };
        let after = move |method: Box<dyn DynCompress>| {
            if method.corrects_bias() {
                let message = format!(
                    "`{name}` after `{}`: its bias makes good for the mean already",
                    method.id()
                );
                return Err(Error::unsupported(message));
            }
            let both: Box<dyn DynCompress> = Box::new(Residual::new(method, correction));
            Ok(both)
        };
        Ok(WeightPart::After(Box::new(after)))
    };
    Row::new(name, WeightRole::Residual, about, || (), build)
        .with_inside(Inside::One(vec![WeightRole::Correction, WeightRole::Quantiser]))
        .with_correction()
}

impl<A: Method, B: Method> Method for Residual<A, B> {
    fn id(&self) -> &'static str {
        self.method.id()
    }

    fn grid(&self) -> Option<GridSpec> {
        self.method.grid()
    }

    fn takes_mask(&self) -> bool {
        self.method.takes_mask()
    }

    fn needs(&self) -> Needs {
        self.method.needs().union(self.correction.needs())
    }
}

impl<A: Compress, B: Compress> Compress for Residual<A, B> {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        let Group { targets, calibration, fold, seed, par } = group;
        let spare = match self.correction.needs().is_none() {
            true => Calibration::none(calibration.channels()),
            false => calibration.clone(),
        };
        let first = Group { targets: targets.clone(), calibration, fold, seed, par };
        let CompressedGroup { layers, folded } = self.method.compress_group(first)?;
        let layers: Vec<Compressed> = layers.into_iter().map(Compressed::boxed).collect();
        let scale = folded.as_deref().and_then(|new| Some(divisors(fold?, new)));
        let calibration = match &scale {
            Some(scale) => spare.scaled(scale)?,
            None => spare,
        };
        let left_over = targets.iter().zip(&layers).map(|(target, layer)| {
            left_over(target, layer, scale.as_deref()).in_tensor(target.name)
        });
        let left_over: Vec<Array2<f32>> = left_over.collect::<Result<_>>()?;
        let is_exact = |w: &Array2<f32>| w.iter().all(|v| *v == 0.0);
        let inexact = targets.iter().zip(&left_over).filter(|(_, w)| !is_exact(w));
        let corrected: Vec<Target<'_>> = inexact
            .map(|(target, w)| Target::new(target.name, w.view()).with_dtype(target.dtype))
            .collect();
        let corrections = match corrected.is_empty() {
            true => Vec::new(),
            false => {
                let group = Group { targets: corrected, calibration, fold: None, seed, par };
                self.correction.compress_group(group)?.layers
            }
        };
        let mut corrections = corrections.into_iter();
        let both = layers.into_iter().zip(&left_over).map(|(layer, w)| {
            if is_exact(w) {
                return Ok(layer.with_note(Some("nothing left over to correct".into())));
            }
            let correction = corrections.next().expect("one for each inexact layer").boxed();
            Ok(Compressed {
                bias: correction.bias,
                fallback: layer.fallback,
                node: Sum::new(vec![layer.node, correction.node])?.boxed(),
            }
            .with_note(correction.fallback))
        });
        let layers = both.collect::<Result<_>>()?;
        Ok(CompressedGroup { layers, folded })
    }
}

/// What the input was divided by when scales were folded into the vector before it.
fn divisors(fold: Fold<'_>, new: &[f32]) -> Vec<f32> {
    let divisor = |(old, new): (&f32, &f32)| match old / new {
        ratio if ratio.is_finite() && ratio > 0.0 => ratio,
        // A channel that is always 0.
        _ => 1.0,
    };
    fold.values.iter().zip(new).map(divisor).collect()
}

/// W - Ŵ, in the space the method left its input in.
fn left_over(
    target: &Target<'_>,
    layer: &Compressed,
    divisors: Option<&[f32]>,
) -> Result<Array2<f32>> {
    if layer.bias.is_some() {
        // The bias stands for what is lost of the mean; a correction would make it good a second time.
        let message = "a residual after a method that corrects the bias";
        return Err(Error::unsupported(message));
    }
    let mut rest = target.kept_weight().into_owned();
    if let Some(divisors) = divisors {
        for mut row in rest.rows_mut() {
            row.iter_mut().zip(divisors).for_each(|(w, d)| *w *= d);
        }
    }
    rest -= &decode(layer.node.as_ref())?;
    Ok(rest)
}
